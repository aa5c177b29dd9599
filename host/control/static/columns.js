// Columns of the tables, shared by the views.
import { el, setAttribute, setText, showShare, showState } from "./dom.js";
import { NONE, ago, count, dateTime, duration, mebibytes, milliseconds, number, percent } from "./format.js";

/** A version's state in words, and its tone. */
export function stateOf(model) {
  switch (model.state) {
    case "serving":
      if (model.reason || model.ready < model.wanted) return ["not ready", "bad"];
      return model.wanted === 0 ? ["scaled to none", "idle"] : ["ready", "good"];
    case "starting": return ["starting", "warning"];
    case "failed": return ["given up", "bad"];
    case "replaced": return ["being replaced", "warning"];
    default: return ["leaving", "warning"];
  }
}

function slotState(slot) {
  if (slot.ready) return ["ready", "good"];
  if (slot.backoff && slot.backoff.until > Date.now() / 1000) return ["waits to restart", "bad"];
  if (slot.state === "RUNNING" || slot.state === "STARTING") return ["starting", "warning"];
  return [slot.state.toLowerCase(), "bad"];
}

const sum = (slots, key) => slots.reduce((total, one) => total + one[key], 0);
const plain = (label, show, more = {}) => ({ label, number: true, show: (cell, item) => setText(cell, show(item)), ...more });

/** The last death among processes. */
export function lastExit(slots) {
  return slots.map((one) => one.last_exit).filter(Boolean).sort((one, other) => other.at - one.at)[0];
}

function showExit(cell, exit) {
  setText(cell, exit ? `${exit.reason}, ${ago(exit.at)}` : NONE);
  setAttribute(cell, "title", exit ? dateTime(exit.at) : null);
  cell.classList.toggle("quiet", !exit);
}

function showVersion(cell, { model, line }) {
  if (!cell.firstChild) cell.append(el("span", { class: "swatch", "aria-hidden": "true" }), el("span", {}), el("span", { class: "badge" }));
  const [swatch, version, badge] = cell.children;
  setAttribute(swatch, "data-line", line);
  setText(version, model.version);
  setText(badge, model.default ? "default" : "");
}

function showName(cell, { model, line }) {
  if (!cell.firstChild) {
    cell.append(el("span", { class: "swatch", "aria-hidden": "true" }), el("a", {}), el("span", { class: "badge" }));
  }
  const [swatch, link, badge] = cell.children;
  setAttribute(swatch, "data-line", line);
  setAttribute(link, "href", `/models/${encodeURIComponent(model.name)}`);
  setText(link, model.name);
  setText(badge, model.default ? "" : "not default");
  badge.hidden = model.default;
}

/** Items: `{ model, numbers, line }`. */
export function modelColumns({ detail }) {
  const of = (key) => ({ numbers }) => numbers?.[key];
  const names = detail
    ? [{ label: "Version", head: true, show: showVersion }]
    : [{ label: "Model", head: true, show: showName }, { label: "Version", show: (cell, { model }) => setText(cell, model.version) }];
  return [
    ...names,
    { label: "State", class: "now", show: (cell, { model }) => {
      showState(cell, ...stateOf(model));
      let reason = cell.querySelector(".reason");
      if (!reason) cell.append(reason = el("span", { class: "reason" }));
      setText(reason, model.reason);
    } },
    plain("Ready", ({ model }) => `${model.ready} / ${model.wanted}`, { title: "processes that are ready, of those wanted" }),
    plain("Requests/s", (item) => number(of("requests_per_s")(item))),
    plain("Failed/s", (item) => number(of("failed_per_s")(item))),
    plain("p50, ms", (item) => milliseconds(of("p50_s")(item))),
    plain("p99, ms", (item) => milliseconds(of("p99_s")(item))),
    plain("Waiting", (item) => count(of("waiting")(item)), { title: "requests that wait for their answer, queued or running" }),
    { label: "Busy", number: true, title: "share of the time in which its workers work", show: (cell, item) => showShare(cell, percent(of("busy_share")(item)), of("busy_share")(item)) },
    { label: "Memory", number: true, title: "of the process that is nearest to its limit", show: (cell, item) => {
      const share = of("memory_share")(item);
      showShare(cell, share == null ? mebibytes(of("memory_bytes")(item)) : percent(share), share);
      setAttribute(cell, "title", `${mebibytes(of("memory_bytes")(item))} in all`);
    } },
    plain("Restarts", ({ model }) => count(sum(model.slots, "restarts"))),
    { label: "Last death", class: "wide", show: (cell, { model }) => showExit(cell, lastExit(model.slots)) },
  ];
}

/** Items: `{ slot, use }`; `use` is memory, limit (bytes) and CPUs, if there is a process. */
export function slotColumns() {
  return [
    { label: "Process", head: true, show: (cell, { slot }) => setText(cell, slot.name) },
    { label: "State", class: "now", show: (cell, { slot }) => showState(cell, ...slotState(slot)) },
    plain("pid", ({ slot }) => (slot.pid ? String(slot.pid) : NONE)),
    plain("Up", ({ slot }) => (slot.pid ? duration(Date.now() / 1000 - slot.started_at) : NONE)),
    { label: "Memory", number: true, show: (cell, { use }) => {
      const share = use && use[1] ? use[0] / use[1] : null;
      showShare(cell, use ? mebibytes(use[0]) + (use[1] ? ` of ${mebibytes(use[1])}` : "") : NONE, share);
    } },
    plain("CPU", ({ use }) => (use ? percent(use[2]) : NONE), { title: "100 % is one core" }),
    plain("Restarts", ({ slot }) => count(slot.restarts)),
    plain("Deaths", ({ slot }) => count(slot.deaths)),
    { label: "Last death", class: "wide", show: (cell, { slot }) => {
      const waits = slot.backoff && slot.backoff.until > Date.now() / 1000;
      showExit(cell, slot.last_exit);
      if (waits) setText(cell, `${cell.textContent}; starts again in ${duration(slot.backoff.until - Date.now() / 1000)}`);
    } },
  ];
}
