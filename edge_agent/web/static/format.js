// Numbers and times for people. Times are shown in the agent's time zone, which is where the machines stand.
import { locale } from "./words.js";

let zone;

export function useZone(name) {
  try {
    new Intl.DateTimeFormat("en-GB", { timeZone: name });
    zone = name;
  } catch {
    zone = undefined;
  }
}

const formatters = new Map();

function formatter(options) {
  const key = JSON.stringify([locale(), zone, options]);
  if (!formatters.has(key)) formatters.set(key, new Intl.DateTimeFormat(locale(), { timeZone: zone, hourCycle: "h23", ...options }));
  return formatters.get(key);
}

const DAY = { year: "numeric", month: "2-digit", day: "2-digit" };

// "15:02:11", with the date before it when it is not today.
export function clockTime(iso, now) {
  const instant = new Date(iso);
  if (Number.isNaN(instant.getTime())) return "–";
  const time = formatter({ hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(instant);
  const sameDay = formatter(DAY).format(instant) === formatter(DAY).format(now);
  return sameDay ? time : `${formatter({ day: "numeric", month: "short" }).format(instant)} ${time}`;
}

// How far the agent's clock is ahead of UTC then, in milliseconds.
export function offsetAt(ms) {
  const parts = Object.fromEntries(formatter({ ...DAY, hour: "2-digit", minute: "2-digit", second: "2-digit" })
    .formatToParts(new Date(ms)).map(({ type, value }) => [type, Number(value)]));
  const wall = Date.UTC(parts.year, parts.month - 1, parts.day, parts.hour, parts.minute, parts.second);
  return wall - Math.floor(ms / 1000) * 1000;
}

// A time for the axis or the readout, with as much of it as is wanted.
export function timeText(ms, options) {
  return formatter(options).format(new Date(ms));
}

export function duration(seconds) {
  const [unit, size] = STEPS.find(([, length]) => seconds >= length && seconds % length === 0) ?? STEPS[3];
  return new Intl.NumberFormat(locale(), { style: "unit", unit, unitDisplay: "long" }).format(seconds / size);
}

const STEPS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

// "3 minutes ago"
export function ago(iso, now) {
  const seconds = Math.max(0, Math.round((now - new Date(iso)) / 1000));
  if (Number.isNaN(seconds)) return "";
  const [unit, size] = STEPS.find(([, length]) => seconds >= length) ?? STEPS[3];
  return new Intl.RelativeTimeFormat(locale(), { numeric: "always" }).format(-Math.floor(seconds / size), unit);
}

// As many decimals as make three or four digits of this span: a display that does not jump about.
export function decimalsFor(span) {
  if (!(span > 0)) return 2;
  return Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(span))));
}

const numbers = new Map();

const DIGITS_MAX = 6;

// With this many decimals, fewer when it would become long; what does not fit at all is written as 1.23e+8.
export function number(value, wanted) {
  const size = Math.abs(value);
  if (size >= 1e7 || (value !== 0 && size < 1e-6)) return value.toExponential(2);
  const decimals = Math.min(wanted, Math.max(0, DIGITS_MAX - Math.max(1, Math.ceil(Math.log10(size + 1)))));
  const key = `${locale()} ${decimals}`;
  if (!numbers.has(key)) {
    numbers.set(key, new Intl.NumberFormat(locale(), {
      minimumFractionDigits: decimals, maximumFractionDigits: decimals, useGrouping: false,
    }));
  }
  return numbers.get(key).format(value).replace(/^-(0(?:[.,]0*)?)$/, "$1");
}

// A limit as it was written, without trailing zeros.
export function limitText(value) {
  return new Intl.NumberFormat(locale(), { maximumSignificantDigits: 8, useGrouping: false }).format(value);
}
