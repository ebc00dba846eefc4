// The page: keeps what the agent sends, shows it, and says so at once when nothing comes any more.
import { h, setData, setHidden, setText } from "./dom.js";
import { clockTime, useZone } from "./format.js";
import { connect } from "./live.js";
import { signalView } from "./past.js";
import { mark, spoken } from "./marks.js";
import { card, sample, verdictOf, worstFirst } from "./sheet.js";
import { activeList, pastList } from "./warnings.js";
import { say, sayOr, speak } from "./words.js";

const MANY = 12;
const VERDICTS = ["alarm", "warning", "bad", "normal", "none"];
const WIDE = matchMedia("(min-width: 900px)");
const VERY_WIDE = matchMedia("(min-width: 1900px)");

const boot = document.documentElement.dataset.boot;
const [, place, wanted, part] = location.pathname.split("/").map(decodeURIComponent);
const known = { machines: new Map(), warnings: [], events: [], status: {}, health: {}, config_errors: [], heard: null, ahead: 0 };
// What `begin` and the machines after it have brought so far; shown when `ready` says that it is everything.
let coming = null;
let view = null;

// An open dialog stands beside it and outlives a rebuilt page.
const root = h("div", { class: "page" });
document.body.append(root);

// The agent's clock, as of the last message: a panel's own clock is often wrong.
function now() {
  return new Date(Date.now() + known.ahead);
}

function titleOf(name) {
  return known.machines.get(name)?.title ?? null;
}

function hear(name, message) {
  if (message.boot !== boot) {
    location.reload();
    return;
  }
  known.ahead = new Date(message.now) - Date.now();
  known.heard = message.now;
  setData(document.body, "live", "yes");
  switch (name) {
    case "begin": coming = { head: message, machines: new Map() }; return;
    case "machine": coming?.machines.set(message.machine.name, arrived(message)); return;
    case "ready": if (coming !== null) begin(); break;
    case "update": update(message); break;
    default:
  }
  if (view !== null) refresh(name === "ready" ? known : message);
}

// A machine with all that the agent knows of it.
function arrived({ machine, trends }) {
  machine.sampledAt = machine.ts === null ? -Infinity : new Date(machine.ts).getTime();
  machine.signals.forEach((signal, index) => {
    signal.trend = trends[index] ?? [];
    signal.normed = Object.values(signal.limits).some((band) => Object.keys(band).length > 0);
  });
  return machine;
}

function begin() {
  known.machines = coming.machines;
  keep(coming.head);
  coming = null;
  speak(known.status.language);
  useZone(known.status.timezone);
  view = build();
}

function update(message) {
  for (const whole of message.whole ?? []) known.machines.set(whole.machine.name, arrived(whole));
  for (const news of message.machines ?? []) {
    const machine = known.machines.get(news.name);
    if (!machine) continue;
    Object.assign(machine, { state: news.state, verdict: news.verdict, ts: news.ts });
    machine.signals.forEach((signal, index) => {
      const verdict = signal.normed ? "normal" : "none";
      Object.assign(signal, { value: news.values[index], quality: "good", verdict, outside: null, ts: news.ts });
      signal.warnings = news.warnings[signal.name] ?? [];
    });
    for (const [index, quality, quality_since, verdict, outside, ts] of news.odd) {
      Object.assign(machine.signals[index], { quality, quality_since, verdict, outside, ts });
    }
    sample(machine);
  }
  keep(message);
}

function keep(message) {
  for (const key of ["warnings", "events", "status", "health", "config_errors"]) {
    if (key in message) known[key] = message[key];
  }
}

function lose() {
  if (document.body.dataset.live === "lost") return;
  setData(document.body, "live", "lost");
  if (view === null) view = build();
  view.frame.lost();
}

// -- what is shown -----------------------------------------------------------------------------------------------

function build() {
  const frame = frameOf();
  const content = known.heard === null ? { elements: [], show() {}, tick() {} }
    : place === "machines" && part ? signalView(known.machines.get(wanted), part, now)
    : place === "machines" ? machineView(wanted)
    : place === "warnings" ? warningsView()
    : overviewView();
  frame.main.replaceChildren(...content.elements);
  root.replaceChildren(...frame.elements);
  content.placed?.();
  return { frame, content };
}

function refresh(message) {
  view.frame.show();
  view.content.show(message);
}

function overviewView() {
  const counters = counts();
  const active = activeList(titleOf, false);
  const cards = new Map([...known.machines.values()].map((machine) => [machine.name, card(machine, false)]));

  // A machine whose norms have changed gets a new card in the place of the old one.
  function renew(name) {
    const fresh = card(known.machines.get(name), false);
    cards.get(name).element.replaceWith(fresh.element);
    cards.set(name, fresh);
  }

  const grid = h("div", { class: `grid${cards.size > MANY ? " many" : ""}` });
  const none = h("p", { class: "calm", hidden: cards.size > 0 }, say("machines.none"));
  let arranged = "";

  // Worst first, from left to right and down; columns are filled by height, so nothing moves unless a verdict does.
  function arrange() {
    const wide = VERY_WIDE.matches ? 3 : WIDE.matches ? 2 : 1;
    const order = [...known.machines.values()].sort(worstFirst);
    const key = `${wide} ${order.map((machine) => machine.name).join()}`;
    // Whoever is in a card with the keyboard keeps the card where it is.
    const busy = arranged.startsWith(`${wide} `) && grid.contains(document.activeElement);
    if (key === arranged || busy) return;
    arranged = key;
    const columns = Array.from({ length: Math.min(wide, Math.max(1, order.length)) }, () => ({ height: 0, cards: [] }));
    for (const machine of order) {
      const shortest = columns.reduce((a, b) => (b.height < a.height ? b : a));
      shortest.cards.push(cards.get(machine.name).element);
      shortest.height += machine.signals.length + 2;
    }
    grid.replaceChildren(...columns.map((column) => h("div", { class: "column" }, column.cards)));
  }

  WIDE.onchange = VERY_WIDE.onchange = arrange;
  return {
    elements: [counters.element, active.element, grid, none],
    placed: arrange,
    show(message) {
      const byId = new Map(known.warnings.map((warning) => [warning.id, warning]));
      active.show(known.warnings, now());
      for (const { machine } of message.whole ?? []) renew(machine.name);
      const some = (message.machines instanceof Array ? message.machines : []).map(({ name }) => name);
      const changed = message.warnings ? [...cards.keys()] : some;
      for (const name of changed) cards.get(name)?.show(now(), byId);
      counters.show();
      arrange();
    },
    tick() {
      active.tick(now());
      const aged = [...cards.values()].filter((each) => each.tick(now()));
      if (aged.length === 0) return;
      counters.show();
      arrange();
    },
  };
}

function machineView(name) {
  const back = h("a", { class: "back", href: "/" }, "‹ ", say("machine.back"));
  const machine = known.machines.get(name);
  if (!machine) return { elements: [back, h("p", { class: "calm" }, say("machine.gone"))], show() {}, tick() {} };
  const active = activeList(titleOf, true);
  active.element.querySelector("h1").remove();
  let sheet = card(machine, true);
  return {
    elements: [back, active.element, sheet.element],
    show(message) {
      if ((message.whole ?? []).some((whole) => whole.machine.name === name)) {
        const fresh = card(known.machines.get(name), true);
        sheet.element.replaceWith(fresh.element);
        sheet = fresh;
      }
      const byId = new Map(known.warnings.map((warning) => [warning.id, warning]));
      active.show(known.warnings.filter((warning) => warning.machine === name), now());
      sheet.show(now(), byId);
    },
    tick() {
      active.tick(now());
      sheet.tick(now());
    },
  };
}

function warningsView() {
  const active = activeList(titleOf, true);
  const past = pastList(titleOf);
  return {
    elements: [active.element, past.element],
    show(message) {
      active.show(known.warnings, now());
      if (message.events) past.show(known.events, now());
    },
    tick() { active.tick(now()); },
  };
}

function counts() {
  const tiles = Object.fromEntries(VERDICTS.map((verdict) => {
    const figure = h("span", { class: "number" });
    const label = h("span", { class: "label" });
    return [verdict, { figure, label, element: h("li", { class: `tile ${verdict}` }, mark(verdict), figure, label) }];
  }));
  const element = h("ul", { class: "tiles", "aria-label": say("summary.label") }, VERDICTS.map((verdict) => tiles[verdict].element));
  return {
    element,
    show() {
      for (const verdict of VERDICTS) {
        const count = countOf(verdict);
        setText(tiles[verdict].figure, String(count));
        setText(tiles[verdict].label, say(`count.${verdict}`, { count }));
        tiles[verdict].element.classList.toggle("zero", count === 0);
      }
      setHidden(tiles.none.element, countOf("none") === 0);
    },
  };
}

function countOf(verdict) {
  let count = 0;
  for (const machine of known.machines.values()) {
    for (const signal of machine.signals) count += verdictOf(signal, machine.old) === verdict;
  }
  return count;
}

// -- the frame around every page: who this is, whether it is live, what is wrong with the agent itself ------------------

function frameOf() {
  const agent = h("strong", {});
  const site = h("span", { class: "site" });
  const links = h("div", { class: "links" });
  const clock = h("time", { class: "clock" });
  const lostText = h("strong", {});
  const lostBanner = h("div", { class: "banner lost", role: "alert", hidden: true }, lostText, h("span", {}, say("live.retry")));
  const refused = h("div", { class: "banner refused", role: "status", hidden: true });
  const main = h("main", { id: "main", tabindex: "-1" });
  const nav = h("nav", {}, navLink("/", "nav.overview", place !== "warnings"), navLink("/warnings", "nav.warnings", place === "warnings"));
  const header = h("header", { class: "top" },
    h("a", { class: "who", href: "/" }, h("img", { src: "/static/favicon.svg", alt: "", width: 32, height: 32 }), h("span", {}, agent, site)),
    nav, links, clock);
  let linked = "";

  return {
    main,
    elements: [h("a", { class: "skip", href: "#main" }, say("skip")), header, lostBanner, refused, main],
    lost() {
      setText(agent, known.status.agent ?? "edge-agent");
      setText(lostText, known.heard === null ? say("live.never") : say("live.lost", { time: clockTime(known.heard, now()) }));
      setHidden(lostBanner, false);
      document.title = `✕ ${known.status.agent ?? "edge-agent"}`;
    },
    show() {
      setHidden(lostBanner, true);
      setText(agent, known.status.agent ?? "edge-agent");
      setText(site, known.status.site ?? "");
      setText(clock, say("clock.updated", { time: clockTime(known.heard, now()) }));
      clock.dateTime = known.heard;
      const state = JSON.stringify([known.health.broker, known.health.connections]);
      if (state !== linked) {
        linked = state;
        links.replaceChildren(...linksOf(known.health));
      }
      showRefused(refused, known.config_errors);
      const waiting = known.warnings.length;
      document.title = `${waiting ? `(${waiting}) ` : ""}${known.status.agent ?? "edge-agent"}`;
    },
  };
}

function navLink(href, word, current) {
  return h("a", { href, "aria-current": current ? "page" : null }, say(word));
}

function linksOf(health) {
  const devices = Object.entries(health.connections ?? {});
  const made = [];
  if (health.broker?.state) {
    made.push(linkPill(say("links.broker"), sayOr(`link.${health.broker.state}`, health.broker.state), health.broker.state === "connected"));
  }
  if (devices.length > 0) {
    const up = devices.filter(([, { state }]) => state === "connected").length;
    const pill = linkPill(say("links.devices"), say("links.devices.count", { up, all: devices.length }), up === devices.length);
    const list = h("ul", {}, devices.sort(([, a], [, b]) => (a.state === "connected") - (b.state === "connected")).map(([name, device]) => {
      const state = sayOr(`link.${device.state ?? "unknown"}`, device.state);
      const since = device.since ? say("link.since", { state, time: clockTime(device.since, now()) }) : state;
      const text = device.state === "connected" && device.utilisation >= 0.005 ? say("link.busy", { since, share: Math.round(100 * device.utilisation) }) : since;
      return h("li", { class: device.state === "connected" ? "up" : "down" }, h("strong", {}, name), h("span", {}, text), device.certificate && h("span", { class: "certificate" }, device.certificate));
    }));
    made.push(h("details", { class: "devices" }, h("summary", {}, pill), list));
  }
  return made;
}

function linkPill(what, state, up) {
  return h("span", { class: `pill ${up ? "up" : "down"}` }, mark(up ? "normal" : "bad"), h("span", { class: "of" }, what), " ", h("span", {}, state), spoken(""));
}

const ERRORS_SHOWN = 3;

function showRefused(banner, errors) {
  setHidden(banner, errors.length === 0);
  const text = errors.join("\n");
  if (errors.length === 0 || banner.dataset.errors === text) return;
  banner.dataset.errors = text;
  const rest = errors.length - ERRORS_SHOWN;
  banner.replaceChildren(h("strong", {}, say("config.refused")),
    h("ul", {}, errors.slice(0, ERRORS_SHOWN).map((error) => h("li", {}, h("code", {}, error))), rest > 0 && h("li", {}, say("config.more", { count: rest }))));
}

setInterval(() => {
  if (document.body.dataset.live === "yes") view?.content.tick();
}, 1000);
connect({ hear, lose });
