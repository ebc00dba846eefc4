// Active warnings with what to do about them, the dialog that acknowledges one, and the list of what happened before.
import { h, setHidden, setText } from "./dom.js";
import { ago, clockTime } from "./format.js";
import { mark, spoken } from "./marks.js";
import { say, sayOr } from "./words.js";

const SHORT_LIST = 4;
const LOW_SCREEN = matchMedia("(max-height: 700px)");
const NAME_KEY = "edge-agent.name";
const WAITING = ["unacknowledged", "returned_unacknowledged", "latched_unacknowledged"];

// titles: (machine name) => its title or null. full: every entry, not only the most urgent.
export function activeList(titles, full) {
  const list = h("ul", { class: "warnings" });
  const more = h("a", { class: "more", href: "/warnings" });
  const calm = h("p", { class: "calm" }, mark("normal"), say("warnings.none"));
  const element = h("section", { class: "active", "aria-label": say("warnings.active") },
    full && h("h1", {}, say("warnings.active")), list, more, calm);
  const entries = new Map();

  function show(warnings, now) {
    // Never so many that they push the machines off the screen.
    const room = LOW_SCREEN.matches ? SHORT_LIST - 1 : SHORT_LIST;
    const shown = full || warnings.length <= room ? warnings : warnings.slice(0, room - 1);
    const ids = new Set(shown.map((warning) => warning.id));
    for (const [id, known] of entries) {
      if (!ids.has(id)) {
        known.element.remove();
        entries.delete(id);
      }
    }
    shown.forEach((warning, index) => {
      const version = JSON.stringify(warning);
      const known = entries.get(warning.id);
      if (known?.version !== version) {
        const made = { version, ...entry(warning, titles) };
        if (known) {
          const focused = known.element.contains(document.activeElement);
          known.element.replaceWith(made.element);
          if (focused) made.element.querySelector("button, a")?.focus();
        }
        entries.set(warning.id, made);
      }
      const { element: item } = entries.get(warning.id);
      if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
    });
    setHidden(list, shown.length === 0);
    setHidden(more, shown.length === warnings.length);
    setText(more, say("warnings.more", { count: warnings.length }));
    setHidden(calm, warnings.length > 0);
    tick(now);
  }

  function tick(now) {
    for (const { times } of entries.values()) times(now);
  }

  return { element, show, tick };
}

function entry(warning, titles) {
  const waits = WAITING.includes(warning.state);
  const verdict = ["stale", "health"].includes(warning.kind) ? "bad" : warning.severity;
  const since = h("time", { datetime: warning.since });
  const machine = titles(warning.machine);
  const where = machine === null
    ? h("span", {}, warning.machine)
    : h("a", { href: `/machines/${encodeURIComponent(warning.machine)}` }, machine);
  const facts = h("p", { class: "facts" }, where, since, warning.count > 1 && h("span", {}, say("warnings.count", { count: warning.count })), h("span", { class: "life" }, lifeOf(warning)));
  const element = h("li", { class: `entry ${verdict}`, "data-id": warning.id, "data-state": warning.state },
    h("span", { class: "sign" }, mark(verdict, !waits), spoken(say(`verdict.${warning.severity}`))),
    h("div", { class: "text" },
      h("p", { class: "message" }, warning.message), facts,
      warning.advice && h("p", { class: "advice" }, h("span", {}, say("warnings.advice")), " ", warning.advice)),
    waits && h("button", { type: "button", class: "button", onclick: () => ask(warning) }, say("acknowledge")));
  const times = (now) => setText(since, `${say("warnings.since", { time: clockTime(warning.since, now) })} · ${ago(warning.since, now)}`);
  return { element, times };
}

function lifeOf(warning) {
  switch (warning.state) {
    case "returned_unacknowledged": return say("warnings.returned");
    case "acknowledged": return `${acknowledgedBy(warning)}${warning.comment ? `: ${warning.comment}` : ""}`;
    case "shelved": case "suppressed": case "out_of_service": return say(`warnings.${warning.state}`);
    default: return "";
  }
}

function acknowledgedBy(warning) {
  return warning.by ? say("warnings.acknowledged", { by: warning.by }) : say("warnings.acknowledged.nobody");
}

// The events of the past, newest first.
export function pastList(titles) {
  const list = h("ol", { class: "past" });
  const none = h("p", { class: "calm" }, say("warnings.past.none"));
  const element = h("section", { "aria-label": say("warnings.past") }, h("h2", {}, say("warnings.past")), list, none);

  function show(events, now) {
    setHidden(none, events.length > 0);
    list.replaceChildren(...events.map((event) => {
      const ended = ["cleared", "acknowledged"].includes(event.event);
      const verdict = ["stale", "health"].includes(event.kind) ? "bad" : event.severity;
      const by = event.event === "acknowledged" && event.by ? ` · ${event.by}${event.comment ? `: ${event.comment}` : ""}` : "";
      return h("li", { "data-event": event.event },
        h("time", { datetime: event.ts }, clockTime(event.ts, now)),
        h("span", { class: "sign" }, mark(event.event === "cleared" ? "normal" : verdict, ended)),
        h("span", { class: "step" }, sayOr(`event.${event.event}`, event.event)),
        h("span", { class: "message" }, `${event.message}${by}`),
        h("span", { class: "where" }, titles(event.machine) ?? event.machine));
    }));
  }

  return { element, show };
}

let dialog;

function ask(warning) {
  dialog?.remove();
  const by = h("input", { id: "by", name: "by", required: true, maxlength: 100, autocomplete: "name", value: remembered() });
  const comment = h("textarea", { id: "comment", name: "comment", maxlength: 1000, rows: 2 });
  const failure = h("p", { class: "failure", role: "alert", hidden: true });
  const send = h("button", { type: "submit", class: "button primary" }, say("acknowledge"));
  const cancel = h("button", { type: "button", class: "button", onclick: () => dialog.close() }, say("acknowledge.cancel"));
  const form = h("form", {},
    h("h2", { id: "asked" }, say("acknowledge.title")), h("p", { class: "message" }, warning.message),
    h("label", { for: "by" }, say("acknowledge.by")), by,
    h("label", { for: "comment" }, say("acknowledge.comment")), comment, failure,
    h("div", { class: "buttons" }, cancel, send));
  dialog = h("dialog", { "aria-labelledby": "asked" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    const trouble = await acknowledge(warning.id, by.value.trim(), comment.value.trim());
    send.disabled = false;
    if (trouble === null) dialog.close();
    else {
      setText(failure, trouble);
      setHidden(failure, false);
    }
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  (by.value ? send : by).focus();
}

// null when it is done, else why not, in words.
async function acknowledge(id, by, comment) {
  remember(by);
  let answer;
  try {
    answer = await fetch(`/api/v1/warnings/${encodeURIComponent(id)}/acknowledge`, {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        "X-Edge-Agent-Token": document.querySelector('meta[name="edge-agent-token"]').content,
      },
      body: JSON.stringify({ by, comment }),
      signal: AbortSignal.timeout(8000),
    });
  } catch {
    return say("acknowledge.unreachable");
  }
  if (answer.ok) return null;
  const text = await answer.json().then((body) => body.error, () => String(answer.status));
  return say("acknowledge.failed", { text });
}

function remembered() {
  try {
    return localStorage.getItem(NAME_KEY) ?? "";
  } catch {
    return "";
  }
}

function remember(name) {
  try {
    localStorage.setItem(NAME_KEY, name);
  } catch {
    // A panel that forgets asks again.
  }
}
