// The view of the whole host.
import { Charts, LINES_MAX } from "./charts.js";
import { modelColumns, slotColumns } from "./columns.js";
import { el, liveTable, section, setText, showState } from "./dom.js";
import { EventList } from "./events.js";

export class Overview {
  constructor() {
    this.models = liveTable("Models: wanted and actual", modelColumns({ detail: false }), ({ model }) => model.group, { empty: "No model is deployed." });
    this.host = liveTable("Processes of the host", slotColumns(), ({ slot }) => slot.name);
    this.unwanted = liveTable("Processes that should not be there", slotColumns(), ({ slot }) => slot.name);
    this.stores = liveTable("Stores of features", [
      { label: "Store", head: true, show: (cell, store) => setText(cell, store.name) },
      { label: "State", show: (cell, store) => showState(cell, ...(store.open ? ["does not answer", "bad"] : ["answers", "good"])) },
      { label: "Outages", number: true, show: (cell, store) => setText(cell, String(store.openings)) },
    ], (store) => store.name);
    this.charts = new Charts({ detail: false });
    this.rest = el("p", { class: "quiet", hidden: true });
    this.events = new EventList("Events");
    this.storesSection = section("stores", "Feature stores", this.stores.node);
    this.unwantedSection = section("unwanted", "Processes that should not be there", this.unwanted.node);
    this.nodes = [
      el("h1", { class: "hidden" }, "Status of this host"),
      section("models", "Models", this.models.node),
      el("div", { class: "board" }, section("charts", "Last 15 minutes", this.charts.node, this.rest), this.events.node),
      this.unwantedSection,
      section("host", "Host processes", this.host.node),
      this.storesSection,
    ];
  }

  /** The versions whose history is drawn. */
  groups(status) {
    return status.models.slice(0, LINES_MAX).map((model) => model.group);
  }

  title() {
    return "modelhost";
  }

  show({ status, point, histories, now }) {
    const line = (index) => (index < LINES_MAX ? index + 1 : null);
    this.models.show(status.models.map((model, index) => ({ model, numbers: point.models[model.group], line: line(index) })));
    const use = (slots) => slots.map((slot) => ({ slot, use: point.slots[slot.name] }));
    this.host.show(use(status.host));
    this.unwanted.show(use(status.unwanted));
    this.unwantedSection.hidden = status.unwanted.length === 0;
    this.stores.show(status.stores);
    this.storesSection.hidden = status.stores.length === 0;
    const drawn = status.models.slice(0, LINES_MAX);
    this.charts.show(drawn.filter((model) => histories.has(model.group)).map((model) => ({
      label: `${model.name} ${model.version}`, history: histories.get(model.group), line: status.models.indexOf(model) + 1,
    })), now);
    this.rest.hidden = status.models.length <= LINES_MAX;
    setText(this.rest, `The first ${LINES_MAX} of ${status.models.length} versions; each model's own page has all of its own.`);
  }

  happened(message) {
    this.events.show(message);
  }
}
