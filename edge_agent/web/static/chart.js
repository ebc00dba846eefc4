// A chart of one signal over a period: the norm as a band, the readings as a line with their range, what is missing as a gap.
import { svg } from "./dom.js";
import { decimalsFor, limitText, number, offsetAt, timeText } from "./format.js";

const SIDE = 64;
const RIGHT = 14;
const TOP = 14;
const FOOT = 30;
const LANE = 16;
const MINUTE = 60e3;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
// As many characters as stand beside the plot.
const NAME_MAX = 8;
const STEPS = [1e3, 5e3, 10e3, 30e3, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR];

// found: the answer of the API. fit: the scale follows the readings, not the limits. width, height: of the whole, in pixels.
// names: by value, where values have names.
export function draw(found, { fit, width, height, names = {} }) {
  const from = Date.parse(found.from);
  const to = Date.parse(found.to);
  const scale = scaleOf(found, fit, Object.keys(names).map(Number));
  const plot = { left: SIDE, right: width - RIGHT, top: TOP + LANE, bottom: height - FOOT };
  const x = (ms) => plot.left + ((Math.min(to, Math.max(from, ms)) - from) / (to - from)) * (plot.right - plot.left);
  const y = (value) => plot.bottom - ((Math.min(scale.high, Math.max(scale.low, value)) - scale.low) / (scale.high - scale.low)) * (plot.bottom - plot.top);
  const step = found.step * 1000;
  const begin = Date.parse(found.begin);
  const at = (index) => begin + (index + 0.5) * step;
  const clip = `plot-${Math.round(width)}`;
  const cursor = svg("g", { class: "cursor", visibility: "hidden" },
    svg("line", { y1: plot.top - LANE, y2: plot.bottom }), svg("circle", { r: 4.5 }));
  const [line, dot] = cursor.children;
  const element = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    svg("defs", {},
      svg("clipPath", { id: clip }, svg("rect", { x: plot.left, y: plot.top - 2, width: plot.right - plot.left, height: plot.bottom - plot.top + 4 })),
      svg("pattern", { id: "unread", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { class: "hatch", width: 4, height: 8 }))),
    svg("rect", { class: "ground", x: plot.left, y: plot.top, width: plot.right - plot.left, height: plot.bottom - plot.top }),
    svg("g", { "clip-path": `url(#${clip})` }, bands(found.limits, scale, plot, y), gaps(found, x, plot, begin, step)),
    grid(scale, names, from, to, plot, x, y),
    svg("g", { "clip-path": `url(#${clip})` }, lines(found, at, x, y)),
    limits(found.limits, scale, plot, y), warnings(found.warnings, from, to, x, plot), cursor);
  return {
    element,
    plot,
    // The bucket at this place, or the nearest that there is.
    index: (pixel) => {
      const ms = from + ((pixel - plot.left) / (plot.right - plot.left)) * (to - from);
      return Math.min(found.count.length - 1, Math.max(0, Math.floor((ms - begin) / step)));
    },
    ms: (pixel) => from + ((Math.min(plot.right, Math.max(plot.left, pixel)) - plot.left) / (plot.right - plot.left)) * (to - from),
    x: (index) => x(at(index)),
    point: (index) => {
      cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
      if (index === null) return;
      line.setAttribute("x1", x(at(index)));
      line.setAttribute("x2", x(at(index)));
      const value = found.mean[index];
      dot.setAttribute("visibility", value === null ? "hidden" : "inherit");
      if (value !== null) {
        dot.setAttribute("cx", x(at(index)));
        dot.setAttribute("cy", y(value));
      }
    },
  };
}

// -- scale ---------------------------------------------------------------------------------------------------------

function scaleOf({ low, high, limits, before }, fit, named) {
  const seen = [...low, ...high, before].filter(Number.isFinite);
  const set = fit && seen.length ? [] : Object.values(limits).flatMap((band) => [band.low, band.high]).filter(Number.isFinite);
  const all = [...seen, ...set, ...named];
  if (all.length === 0) return { low: 0, high: 1 };
  const bottom = all.reduce((a, b) => Math.min(a, b));
  const top = all.reduce((a, b) => Math.max(a, b));
  const margin = (top - bottom) * 0.08 || Math.abs(top) * 0.05 || 1;
  return { low: bottom - margin, high: top + margin };
}

function roundSteps(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high; index += 1) found.push(index * step);
  return { step, found };
}

// Where the axis says what time it is: whole hours, days and months of the agent's own zone.
export function times(from, to, most) {
  const length = to - from;
  const step = STEPS.find((each) => length / each <= most);
  if (step) {
    const first = Math.ceil((from + offsetAt(from)) / step) * step;
    const found = [];
    for (let wall = first; found.length <= most + 1; wall += step) {
      const ms = wall - offsetAt(wall - offsetAt(from));
      if (ms > to) break;
      // The hour that a clock skips in spring is no place of its own.
      if (found.length === 0 || ms > found.at(-1).ms) found.push({ ms, text: clock(ms, step, length) });
    }
    return found;
  }
  return days(from, to, most);
}

function clock(ms, step, length) {
  const midnight = (ms + offsetAt(ms)) % DAY === 0;
  if (midnight && length > 12 * HOUR) return timeText(ms, { weekday: "short", day: "numeric", month: "short" });
  return timeText(ms, step < MINUTE ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { hour: "2-digit", minute: "2-digit" });
}

function days(from, to, most) {
  const count = (to - from) / DAY;
  const every = [1, 2, 7].find((each) => count / each <= most);
  const months = [1, 2, 3, 6, 12].find((each) => count / 30.4 / each <= most) ?? 24;
  const found = [];
  for (let wall = Math.ceil((from + offsetAt(from)) / DAY) * DAY; ; wall += DAY) {
    const ms = wall - offsetAt(wall - offsetAt(from));
    if (ms > to) return found;
    const day = new Date(wall);
    const fits = every === 7 ? day.getUTCDay() === 1
      : every ? Math.round(wall / DAY) % every === 0
      : day.getUTCDate() === 1 && (day.getUTCFullYear() * 12 + day.getUTCMonth()) % months === 0;
    if (!fits) continue;
    const text = every ? { day: "numeric", month: "short" } : months >= 12 ? { year: "numeric" }
      : day.getUTCMonth() === 0 ? { month: "short", year: "numeric" } : { month: "short" };
    found.push({ ms, text: timeText(ms, text) });
  }
}

// -- pieces --------------------------------------------------------------------------------------------------------

// Where the axis says what a value is: at round ones, or at those that have names.
function values(scale, names, most) {
  const named = Object.entries(names).map(([value, name]) => ({ value: Number(value), name }));
  if (named.length) {
    return named.map(({ value, name }) => name.length > NAME_MAX ? { value, text: `${name.slice(0, NAME_MAX - 1)}…`, whole: name } : { value, text: name, whole: null });
  }
  const { found, step } = roundSteps(scale.low, scale.high, most);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return found.map((value) => ({ value, text: number(value, decimals), whole: null }));
}

function grid(scale, names, from, to, plot, x, y) {
  const levels = values(scale, names, Math.max(3, Math.floor((plot.bottom - plot.top) / 56))).map(({ value, text, whole }) => [
    svg("line", { class: "rule", x1: plot.left, x2: plot.right, y1: y(value), y2: y(value) }),
    svg("text", { class: "scale", x: plot.left - 8, y: y(value) + 4, "text-anchor": "end" }, text, whole !== null && svg("title", {}, whole)),
  ]);
  const most = Math.max(2, Math.floor((plot.right - plot.left) / 92));
  const stamps = times(from, to, most).map(({ ms, text }) => [
    svg("line", { class: "rule", x1: x(ms), x2: x(ms), y1: plot.top, y2: plot.bottom + 5 }),
    x(ms) < plot.right - 22 && x(ms) > plot.left + 8 && svg("text", { class: "scale", x: x(ms), y: plot.bottom + 20, "text-anchor": "middle" }, text),
  ]);
  return svg("g", {}, levels.flat(), stamps.flat());
}

function bands({ warning = {}, alarm = {} }, scale, plot, y) {
  const norm = Object.keys(warning).length ? warning : alarm;
  return [["tolerated", alarm], ["norm", norm]].filter(([, band]) => Object.keys(band).length).map(([name, band]) => {
    const top = y(band.high ?? scale.high);
    const bottom = y(band.low ?? scale.low);
    return svg("rect", { class: name, x: plot.left, width: plot.right - plot.left, y: top, height: Math.max(0, bottom - top) });
  });
}

function limits(all, scale, plot, y) {
  const made = [];
  for (const level of ["alarm", "warning"]) {
    for (const side of ["low", "high"]) {
      const limit = all[level]?.[side];
      if (!Number.isFinite(limit) || limit < scale.low || limit > scale.high) continue;
      made.push(svg("line", { class: `edge ${level}`, x1: plot.left, x2: plot.right, y1: y(limit), y2: y(limit) }));
      made.push(svg("text", { class: `edge ${level}`, x: plot.right - 6, y: y(limit) + (side === "high" ? -5 : 14), "text-anchor": "end" }, limitText(limit)));
    }
  }
  return svg("g", {}, made);
}

// Where rows came and none of them could be read.
function gaps({ count, bad }, x, plot, begin, step) {
  const made = [];
  let since = null;
  for (let index = 0; index <= count.length; index += 1) {
    const gone = index < count.length && count[index] === 0 && bad[index] > 0;
    if (gone && since === null) since = index;
    if (!gone && since !== null) {
      const left = x(begin + since * step);
      made.push(svg("rect", { class: "unread", x: left, y: plot.top, width: Math.max(1.5, x(begin + index * step) - left), height: plot.bottom - plot.top, fill: "url(#unread)" }));
      since = null;
    }
  }
  return made;
}

// One run for each stretch of readings. Where the agent says that a value held, it is drawn on (dashed); where it does not,
// and readings are further apart than their period, there is a gap.
function lines(found, at, x, y) {
  const { count, held, low, high, mean, every, step, before } = found;
  const near = Math.max(1, Math.ceil((2.5 * every) / step));
  const place = (index) => `${x(at(index)).toFixed(1)} ${y(mean[index]).toFixed(1)}`;
  const runs = [];
  const stood = [];
  let value = before;
  let since = 0;
  let whole = true;
  let last = -1;
  let reach = -1;
  // The value that stands is drawn on as far as it held, and up to the next reading where it held all the way.
  const stand = (until, next) => {
    if (value === null || until <= since || until - last < near) return;
    const rise = next === null ? "" : `V${y(next).toFixed(1)}`;
    stood.push(`M${x(at(since)).toFixed(1)} ${y(value).toFixed(1)}H${x(at(until)).toFixed(1)}${rise}`);
  };
  for (let index = 0; index < count.length; index += 1) {
    if (count[index] === 0) {
      whole &&= held[index];
      if (whole) reach = index;
      continue;
    }
    const apart = last < 0 || index - last > near;
    if (apart || !(whole || found.bad.slice(last + 1, index).every((bad) => bad === 0))) runs.push([]);
    if (apart) stand(whole ? index : reach, whole ? mean[index] : null);
    runs.at(-1).push(index);
    value = mean[index];
    since = last = reach = index;
    whole = true;
  }
  stand(reach, null);
  const wide = runs.map((each) => `M${each.map((i) => `${x(at(i)).toFixed(1)} ${y(high[i]).toFixed(1)}`).join("L")}L${each.toReversed().map((i) => `${x(at(i)).toFixed(1)} ${y(low[i]).toFixed(1)}`).join("L")}Z`);
  const thin = runs.map((each) => `M${each.map(place).join("L")}${each.length === 1 ? "h0.01" : ""}`);
  return [
    svg("path", { class: "range", d: wide.join("") }), svg("path", { class: "held", d: stood.join("") }),
    svg("path", { class: "mean", d: thin.join("") }),
  ];
}

// A lane above the plot: from when to when a warning stood, with its sign where there is room.
function warnings(all, from, to, x, plot) {
  const made = [];
  for (const { id, severity, kind, from: since, to: until } of all) {
    const left = x(Date.parse(since));
    const right = x(until === null ? to : Date.parse(until));
    const name = ["stale", "health"].includes(kind) ? "bad" : severity;
    const width = Math.max(3, right - left);
    made.push(svg("rect", { class: `wash ${name}`, x: left, y: plot.top, width, height: plot.bottom - plot.top }));
    made.push(svg("rect", { class: `span ${name}`, "data-warning": id, x: left, y: plot.top - LANE, width, height: LANE - 4, rx: 2 }));
  }
  return svg("g", { class: "warned" }, made);
}

export function valueText(value, found, names = {}) {
  if (value === null) return "–";
  if (names[String(value)] !== undefined) return names[String(value)];
  const all = [...found.low, ...found.high].filter(Number.isFinite);
  const span = all.length ? Math.max(...all) - Math.min(...all) : 0;
  return `${number(value, decimalsFor(span || Math.abs(value) * 2))} ${found.unit}`.trim();
}
