// Making and changing elements. Text goes in as text and never as markup.

/** An element with attributes (`class`, `on...` listeners, others as they are) and children: nodes or texts. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** Set a text, and touch nothing that stays as it is: a selection survives, and a screen reader is not told again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value == null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Make the children of `parent` those of `items`, in their order; an element stays with its key. */
export function reconcile(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = known.get(key);
    known.delete(key);
    if (!node) {
      node = create(item);
      node.dataset.key = key;
    }
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of known.values()) node.remove();
}

/** A section with a heading. */
export function section(id, title, ...children) {
  return el("section", { "aria-labelledby": `${id}-title`, id }, el("h2", { id: `${id}-title` }, title), ...children);
}

/**
 * A table that follows its items. `columns`: `{ label, number, head, show(cell, item) }`; the one with `head` names its row.
 * Roles are given in words because narrow screens show rows as cards, and then browsers forget what they were.
 */
export function liveTable(caption, columns, keyOf, { empty = "" } = {}) {
  const head = el("tr", { role: "row" },
    ...columns.map((one) => el("th", { role: "columnheader", scope: "col", class: one.number ? "number" : null, title: one.title }, one.label)));
  const body = el("tbody", { role: "rowgroup" });
  const none = el("p", { class: "quiet", hidden: true }, empty);
  const table = el("table", { role: "table" }, el("caption", { class: "hidden" }, caption),
    el("thead", { role: "rowgroup" }, head), body);
  const create = () => el("tr", { role: "row" }, ...columns.map((one) => el(one.head ? "th" : "td", {
    role: one.head ? "rowheader" : "cell", scope: one.head ? "row" : null,
    class: [one.number && "number", one.class].filter(Boolean).join(" ") || null, "data-label": one.label,
  })));
  const update = (row, item) => columns.forEach((one, index) => one.show(row.children[index], item));
  return {
    node: el("div", { class: "table" }, table, none),
    show(items) {
      reconcile(body, items, keyOf, create, update);
      table.hidden = empty !== "" && items.length === 0;
      none.hidden = !table.hidden;
    },
  };
}

/** A word with a tone: `good`, `warning`, `bad` or `idle`. Never the colour alone. */
export function showState(cell, word, tone) {
  let node = cell.querySelector(".state");
  if (!node) cell.append(node = el("span", { class: "state" }));
  setText(node, word);
  setAttribute(node, "data-tone", tone);
}

/** A number with a bar of its share behind it; `share` null: no bar. */
export function showShare(cell, text, share) {
  setText(cell, text);
  cell.classList.toggle("share", share != null);
  if (share != null) cell.style.setProperty("--share", `${Math.min(100, Math.round(share * 100))}%`);
  setAttribute(cell, "data-tone", share == null || share < 0.75 ? null : share < 0.9 ? "warning" : "bad");
}
