// The list of what happened, newest first.
import { el, section, setText } from "./dom.js";
import { dateTime, time } from "./format.js";

const SHOWN_MAX = 500;
const TONES = { bad: "bad", warning: "warning", good: "good", info: "idle" };

export class EventList {
  /** `model`: only what is about it. */
  constructor(title, model = "") {
    this.model = model;
    this.list = el("ol", { class: "events" });
    this.none = el("p", { class: "quiet" }, "Nothing yet.");
    this.only = el("input", { type: "checkbox", id: "only-problems", onchange: () => this.list.classList.toggle("only-problems", this.only.checked) });
    // What is new is read out; the list is too long for that, so it is in a region of its own.
    this.news = el("p", { class: "hidden", "aria-live": "polite" });
    this.node = section("events", title,
      el("p", { class: "filter" }, el("label", { for: "only-problems" }, this.only, " only problems")),
      this.news, this.none, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, newest first` }, this.list));
  }

  show({ all, events }) {
    const mine = events.filter((one) => !this.model || one.model === this.model);
    if (all) this.list.replaceChildren();
    for (const one of mine) this.list.prepend(this.item(one));
    while (this.list.children.length > SHOWN_MAX) this.list.lastElementChild.remove();
    this.none.hidden = this.list.children.length > 0;
    if (!all && mine.length) setText(this.news, mine.slice(-3).map((one) => `${one.subject}: ${one.text}`).join(". "));
  }

  item(event) {
    const at = new Date(event.at * 1000).toISOString();
    return el("li", { "data-severity": event.severity },
      el("time", { datetime: at, title: dateTime(event.at) }, time(event.at)),
      el("span", { class: "state", "data-tone": TONES[event.severity] }, event.what),
      event.subject === "host" ? null : el("span", { class: "subject" }, event.model && !this.model ? el("a", { href: `/models/${encodeURIComponent(event.model)}` }, event.subject) : event.subject),
      el("span", { class: "text" }, event.text));
  }
}
