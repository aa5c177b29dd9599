// The form that tries a prediction: through a front, as any client's request goes.
import { el, section, setText } from "./dom.js";
import { number, pretty } from "./format.js";

const AS_CLIENTS = "";

/** Whether two answers are the same but for what floating point does. */
function matches(expected, received) {
  return expected.outputs.every((want) => {
    const got = received.outputs?.find((one) => one.name === want.name);
    return got && got.data?.length === want.data.length && want.data.every((value, index) => {
      const other = got.data[index];
      return typeof value === "number" ? Math.abs(value - other) <= 1e-5 * Math.max(1, Math.abs(value)) : value === other;
    });
  });
}

export class Trial {
  constructor(name) {
    this.name = name;
    this.versions = [];
    this.version = el("select", { id: "trial-version", onchange: () => this.choose() });
    this.source = el("select", { id: "trial-source", onchange: () => this.fill() });
    this.body = el("textarea", { id: "trial-body", rows: "12", spellcheck: "false", autocomplete: "off" });
    this.button = el("button", { type: "submit" }, "Predict");
    this.outcome = el("p", { class: "outcome", role: "status" });
    this.answer = el("pre", { tabindex: "0", "aria-label": "Answer", hidden: true });
    this.form = el("form", { class: "trial", onsubmit: (event) => { event.preventDefault(); this.send(); } },
      el("div", { class: "fields" },
        el("label", { for: "trial-version" }, "Version", this.version),
        el("label", { for: "trial-source" }, "Fill in from", this.source)),
      el("label", { for: "trial-body" }, "Request (JSON)", this.body), el("div", { class: "fields" }, this.button, this.outcome), this.answer);
    this.node = section("trial", "Try a prediction", this.form);
  }

  /** Offer these versions; what somebody has typed stays. */
  show(versions) {
    const before = this.version.value;
    this.versions = versions;
    this.version.replaceChildren(el("option", { value: AS_CLIENTS }, "as clients without a version"),
      ...versions.map((one) => el("option", { value: one.version }, `version ${one.version}`)));
    this.version.value = versions.some((one) => one.version === before) ? before : AS_CLIENTS;
    this.choose(this.body.value !== "");
  }

  chosen() {
    return this.versions.find((one) => one.version === this.version.value) ?? this.versions.find((one) => one.default) ?? this.versions[0];
  }

  choose(keep = false) {
    const version = this.chosen();
    const cases = version ? version.golden.filter((one) => one.request) : [];
    const before = this.source.value;
    this.source.replaceChildren(...cases.map((one, index) => el("option", { value: String(index) }, `golden case: ${one.name}`)),
      el("option", { value: "example" }, "the signature, with zeros"));
    if (keep && [...this.source.options].some((one) => one.value === before)) this.source.value = before;
    if (!keep) this.fill();
  }

  fill() {
    const version = this.chosen();
    const request = this.goldenCase()?.request ?? version?.example;
    this.body.value = request ? pretty(request) : "";
  }

  goldenCase() {
    const cases = this.chosen()?.golden.filter((one) => one.request) ?? [];
    return this.source.value === "example" ? undefined : cases[Number(this.source.value)];
  }

  async send() {
    const golden = this.goldenCase();
    const version = this.version.value === AS_CLIENTS ? "" : `/versions/${encodeURIComponent(this.version.value)}`;
    const unchanged = golden && this.body.value === pretty(golden.request);
    this.button.disabled = true;
    this.say("waiting for the answer", "idle");
    const begun = performance.now();
    try {
      const response = await fetch(`/models/${encodeURIComponent(this.name)}${version}/infer`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: this.body.value,
      });
      const text = await response.text();
      const took = performance.now() - begun;
      const front = /dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "")?.[1];
      let document = null;
      try { document = JSON.parse(text); } catch { /* shown as it is */ }
      let verdict = "";
      if (response.ok && unchanged && document) verdict = matches(JSON.parse(golden.response), document) ? ", as recorded" : ", not as recorded";
      const times = front ? `${number(Number(front))} ms at the front, ${number(took)} ms in all` : `${number(took)} ms`;
      this.say(`${response.status} ${response.ok ? "OK" : document?.code ?? ""} in ${times}${verdict}`, response.ok && verdict !== ", not as recorded" ? "good" : "bad");
      setText(this.answer, pretty(text));
      this.answer.hidden = false;
    } catch (error) {
      this.say(`no answer: ${error.message}`, "bad");
    } finally {
      this.button.disabled = false;
    }
  }

  say(text, tone) {
    this.outcome.replaceChildren(el("span", { class: "state", "data-tone": tone }, text));
  }
}
