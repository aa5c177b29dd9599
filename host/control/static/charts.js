// Charts of the last fifteen minutes, drawn by uPlot, each with a text alternative.
import { el, reconcile, setAttribute } from "./dom.js";
import { count, milliseconds, number, percent, time } from "./format.js";

export const WINDOW_S = 900;
const WINDOW_MIN_S = 120;
export const LINES_MAX = 8;
const HEIGHT = 132;

export const CHARTS = [
  { id: "requests", title: "Requests per second", series: ["requests_per_s"], names: ["all"], show: number },
  { id: "failed", title: "Failed per second", series: ["failed_per_s"], names: ["failed"], show: number, least: 1, detail: true },
  { id: "p99", title: "p99, ms", series: ["p99_s"], names: ["p99"], show: milliseconds, overview: true },
  { id: "latency", title: "p50 and p99, ms", series: ["p50_s", "p99_s"], names: ["p50", "p99"], show: milliseconds, detail: true },
  { id: "waiting", title: "Requests waiting", series: ["waiting"], names: ["waiting"], show: count, least: 4 },
  { id: "busy", title: "Workers busy", series: ["busy_share"], names: ["busy"], show: percent, top: 1 },
  { id: "memory", title: "Memory, of its limit", series: ["memory_share"], names: ["memory"], show: percent, top: 1 },
  { id: "cpus", title: "CPUs in use", series: ["cpus"], names: ["CPUs"], show: number, detail: true },
  { id: "cache", title: "Feature cache hits", series: ["cache_hit_share"], names: ["hits"], show: percent, top: 1, optional: true },
];

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Bring histories of several versions onto one time axis, which is that of the longest. */
function aligned(histories, lines) {
  const times = histories.reduce((longest, one) => (one.at.length > longest.length ? one.at : longest), []);
  const values = lines.map(({ history, series }) => {
    const column = new Array(times.length).fill(null);
    let place = 0;
    for (let index = 0; index < history.at.length; index += 1) {
      while (place < times.length && times[place] < history.at[index] - 0.05) place += 1;
      if (place < times.length) column[place] = history[series][index];
    }
    return column;
  });
  return [times, ...values];
}

class Chart {
  constructor(kind) {
    this.kind = kind;
    this.readout = el("span", { class: "readout" });
    this.plot = el("div", { class: "plot", role: "img" });
    this.node = el("figure", {}, el("figcaption", {}, el("span", {}, kind.title), this.readout), this.plot);
    this.shape = null;
    this.lines = [];
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  /** `versions`: `{ label, history, line }`, with the number of the line's colour. */
  show(versions, now, redraw) {
    this.lines = versions.flatMap(({ label, history, line }) => this.kind.series.map((series, index) => ({
      history, series, line: versions.length > 1 ? line : line + index,
      label: versions.length > 1 ? `${label}${this.kind.series.length > 1 ? ` ${this.kind.names[index]}` : ""}` : this.kind.names[index],
      dash: index < this.kind.series.length - 1,
    })));
    const data = aligned(versions.map((one) => one.history), this.lines);
    this.known = data.slice(1).some((column) => column.some((value) => value != null));
    this.node.hidden = Boolean(this.kind.optional) && !this.known;
    const wanted = this.lines.map((one) => one.label + one.line).join("|");
    if (redraw || wanted !== this.shape) this.build(wanted);
    this.now = now;
    this.uplot.setData(data, false);
    this.uplot.setScale("x", { min: Math.max(now - WINDOW_S, Math.min(data[0][0] ?? now, now - WINDOW_MIN_S)), max: now });
    this.describe(data);
  }

  build(shape) {
    this.uplot?.destroy();
    this.shape = shape;
    const axis = { stroke: style("--quiet"), grid: { stroke: style("--rule"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const { show, top, least = 0 } = this.kind;
    this.uplot = new uPlot({
      width: Math.max(160, this.plot.clientWidth),
      height: HEIGHT,
      padding: [8, 16, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "page" }, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: true, auto: false }, y: { range: (_, low, high) => [0, top ?? Math.max(least, high > 0 ? high * 1.1 : 1)] } },
      axes: [
        { ...axis, size: 22, gap: 4, space: 60, incrs: [15, 30, 60, 120, 180, 300], values: (_, splits) => splits.map((at) => time(at).slice(0, splits[1] - splits[0] < 60 ? 8 : 5)) },
        { ...axis, size: 46, gap: 4, space: 28, values: (_, splits) => splits.map((value) => show(value)) },
      ],
      series: [{}, ...this.lines.map((one) => ({
        label: one.label, stroke: style(`--line-${one.line}`), width: 1.5, dash: one.dash ? [4, 3] : undefined, spanGaps: true, points: { show: false },
      }))],
      hooks: { setCursor: [(uplot) => this.read(uplot)] },
    }, [[], ...this.lines.map(() => [])], this.plot);
    for (const canvas of this.plot.querySelectorAll("canvas")) canvas.setAttribute("aria-hidden", "true");
  }

  /** What the line that is nearest to the cursor says; without one, what is now, if there are few. */
  read(uplot) {
    const { idx, top } = uplot.cursor;
    const at = (index, place) => this.kind.show(uplot.data[index + 1][place]);
    let told = [];
    if (idx == null || !(top >= 0)) {
      const now = uplot.data[0].length - 1;
      if (this.lines.length <= 2) told = this.lines.map((one, index) => ({ line: one.line, text: `${this.lines.length > 1 ? `${one.label} ` : ""}${at(index, now)}` }));
      if (this.lines.length === 1) told[0].line = null;
    } else {
      const distance = (index) => Math.abs(uplot.valToPos(uplot.data[index + 1][idx], "y") - top);
      const known = this.lines.map((_, index) => index).filter((index) => uplot.data[index + 1][idx] != null);
      if (known.length) {
        const nearest = known.reduce((best, index) => (distance(index) < distance(best) ? index : best));
        const { line, label } = this.lines[nearest];
        told = [{ line, text: `${label} ${at(nearest, idx)} at ${time(uplot.data[0][idx])}` }];
      }
    }
    this.readout.replaceChildren(...told.map(({ line, text }) => el("span", {}, el("span", { class: "swatch", "data-line": line }), text)));
  }

  describe(data) {
    const told = this.lines.map((one, index) => {
      const values = data[index + 1].filter((value) => value != null);
      if (!values.length) return `${one.label}: nothing known`;
      return `${one.label}: now ${this.kind.show(last(data[index + 1]))}, least ${this.kind.show(Math.min(...values))}, most ${this.kind.show(Math.max(...values))}`;
    });
    setAttribute(this.plot, "aria-label", `${this.kind.title}, last 15 minutes. ${told.join(". ") || "Nothing known"}`);
    this.read(this.uplot);
  }

  resize() {
    const width = this.plot.clientWidth;
    if (this.uplot && width > 0 && width !== this.uplot.width) this.uplot.setSize({ width, height: HEIGHT });
  }
}

const last = (values) => values[values.length - 1];

/** All charts of a view. `detail`: of one model. */
export class Charts {
  constructor({ detail }) {
    this.charts = CHARTS.filter((kind) => (detail ? !kind.overview : !kind.detail)).map((kind) => new Chart(kind));
    this.legend = el("ul", { class: "legend" });
    this.node = el("div", {}, this.legend, el("div", { class: detail ? "charts wide" : "charts" }, ...this.charts.map((one) => one.node)));
    this.redraw = false;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.redraw = true; this.again?.(); });
  }

  show(versions, now) {
    this.again = () => this.show(versions, now);
    reconcile(this.legend, versions.length > 1 ? versions : [], (one) => one.label,
      (one) => el("li", {}, el("span", { class: "swatch", "aria-hidden": "true" }), one.label),
      (node, one) => setAttribute(node.firstElementChild, "data-line", one.line));
    for (const chart of this.charts) chart.show(versions, now, this.redraw);
    this.redraw = false;
  }
}
