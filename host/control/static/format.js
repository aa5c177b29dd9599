// Numbers and times as people read them. Unknown (null) is an en dash.

export const NONE = "\u2013";
const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dateAndClock = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** Three digits that matter: 0.42, 4.20, 42.0, 420, 4,200. */
export function number(value) {
  if (value == null) return NONE;
  if (value === 0) return "0";
  if (value >= 100) return whole.format(value);
  return value.toFixed(value >= 10 ? 1 : 2);
}

export const count = (value) => (value == null ? NONE : whole.format(value));
export const milliseconds = (seconds) => (seconds == null ? NONE : number(seconds * 1000));
export const percent = (share) => (share == null ? NONE : `${Math.round(share * 100)} %`);
export const mebibytes = (bytes) => (bytes == null ? NONE : `${whole.format(bytes / 1048576)} MiB`);
export const time = (at) => clock.format(new Date(at * 1000));
export const dateTime = (at) => dateAndClock.format(new Date(at * 1000));

/** How long, in its two largest units. */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function ago(at) {
  const s = Date.now() / 1000 - at;
  return s < 5 ? "just now" : `${duration(s).replace(/ (\d+ s|\d+ min|\d+ h)$/, "")} ago`;
}

export const shape = (dims) => `[${dims.join(", ")}]`;

const TOKENS = /"(?:[^"\\]|\\.)*"|[[\]{}:,]|[^\s[\]{}:,"]+/g;
const FLAT_MAX_CHARS = 96;

/**
 * JSON that can be read: what fits stands on one line, lists of plain values too. It goes by the text and not by values,
 * because numbers here lose digits (integers of 64 bits) and the ".0" that tells what they are. Text that is no JSON stays as it is.
 */
export function pretty(text) {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  const tokens = text.match(TOKENS);
  let place = 0;
  const read = () => {
    const token = tokens[place++];
    if (token !== "[" && token !== "{") return token;
    const items = [];
    while (!"]}".includes(tokens[place])) {
      const key = token === "{" ? `${tokens[place]}: ` : "";
      if (key) place += 2;
      items.push([key, read()]);
      if (tokens[place] === ",") place += 1;
    }
    place += 1;
    return { open: token, close: token === "{" ? "}" : "]", items };
  };
  const flat = (node) => (typeof node === "string" ? node : node.open + node.items.map(([key, one]) => key + flat(one)).join(", ") + node.close);
  const write = (node, indent) => {
    if (typeof node === "string") return node;
    const line = flat(node);
    const plain = node.open === "[" && node.items.every(([, one]) => typeof one === "string");
    if (plain || line.length + indent.length <= FLAT_MAX_CHARS) return line;
    const inner = `${indent}  `;
    return `${node.open}\n${node.items.map(([key, one]) => inner + key + write(one, inner)).join(",\n")}\n${indent}${node.close}`;
  };
  return write(read(), "");
}
