// A horizontal norm band: where the value stands between its limits. Grey while normal; the shape says it without colour.
import { h, setData, setHidden } from "./dom.js";
import { limitText } from "./format.js";
import { say } from "./words.js";

// The scale follows from the limits, so that it does not move with the value; where one end is open it also holds what
// was seen when the page was loaded.
export function scaleOf({ limits, unit, value, trend = [] }) {
  const { warning = {}, alarm = {} } = limits;
  const lows = [warning.low, alarm.low].filter(Number.isFinite);
  const highs = [warning.high, alarm.high].filter(Number.isFinite);
  if (lows.length + highs.length === 0) return null;
  const low = Math.min(...lows, ...highs);
  const high = Math.max(...lows, ...highs);
  if (lows.length && highs.length) {
    const margin = (high - low) * 0.18 || Math.abs(high) || 1;
    return [low - margin, high + margin];
  }
  // One side only: zero, or 100 %, is the natural other end.
  const seen = [...trend, value].filter(Number.isFinite);
  const margin = Math.abs(high - low) * 0.6 || Math.abs(highs.length ? high : low) * 0.2 || 1;
  const percent = unit === "%" && low >= 0 && high <= 100;
  if (highs.length) {
    if (percent) return [0, 100];
    return high > 0 ? [Math.min(0, low, ...seen), high + margin] : [Math.min(low - 4 * margin, ...seen), high + margin];
  }
  if (percent) return [0, 100];
  return [low > 0 ? 0 : low - margin, Math.max(low > 0 ? high * 2 : high + 4 * margin, ...seen.map((each) => each + Math.abs(each) * 0.1))];
}

const LEVELS = ["alarm", "warning"];
const SIDES = ["low", "high"];

export function gauge(signal) {
  const scale = scaleOf(signal);
  if (scale === null) {
    return { element: h("div", { class: "gauge empty" }, h("span", {}, say("gauge.none"))), show: () => {} };
  }
  const [from, to] = scale;
  const percent = (value) => Math.min(100, Math.max(0, ((value - from) / (to - from)) * 100));
  const { warning = {}, alarm = {} } = signal.limits;
  const track = h("div", { class: "track" });
  // Alarm zones are the ends of the track, the norm band its solid middle; between them lies the warning zone.
  track.append(zone("tolerated", alarm, percent), zone("norm", Object.keys(warning).length ? warning : alarm, percent));
  for (const level of LEVELS) {
    for (const side of SIDES) {
      const limit = signal.limits[level]?.[side];
      if (Number.isFinite(limit)) track.append(tick(level, side, limit, percent(limit)));
    }
  }
  const pointer = h("div", { class: "pointer" });
  track.append(pointer);
  const element = h("div", { class: "gauge", role: "img" }, track);
  return {
    element,
    show(value, text) {
      setHidden(pointer, value === null);
      if (value !== null) {
        const position = percent(value);
        pointer.style.left = `${position}%`;
        setData(pointer, "beyond", value < from ? "low" : value > to ? "high" : "no");
      }
      element.setAttribute("aria-label", say("gauge.label", { value: text, limits: limitsText(signal.limits) }));
    },
  };
}

function zone(name, band, percent) {
  const left = Number.isFinite(band.low) ? percent(band.low) : 0;
  const right = Number.isFinite(band.high) ? percent(band.high) : 100;
  const element = h("div", { class: `zone ${name}` });
  element.style.left = `${left}%`;
  element.style.width = `${Math.max(0, right - left)}%`;
  return element;
}

function tick(level, side, limit, position) {
  const element = h("div", { class: `limit ${level} ${side}` }, h("span", {}, limitText(limit)));
  element.style.left = `${position}%`;
  return element;
}

export function limitsText(limits) {
  const open = say("limits.open");
  return LEVELS.filter((level) => Object.keys(limits[level] ?? {}).length).reverse().map((level) => {
    const { low, high } = limits[level];
    return say(`limits.${level}`, {
      low: low === undefined ? open : limitText(low), high: high === undefined ? open : limitText(high),
    });
  }).join(", ");
}
