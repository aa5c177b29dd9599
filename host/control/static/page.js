// The page: one stream of server-sent events, one of two views.
import { WINDOW_S } from "./charts.js";
import { setText, showState } from "./dom.js";
import { ModelView } from "./model.js";
import { Overview } from "./overview.js";

const path = /^\/models\/([^/]+)$/.exec(location.pathname);
const view = path ? new ModelView(decodeURIComponent(path[1])) : new Overview();
const state = { status: null, point: { at: 0, models: {}, slots: {} }, histories: new Map(), now: Date.now() / 1000 };
const loading = new Set();
const byId = (id) => document.getElementById(id);

document.getElementById("main").replaceChildren(...view.nodes);
document.title = view.title();

function showHead() {
  const { status } = state;
  showState(byId("ready"), status.ready ? "ready" : "not ready", status.ready ? "good" : "bad");
  const steps = status.settled ? "" : " \u00b7 a change is under way";
  setText(byId("summary"), `${status.ready_processes} of ${status.wanted} model processes \u00b7 generation ${status.generation}${steps}`);
  byId("problem").hidden = !status.problem;
  setText(byId("problem"), status.problem ? `Control cannot look at the host, and this is what it saw last: ${status.problem}` : "");
  document.title = (status.ready ? "" : "NOT READY \u2013 ") + view.title();
}

function show() {
  if (!state.status) return;
  showHead();
  view.show(state);
}

/** Fetch the last fifteen minutes of versions that are drawn and not known yet. */
async function loadHistories() {
  const missing = view.groups(state.status).filter((group) => !state.histories.has(group) && !loading.has(group));
  if (!missing.length) return;
  missing.forEach((group) => loading.add(group));
  try {
    const query = new URLSearchParams(missing.map((group) => ["version", group]));
    const response = await fetch(`/history?${query}`);
    if (!response.ok) return;
    for (const [group, history] of Object.entries(await response.json())) state.histories.set(group, history);
    show();
  } catch {
    // The stream is about to break, too; it comes back, and this is tried again.
  } finally {
    missing.forEach((group) => loading.delete(group));
  }
}

function addPoint(point) {
  for (const [group, history] of state.histories) {
    const numbers = point.models[group];
    if (!numbers) {
      state.histories.delete(group);
      continue;
    }
    if (point.at <= history.at[history.at.length - 1]) continue;
    history.at.push(point.at);
    for (const [name, value] of Object.entries(numbers)) history[name].push(value);
    let old = 0;
    while (history.at[old] < point.at - WINDOW_S) old += 1;
    if (old) for (const column of Object.values(history)) column.splice(0, old);
  }
}

const HIDDEN_MS = 60_000;
let stream = null;

/** Whoever is not looked at for a while costs nothing, and leaves the browser its few connections to a host. */
let hiding = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => {
      stream?.close();
      stream = null;
      setText(byId("link"), "paused while hidden");
    }, HIDDEN_MS);
  } else if (!stream) listen();
});

function listen() {
  stream = new EventSource("/events");
  const on = (kind, take) => stream.addEventListener(kind, (event) => take(JSON.parse(event.data)));
  stream.addEventListener("open", () => {
    setText(byId("link"), "live");
    document.body.classList.remove("lost");
    state.histories.clear();
  });
  stream.addEventListener("error", () => {
    setText(byId("link"), "connection lost, trying again");
    document.body.classList.add("lost");
    // A browser gives up for good when the answer is an error, such as that there are too many clients.
    if (stream?.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
  on("status", (status) => {
    state.status = status;
    show();
    loadHistories();
  });
  on("point", (point) => {
    state.point = point;
    state.now = point.at;
    addPoint(point);
    show();
    if (state.status) loadHistories();
  });
  on("events", (message) => view.happened(message));
}

listen();
