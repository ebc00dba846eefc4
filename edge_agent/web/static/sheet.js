// The inspection sheet: a card for each machine, a row for each signal.
import { h, setData, setHidden, setText } from "./dom.js";
import { clockTime, decimalsFor, limitText, number } from "./format.js";
import { gauge, scaleOf } from "./gauge.js";
import { mark, spoken } from "./marks.js";
import { SAMPLES, trend } from "./trend.js";
import { say, sayOr } from "./words.js";

export const RANK = { alarm: 0, warning: 1, bad: 2, normal: 3, none: 4 };
const OLD_AFTER_S = 10;

// A machine of which nothing comes any more is not readable, whatever its last reading was.
export function isOld(machine, now) {
  const fastest = Math.min(...machine.signals.map((signal) => signal.every));
  return machine.ts !== null && (now - new Date(machine.ts)) / 1000 > 3 * fastest + OLD_AFTER_S;
}

// The verdict of a machine or a signal, never better than `bad` when it is old.
export function verdictOf(judged, old) {
  return old && RANK[judged.verdict] > RANK.bad ? "bad" : judged.verdict;
}

export function worstFirst(a, b) {
  return RANK[verdictOf(a, a.old)] - RANK[verdictOf(b, b.old)] || a.area.localeCompare(b.area) || a.title.localeCompare(b.title);
}

// machine: as in the overview event, kept up to date by the caller. large: the machine's own page.
export function card(machine, large) {
  const rows = machine.signals.map((signal) => row(signal, machine.name));
  const state = h("span", { class: "state" });
  const old = h("p", { class: "old", hidden: true });
  const counts = h("span", { class: "counts" });
  const title = large
    ? h("h1", {}, machine.title)
    : h("h2", {}, h("a", { href: `/machines/${encodeURIComponent(machine.name)}` }, machine.title));
  const place = h("p", { class: "place" }, machine.area && h("span", { class: "area" }, machine.area), state);
  const element = h("article", { class: `card${large ? " large" : ""}`, "data-machine": machine.name },
    h("header", {}, h("div", { class: "name" }, title, place), counts), old, h("ul", { class: "rows" }, rows.map((each) => each.element)));
  let counted = "";
  let warnings = new Map();

  function show(now, warningsById) {
    warnings = warningsById;
    machine.old = isOld(machine, now);
    setData(element, "verdict", verdictOf(machine, machine.old));
    setHidden(old, !machine.old);
    element.classList.toggle("is-old", machine.old);
    if (machine.old) setText(old, say("machine.old", { time: clockTime(machine.ts, now) }));
    setText(state, machine.state ?? "");
    setHidden(state, !machine.state);
    for (const each of rows) each.show(now, warningsById, machine.old);
    const tally = machine.signals.map((signal) => verdictOf(signal, machine.old)).join();
    if (tally !== counted) {
      counted = tally;
      counts.replaceChildren(...countMarks(machine));
    }
  }

  // Time passes without news as well. Returns whether the machine has just become old.
  function tick(now) {
    if (machine.old || !isOld(machine, now)) return false;
    show(now, warnings);
    return true;
  }

  return { element, show, tick };
}

function countMarks({ signals, old }) {
  return ["alarm", "warning", "bad"].flatMap((verdict) => {
    const count = signals.filter((signal) => verdictOf(signal, old) === verdict).length;
    if (count === 0) return [];
    return h("span", { class: `tally ${verdict}` }, mark(verdict), String(count), spoken(` ${say(`count.${verdict}`, { count })}`));
  });
}

function row(signal, machine) {
  const scale = scaleOf(signal);
  const span = scale === null ? null : scale[1] - scale[0];
  const band = gauge(signal);
  const line = trend(scale === null ? null : scale[1] - scale[0]);
  const sign = h("span", { class: "sign" });
  const note = h("span", { class: "note" });
  const figure = h("span", { class: "figure" });
  const unit = h("span", { class: "unit", title: signal.unit }, signal.unit);
  const value = h("span", { class: "value" }, figure, unit);
  const element = h("li", { class: "row", "data-signal": signal.name },
    sign, h("span", { class: "what" }, h("a", { class: "title", href: `/machines/${encodeURIComponent(machine)}/${encodeURIComponent(signal.name)}` }, signal.title), note), line.element, band.element, value);

  function show(now, warningsById, old) {
    const warnings = signal.warnings.map((id) => warningsById.get(id)).filter(Boolean);
    const plain = verdictOf(signal, old);
    const verdict = plain === "normal" && signal.outside ? "pending" : plain;
    if (element.dataset.verdict !== verdict) {
      sign.replaceChildren(mark(verdict), spoken(say(`verdict.${plain}`)));
    }
    setData(element, "verdict", verdict);
    setData(element, "readable", signal.value === null ? "no" : "yes");
    const text = textOf(signal, span);
    setText(figure, text);
    setText(note, noteOf(signal, warnings, now));
    setHidden(note, note.textContent === "");
    band.show(signal.value, `${text} ${signal.unit}`);
    line.show(signal.trend);
  }

  return { element, show };
}

// The value as people read it: by its name where values have names, whole where it is whole and nothing says how fine it is.
export function textOf(signal, span) {
  if (signal.value === null) return "–";
  const named = signal.names?.[String(signal.value)];
  if (named !== undefined) return named;
  if (span === null && Number.isInteger(signal.value)) return number(signal.value, 0);
  return number(signal.value, decimalsFor(span ?? Math.abs(signal.value) * 2));
}

// Why this row is not simply normal, in words.
function noteOf(signal, warnings, now) {
  if (signal.quality !== "good") {
    const what = sayOr(`quality.${signal.quality}`, signal.quality);
    const noted = signal.quality_since ? say("signal.since", { what, time: clockTime(signal.quality_since, now) }) : what;
    const standing = deviationOf(signal, warnings, now);
    return standing ? `${noted}; ${say("signal.stood", { what: standing })}` : noted;
  }
  const standing = deviationOf(signal, warnings, now);
  if (standing) return standing;
  return signal.outside ? say("signal.pending") : "";
}

function deviationOf(signal, warnings, now) {
  const warning = warnings.find(({ kind, state }) => ["high", "low"].includes(kind) && ["unacknowledged", "acknowledged"].includes(state));
  if (!warning || typeof warning.limit !== "number") return "";
  const where = warning.kind === "high" ? "above" : "below";
  const what = say(`signal.${where}.${warning.severity}`, { limit: `${limitText(warning.limit)} ${signal.unit}`.trim() });
  return say("signal.since", { what, time: clockTime(warning.since, now) });
}

// A new sample when its time has come, so that the line has the same pace as the one the agent sent first.
export function sample(machine) {
  const ts = new Date(machine.ts).getTime();
  const every = Math.max(1, Math.min(...machine.signals.map((signal) => signal.every))) * 1000;
  if (ts < machine.sampledAt + every * 0.9 && ts >= machine.sampledAt) return;
  machine.sampledAt = ts;
  for (const signal of machine.signals) {
    signal.trend.push(signal.value);
    if (signal.trend.length > SAMPLES) signal.trend.shift();
  }
}
