// Every word that the page says by itself, by language. What devices, the configuration and the judge say comes as data.
// {name} is filled in; a word with .one and .other is chosen by number.

export const words = {
  en: {
    "locale": "en-GB",
    "skip": "Skip to the machines",
    "nav.overview": "Overview",
    "nav.warnings": "Warnings",
    "verdict.alarm": "alarm",
    "verdict.warning": "warning",
    "verdict.bad": "not readable",
    "verdict.normal": "in norm",
    "verdict.none": "no norm",
    "letter.alarm": "A",
    "letter.warning": "W",
    "letter.bad": "?",
    "count.alarm.one": "alarm",
    "count.alarm.other": "alarms",
    "count.warning.one": "warning",
    "count.warning.other": "warnings",
    "count.bad.one": "not readable",
    "count.bad.other": "not readable",
    "count.normal.one": "in norm",
    "count.normal.other": "in norm",
    "count.none.one": "without norm",
    "count.none.other": "without norm",
    "summary.label": "All signals by verdict",
    "machine.signals.one": "{count} signal",
    "machine.signals.other": "{count} signals",
    "machine.old": "no new reading since {time}",
    "machine.nothing": "no reading yet",
    "machine.back": "All machines",
    "machines.none": "No machine is configured.",
    "machine.gone": "This machine is no longer configured.",
    "signal.pending": "outside, on-delay is running",
    "signal.above.warning": "above {limit}",
    "signal.below.warning": "below {limit}",
    "signal.above.alarm": "above {limit}",
    "signal.below.alarm": "below {limit}",
    "signal.since": "{what} since {time}",
    "signal.stood": "before that: {what}",
    "gauge.none": "no norm",
    "gauge.label": "{value}; {limits}",
    "limits.warning": "warning outside {low} to {high}",
    "limits.alarm": "alarm outside {low} to {high}",
    "limits.open": "any",
    "state.none": "state unknown",
    "quality.uncertain": "uncertain",
    "quality.clock": "device clock is wrong",
    "quality.timeout": "no answer (timeout)",
    "quality.disconnected": "line is down (disconnected)",
    "quality.refused": "the device refuses the address (refused)",
    "quality.device_failure": "the device reports a failure",
    "quality.sensor_failure": "sensor failure",
    "quality.out_of_range": "impossible value (out of range)",
    "quality.not_a_number": "not a number",
    "quality.protocol": "wrong answer (protocol)",
    "quality.precision": "too large for an exact value",
    "quality.missing": "no reading yet",
    "quality.restart": "the agent has just started",
    "quality.other": "bad reading",
    "warnings.active": "Active warnings",
    "warnings.past": "Past",
    "warnings.none": "No active warnings.",
    "warnings.past.none": "Nothing has happened since the agent started.",
    "warnings.more": "All {count} active warnings",
    "warnings.since": "since {time}",
    "warnings.count": "{count} times",
    "warnings.advice": "Advice",
    "warnings.acknowledged": "acknowledged by {by}",
    "warnings.acknowledged.nobody": "acknowledged",
    "warnings.returned": "back in norm, waits for acknowledgement",
    "warnings.shelved": "shelved",
    "warnings.suppressed": "suppressed",
    "warnings.out_of_service": "out of service",
    "event.raised": "raised",
    "event.escalated": "escalated",
    "event.deescalated": "deescalated",
    "event.cleared": "back in norm",
    "event.acknowledged": "acknowledged",
    "event.shelved": "shelved",
    "event.unshelved": "unshelved",
    "event.suppressed": "suppressed",
    "event.unsuppressed": "unsuppressed",
    "event.out_of_service": "out of service",
    "event.in_service": "in service",
    "event.reset": "reset",
    "acknowledge": "Acknowledge",
    "acknowledge.title": "Acknowledge this warning",
    "acknowledge.by": "Your name",
    "acknowledge.comment": "Comment (optional)",
    "acknowledge.cancel": "Cancel",
    "acknowledge.unreachable": "The agent does not answer. Nothing was acknowledged.",
    "acknowledge.failed": "Not acknowledged: {text}",
    "links.broker": "Broker",
    "links.devices": "Devices",
    "links.devices.count": "{up} of {all}",
    "links.none": "no devices",
    "link.connected": "connected",
    "link.connecting": "connecting",
    "link.silent": "silent",
    "link.backing_off": "waiting to try again",
    "link.disconnected": "disconnected",
    "link.unknown": "unknown",
    "link.since": "{state} since {time}",
    "clock.updated": "Updated {time}",
    "live.connecting": "Connecting …",
    "live.lost": "No live data since {time}: the values below are old.",
    "live.never": "No connection to the agent: nothing on this page is known.",
    "live.retry": "Trying again …",
    "config.refused": "The changed configuration was refused; the previous one is still running.",
    "config.more": "and {count} more",
  },
};

let language = "en";

export function speak(wanted) {
  language = Object.hasOwn(words, wanted ?? "") ? wanted : "en";
  document.documentElement.lang = language;
}

export function locale() {
  return words[language].locale;
}

export function say(key, facts = {}) {
  const form = "count" in facts && !Object.hasOwn(words.en, key)
    ? `${key}.${new Intl.PluralRules(locale()).select(facts.count) === "one" ? "one" : "other"}`
    : key;
  const text = words[language][form] ?? words.en[form];
  if (text === undefined) return key;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(facts[name] ?? ""));
}

// For words that a newer agent may send (a state, a reason): its own word when the table has none.
export function sayOr(key, fallback) {
  const text = words[language][key] ?? words.en[key];
  return text === undefined ? String(fallback).replaceAll("_", " ") : text;
}
