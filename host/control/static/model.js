// The view of one model.
import { Charts, LINES_MAX } from "./charts.js";
import { modelColumns, slotColumns } from "./columns.js";
import { el, liveTable, section } from "./dom.js";
import { EventList } from "./events.js";
import { dateTime, mebibytes, pretty, shape } from "./format.js";
import { Trial } from "./trial.js";

function tensorTable(caption, tensors) {
  const fetched = tensors.some((one) => one.features.length);
  const labels = ["Name", "Datatype", "Shape", ...(fetched ? ["Fetched from, if left out"] : [])];
  return el("div", { class: "table" }, el("table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...labels.map((label) => el("th", { scope: "col" }, label)))),
    el("tbody", {}, ...tensors.map((one) => el("tr", {}, el("th", { scope: "row" }, one.name), el("td", {}, one.datatype),
      el("td", { class: "code" }, shape(one.shape)), fetched ? el("td", {}, one.features.join(", ") || "\u2013") : null)))));
}

const facts = (pairs) => el("dl", { class: "facts" }, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));

const block = (title, lines) => (lines && lines.length
  ? el("details", {}, el("summary", {}, title), el("pre", { tabindex: "0", "aria-label": title }, lines.join("\n"))) : null);

function processes(version) {
  return version.max_processes ? `${version.min_processes} to ${version.max_processes}, by load` : String(version.processes);
}

function versionNode(version) {
  const { limits, resources, sandbox } = version;
  const golden = version.golden.map((one) => block(`${one.name}${one.request ? "" : ` (${one.size_bytes} bytes: too large to be shown)`}`,
    one.request ? [`request ${pretty(one.request)}`, `answer ${pretty(one.response)}`] : ["not shown"]));
  return el("article", { class: "version" },
    el("h3", {}, `Version ${version.version}${version.default ? ", the default" : ""}`),
    el("div", { class: "pair" }, tensorTable("Inputs", version.inputs), tensorTable("Outputs", version.outputs)),
    facts([
      ["platform", version.platform], ["processes", processes(version)],
      ...(version.canary_percent ? [["canary", `${version.canary_percent} %`]] : []),
      ...(version.shadow_percent ? [["shadow", `${version.shadow_percent} %`]] : []),
      ["memory of each", mebibytes(resources.memory_bytes)], ["CPUs of each", resources.cpus], ["threads", resources.threads],
      ["timeout", `${limits.timeout_ms} ms`], ["batch, rows", limits.max_batch_rows], ["queue", limits.max_queue],
      ["start within", `${limits.startup_s} s`], ["hangs after", `${limits.hang_s} s`], ["sent again after a death", limits.retry ? "yes" : "no"],
      ["network", sandbox.network ? "yes" : "no"], ["environment", version.own_environment ? "its own" : "the host's"], ["package", version.package],
    ]),
    el("h4", {}, `Golden cases${version.golden_problem ? ` (${version.golden_problem})` : ""}`),
    ...(golden.length ? golden : [el("p", { class: "quiet" }, "None.")]));
}

function deathNode(death) {
  const counts = Object.entries(death.counts ?? {}).map(([kind, times]) => `${kind} ${times}`).join(", ");
  return el("li", {},
    el("p", {}, el("span", { class: "state", "data-tone": "bad" }, death.program), ` ${death.reason}`),
    el("p", { class: "quiet" }, [dateTime(death.at), death.pid ? `pid ${death.pid}` : "", counts ? `all deaths: ${counts}` : ""].filter(Boolean).join(" \u00b7 ")),
    block("Stacks", death.stacks), block("Log when it died", death.at_death), block("Log now", death.log));
}

export class ModelView {
  constructor(name) {
    this.name = name;
    this.versions = liveTable(`Versions of ${name}`, modelColumns({ detail: true }), ({ model }) => model.group, { empty: "No version of this model is deployed." });
    this.slots = liveTable(`Processes of ${name}`, slotColumns(), ({ slot }) => slot.name, { empty: "None." });
    this.charts = new Charts({ detail: true });
    this.trial = new Trial(name);
    this.deaths = el("ol", { class: "deaths" });
    this.packages = el("div");
    this.events = new EventList("Events", name);
    this.loaded = "";
    this.nodes = [
      el("p", { class: "path" }, el("a", { href: "/" }, "All models")),
      el("h1", {}, name),
      section("versions", "Versions", this.versions.node),
      section("charts", "Last 15 minutes", this.charts.node),
      section("processes", "Processes", this.slots.node),
      this.trial.node,
      el("div", { class: "pair" }, section("deaths", "Causes of death", this.deaths), this.events.node),
      section("package", "Signature, limits, golden cases", this.packages),
    ];
  }

  mine(status) {
    return status.models.filter((model) => model.name === this.name);
  }

  groups(status) {
    return this.mine(status).slice(0, LINES_MAX).map((model) => model.group);
  }

  title() {
    return `${this.name} \u2013 modelhost`;
  }

  show({ status, point, histories, now }) {
    const mine = this.mine(status);
    const several = mine.length > 1;
    this.versions.show(mine.map((model, index) => ({ model, numbers: point.models[model.group], line: several ? index + 1 : null })));
    this.slots.show(mine.flatMap((model) => model.slots).map((slot) => ({ slot, use: point.slots[slot.name] })));
    const drawn = mine.slice(0, LINES_MAX).filter((model) => histories.has(model.group));
    this.charts.show(drawn.map((model) => ({ label: `version ${model.version}`, history: histories.get(model.group), line: mine.indexOf(model) + 1 })), now);
    const wanted = JSON.stringify(mine.map((model) => [model.group, model.default, model.wanted, model.slots.map((slot) => slot.last_exit?.at)]));
    if (wanted !== this.loaded) {
      this.loaded = wanted;
      this.load();
    }
  }

  async load() {
    const response = await fetch(`/models/${encodeURIComponent(this.name)}/details`).catch(() => null);
    if (!response?.ok) {
      // Gone, or control is: what was shown stays, and the next change asks again.
      if (response?.status !== 404) this.loaded = "";
      return;
    }
    const document = await response.json();
    this.trial.show(document.versions);
    this.packages.replaceChildren(...document.versions.map(versionNode));
    this.deaths.replaceChildren(...document.deaths.map(deathNode));
    if (!document.deaths.length) this.deaths.append(el("li", { class: "quiet" }, "None since the host started."));
  }

  happened(message) {
    this.events.show(message);
  }
}
