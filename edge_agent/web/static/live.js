// The connection to the agent. Silence is told apart from calm: the agent sends a beat at least every two seconds.

const SILENCE_MS = 6000;
const FAILED_GRACE_MS = 1500;
const AGAIN_MS = 2000;
const HIDDEN_MS = 5000;

export function connect({ hear, lose }) {
  let source = null;
  let heardAt = 0;
  let failedAt = 0;
  let again = 0;
  let hiding = 0;

  function open() {
    close();
    source = new EventSource("/events");
    for (const name of ["begin", "machine", "ready", "update", "beat"]) {
      source.addEventListener(name, (event) => {
        heardAt = performance.now();
        failedAt = 0;
        hear(name, JSON.parse(event.data));
      });
    }
    source.addEventListener("error", () => {
      failedAt ||= performance.now();
      // A browser gives up for ever when the answer is not a stream; a panel on a wall must not.
      if (source?.readyState === EventSource.CLOSED && !again) {
        again = setTimeout(() => { again = 0; open(); }, AGAIN_MS);
      }
    });
  }

  function close() {
    source?.close();
    source = null;
  }

  const startedAt = performance.now();
  setInterval(() => {
    const now = performance.now();
    const silent = now - (heardAt || startedAt) > SILENCE_MS;
    const failed = failedAt && now - failedAt > FAILED_GRACE_MS;
    if (!silent && !failed) return;
    lose();
    // A line that was cut without a word keeps the browser waiting for ever: ask anew.
    if (silent && source && !failedAt && !document.hidden) {
      failedAt = now;
      open();
    }
  }, 500);

  // A page that nobody sees costs the agent nothing (and leaves the browser's six connections to the others).
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(close, HIDDEN_MS);
    else if (!source) open();
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", () => { if (!source) open(); });
  open();
}
