// The page of one signal: its trend over any period, read from the agent's history, with its norm and its warnings.
import { draw, valueText } from "./chart.js";
import { h, setData, setHidden, setText } from "./dom.js";
import { duration, offsetAt, timeText } from "./format.js";
import { scaleOf } from "./gauge.js";
import { mark, spoken } from "./marks.js";
import { isOld, textOf, verdictOf } from "./sheet.js";
import { say } from "./words.js";

const HOUR = 3_600e3;
const DAY = 24 * HOUR;
const PERIODS = { hour: HOUR, day: DAY, week: 7 * DAY, month: 30 * DAY, year: 365 * DAY };
// What is shown first of an agent that has not watched for a day yet: the shortest that has all of it.
const FIRST = [600e3, HOUR];
const SHORTEST = 10e3;
const LONGEST = 3_700 * DAY;
const AGAIN_MIN = 5e3;
const DRAG_MIN = 12;
const STAMP = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" };

// machine: as in the overview event, undefined when it has gone. now: the agent's clock.
export function signalView(machine, name, now) {
  const signal = machine?.signals.find((each) => each.name === name);
  const back = h("a", { class: "back", href: machine ? `/machines/${encodeURIComponent(machine.name)}` : "/" }, "‹ ", machine?.title ?? say("machine.back"));
  if (!signal) return { elements: [back, h("p", { class: "calm" }, say("machine.gone"))], show() {}, tick() {} };

  const names = signal.names ?? {};
  // A period that ends now follows the clock; another stays where it is.
  let length = DAY;
  let end = null;
  let chose = false;
  let fit = false;
  let found = null;
  let chart = null;
  let at = null;
  let asked = 0;
  let due = 0;

  const head = headOf(signal, machine);
  const choices = Object.entries(PERIODS).map(([key, its]) => h("button", { type: "button", class: "button", "data-period": key, onclick: () => go(its, end) }, say(`trend.${key}`)));
  const later = action("trend.later", "›", () => move(0.5));
  const fitted = h("button", { type: "button", class: "button", "aria-pressed": "false", onclick: () => { fit = !fit; fitted.setAttribute("aria-pressed", String(fit)); redraw(); } }, say("trend.fit"));
  const live = h("button", { type: "button", class: "button", onclick: () => go(length, null) }, say("trend.now"));
  const begin = stampInput("trend.from");
  const until = stampInput("trend.to");
  const wrong = h("p", { class: "failure", role: "alert", hidden: true }, say("trend.wrong"));
  const form = h("form", { class: "stamps" }, begin.element, until.element, h("button", { type: "submit", class: "button" }, say("trend.show")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [a, b] = [begin.ms(), until.ms()];
    const fits = a < b && a < now().getTime();
    setHidden(wrong, fits);
    if (fits) go(b - a, b);
  });
  const tools = h("div", { class: "tools" },
    h("div", { class: "choice", role: "group", "aria-label": say("trend.period") }, choices),
    h("div", { class: "choice" }, action("trend.earlier", "‹", () => move(-0.5)), later, action("trend.farther", "−", () => zoom(2)), action("trend.nearer", "+", () => zoom(0.5)), live, fitted),
    form);
  const readout = h("p", { class: "readout" });
  const legend = h("p", { class: "legend" });
  const box = h("div", { class: "chart", tabindex: "0", role: "group" });
  const trouble = h("p", { class: "failure", role: "alert", hidden: true });
  const list = h("ol", { class: "past" });
  const none = h("p", { class: "calm" }, say("trend.warnings.none"));
  const more = h("p", { class: "calm", hidden: true }, say("trend.warnings.more"));
  const sheet = h("article", { class: "card past-card" }, head.element, tools, wrong, readout, box, legend, trouble);
  // Shown when the history has said what there was: what could not be read is no calm.
  const told = h("section", { "aria-label": say("trend.warnings"), hidden: true }, h("h2", {}, say("trend.warnings")), more, list, none);

  function action(word, sign, act) {
    return h("button", { type: "button", class: "button", title: say(word), onclick: act }, h("span", { "aria-hidden": "true" }, sign), spoken(say(word)));
  }

  // -- which period ------------------------------------------------------------------------------------------------

  function last() { return end ?? now().getTime(); }

  function go(wantedLength, wantedEnd) {
    chose = true;
    length = Math.min(LONGEST, Math.max(SHORTEST, wantedLength));
    end = wantedEnd !== null && wantedEnd < now().getTime() ? wantedEnd : null;
    at = null;
    remember();
    mirror();
    ask();
  }

  function move(share) { go(length, last() + share * length); }

  function zoom(share) {
    const middle = at === null || chart === null ? last() - length / 2 : Date.parse(found.begin) + (at + 0.5) * found.step * 1000;
    const follows = end === null && at === null;
    go(length * share, follows ? null : middle + (length * share) / 2);
  }

  function remember() {
    const key = Object.keys(PERIODS).find((each) => PERIODS[each] === length);
    const query = new URLSearchParams(end === null && key ? { period: key } : { from: new Date(last() - length).toISOString(), ...(end === null ? {} : { to: new Date(end).toISOString() }) });
    history.replaceState(null, "", `?${query}`);
  }

  function recall() {
    const query = new URLSearchParams(location.search);
    const [a, b] = ["from", "to"].map((key) => Date.parse(query.get(key)));
    chose = location.search !== "";
    length = PERIODS[query.get("period")] ?? DAY;
    if (a < (b || now().getTime())) {
      length = Math.min(LONGEST, Math.max(SHORTEST, (b || now().getTime()) - a));
      end = b < now().getTime() ? b : null;
    }
    mirror();
  }

  function mirror() {
    for (const choice of choices) choice.setAttribute("aria-pressed", String(PERIODS[choice.dataset.period] === length));
    later.disabled = live.disabled = end === null;
    if (!form.contains(document.activeElement)) {
      begin.show(last() - length);
      until.show(last());
    }
  }

  // -- reading -----------------------------------------------------------------------------------------------------

  async function ask() {
    const mine = asked += 1;
    setData(box, "loading", "yes");
    const to = last();
    const query = new URLSearchParams({ from: new Date(to - length).toISOString(), to: new Date(to).toISOString(), points: String(pointsOf(box.clientWidth)) });
    const path = `/api/v1/machines/${encodeURIComponent(machine.name)}/signals/${encodeURIComponent(signal.name)}/trend?${query}`;
    let answer = null;
    let text = "";
    try {
      const reply = await fetch(path, { signal: AbortSignal.timeout(20_000) });
      if (reply.ok) answer = await reply.json();
      else text = (await reply.json()).error;
    } catch {
      text = say("acknowledge.unreachable");
    }
    if (mine !== asked) return;
    due = Date.now() + Math.max(AGAIN_MIN, length / pointsOf(box.clientWidth));
    setData(box, "loading", "no");
    setHidden(trouble, answer !== null);
    setHidden(box, answer === null && found === null);
    if (answer === null) {
      setText(trouble, say("trend.failed", { text }));
      return;
    }
    if (!chose && begins(answer)) return;
    found = answer;
    redraw();
    tell();
  }

  // Whether a shorter period is asked for, since nobody has chosen one and the day would be empty but for its last minutes.
  function begins(answer) {
    chose = true;
    const first = answer.count.findIndex((count, index) => count > 0 || answer.bad[index] > 0);
    const age = now().getTime() - Date.parse(answer.begin) - (first + 1) * answer.step * 1000;
    const fits = first < 0 ? undefined : FIRST.find((each) => age < each);
    if (fits === undefined) return false;
    length = fits;
    mirror();
    ask();
    return true;
  }

  function redraw() {
    if (found === null || box.clientWidth === 0) return;
    const width = box.clientWidth;
    chart = draw(found, { fit, names, width, height: width < 600 ? 300 : Math.round(Math.min(460, Math.max(340, width * 0.36))) });
    box.replaceChildren(chart.element);
    const some = found.count.some((count) => count > 0) || found.held.some(Boolean);
    if (!some) box.append(h("p", { class: "nothing" }, say("trend.none")));
    if (at !== null && at >= found.count.length) at = null;
    chart.point(at);
    read();
    box.setAttribute("aria-label", say("trend.chart", { title: signal.title, from: timeText(Date.parse(found.from), STAMP), to: timeText(Date.parse(found.to), STAMP), summary: summary() }));
    legend.replaceChildren(
      key("mean", say("trend.mean")), key("range", say("trend.range")), found.held.some(Boolean) ? key("held", say("trend.held")) : "", signal.normed ? key("norm", say("trend.norm")) : "", key("unread", say("trend.unread")),
      h("span", { class: "about" }, `${say("trend.step", { step: duration(found.step) })}${signal.normed ? `. ${say("trend.limits")}` : ""}`));
  }

  function key(name, text) { return h("span", { class: "key" }, h("i", { class: name }), text); }

  function summary() {
    const counted = found.count.reduce((a, b) => a + b, 0);
    if (counted === 0) return say("trend.none");
    const total = found.mean.reduce((sum, value, index) => sum + (value === null ? 0 : value * found.count[index]), 0);
    const low = Math.min(...found.low.filter(Number.isFinite));
    const high = Math.max(...found.high.filter(Number.isFinite));
    // A mean of states has no name, and says nothing.
    const figures = signal.names ? valuesBetween(low, high) : say("trend.summary", { low: valueText(low, found), mean: valueText(total / counted, found), high: valueText(high, found) });
    return [figures, ...counts(counted, found.bad.reduce((a, b) => a + b, 0))].join(" · ");
  }

  function valuesBetween(low, high) { return low === high ? valueText(low, found, names) : `${valueText(low, found, names)} … ${valueText(high, found, names)}`; }

  function counts(readings, bad) {
    return [say("trend.readings", { count: readings }), ...(bad ? [say("trend.bad", { count: bad })] : [])];
  }

  // What stands at the cursor, or of the whole period.
  function read() {
    if (found === null) return;
    // What follows the clock by itself is not read aloud; what somebody points at is.
    readout.setAttribute("aria-live", at === null ? "off" : "polite");
    if (at === null) {
      readout.replaceChildren(summary());
      return;
    }
    const begins = Date.parse(found.begin) + at * found.step * 1000;
    const count = found.count[at];
    const several = count > 1 && found.low[at] !== found.high[at];
    const figure = () => (signal.names && several ? valuesBetween(found.low[at], found.high[at])
      : `${valueText(found.mean[at], found, names)}${several ? ` (${valuesBetween(found.low[at], found.high[at])})` : ""}`);
    const value = count ? figure() : say(found.bad[at] ? "trend.unread" : found.held[at] ? "trend.held" : "trend.empty");
    readout.replaceChildren(h("time", {}, timeText(begins, STAMP)), " ", h("strong", {}, value), " ", h("span", {}, counts(count, found.bad[at]).join(" · ")));
  }

  function tell() {
    const rows = found.warnings.toReversed();
    setHidden(told, false);
    setHidden(more, found.warnings_whole);
    setHidden(none, rows.length > 0);
    list.replaceChildren(...rows.map((warning) => {
      const verdict = ["stale", "health"].includes(warning.kind) ? "bad" : warning.severity;
      const from = timeText(Date.parse(warning.from), STAMP);
      const when = warning.to === null ? say("trend.stands", { from }) : say("trend.until", { from, to: timeText(Date.parse(warning.to), STAMP) });
      return h("li", {}, h("span", { class: "sign" }, mark(verdict, warning.to !== null), spoken(say(`verdict.${verdict}`))), h("span", { class: "message" }, warning.message), h("span", { class: "when" }, when));
    }));
  }

  // -- pointing ----------------------------------------------------------------------------------------------------

  function pointAt(index) {
    if (chart === null) return;
    at = index;
    chart.point(at);
    read();
  }

  let pressed = null;
  const chosen = h("div", { class: "chosen", hidden: true });

  function pixel(event) { return event.clientX - box.getBoundingClientRect().left; }

  box.addEventListener("pointerdown", (event) => {
    if (chart === null || event.button !== 0) return;
    pressed = event.pointerType === "mouse" ? pixel(event) : null;
    pointAt(chart.index(pixel(event)));
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    if (chart === null || (event.pointerType !== "mouse" && !box.hasPointerCapture(event.pointerId))) return;
    pointAt(chart.index(pixel(event)));
    if (pressed === null) return;
    box.append(chosen);
    setHidden(chosen, Math.abs(pixel(event) - pressed) < DRAG_MIN);
    chosen.style.left = `${Math.min(pressed, pixel(event))}px`;
    chosen.style.width = `${Math.abs(pixel(event) - pressed)}px`;
  });
  box.addEventListener("pointerup", (event) => {
    const first = pressed;
    pressed = null;
    setHidden(chosen, true);
    if (chart === null || first === null || Math.abs(pixel(event) - first) < DRAG_MIN) return;
    const [a, b] = [chart.ms(first), chart.ms(pixel(event))].sort((one, other) => one - other);
    go(b - a, b);
  });
  box.addEventListener("pointercancel", () => { pressed = null; setHidden(chosen, true); });
  box.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && pressed === null && document.activeElement !== box) pointAt(null); });
  box.addEventListener("keydown", (event) => {
    if (found === null || event.ctrlKey || event.altKey || event.metaKey) return;
    const count = found.count.length;
    const here = at ?? count - 1;
    const by = event.shiftKey ? 10 : 1;
    const acts = {
      ArrowLeft: () => pointAt(Math.max(0, here - by)), ArrowRight: () => pointAt(Math.min(count - 1, here + by)),
      Home: () => pointAt(0), End: () => pointAt(count - 1), Escape: () => pointAt(null), PageUp: () => move(-0.5), PageDown: () => move(0.5),
      "+": () => zoom(0.5), "-": () => zoom(2),
    };
    if (!(event.key in acts)) return;
    event.preventDefault();
    acts[event.key]();
  });
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth === width) return;
    width = box.clientWidth;
    redraw();
  }).observe(box);

  return {
    elements: [back, sheet, told],
    placed() {
      recall();
      ask();
    },
    show(message) {
      const fresh = (message.whole ?? []).find((whole) => whole.machine.name === machine.name);
      if (fresh) location.reload();
      head.show(now());
    },
    tick() {
      head.show(now());
      if (end === null && Date.now() >= due && asked > 0 && box.dataset.loading === "no" && !document.hidden && at === null) {
        mirror();
        ask();
      }
    },
  };
}

function pointsOf(width) { return Math.min(1200, Math.max(120, Math.round((width || 600) / 2))); }

// The name of the signal and what it is now, as on the machine's sheet.
function headOf(signal, machine) {
  const sign = h("span", { class: "sign" });
  const figure = h("span", { class: "figure" });
  const unit = h("span", { class: "unit" }, signal.unit);
  const value = h("span", { class: "value" }, figure, unit);
  const element = h("header", { class: "row head", "data-signal": signal.name }, sign, h("div", { class: "name" }, h("h1", {}, signal.title), h("p", { class: "place" }, machine.title)), value);
  const scale = scaleOf(signal);
  return {
    element,
    show(now) {
      const verdict = verdictOf(signal, isOld(machine, now));
      if (element.dataset.verdict !== verdict) sign.replaceChildren(mark(verdict), spoken(say(`verdict.${verdict}`)));
      setData(element, "verdict", verdict);
      setText(figure, textOf(signal, scale === null ? null : scale[1] - scale[0]));
    },
  };
}

// A date and a time in the agent's zone, whatever zone the panel is in.
function stampInput(word) {
  const input = h("input", { type: "datetime-local", required: true });
  return {
    element: h("label", {}, h("span", {}, say(word)), input),
    ms() {
      const wall = Date.parse(`${input.value}Z`);
      return wall - offsetAt(wall - offsetAt(wall));
    },
    show(ms) { input.value = new Date(ms + offsetAt(ms)).toISOString().slice(0, 16); },
  };
}
