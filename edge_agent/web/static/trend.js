// A sparkline: the shape of the last two minutes, gaps where there was no reading.
import { svg } from "./dom.js";

export const SAMPLES = 120;
const WIDTH = 120;
const HEIGHT = 32;
const MARGIN = 3;

export function trend(spanOfScale) {
  const line = svg("path", { class: "line" });
  const dot = svg("path", { class: "dot" });
  const element = svg("svg", {
    class: "trend", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true",
  }, line, dot);
  return {
    element,
    show(samples) {
      const path = pathOf(samples, spanOfScale);
      line.setAttribute("d", path.line);
      dot.setAttribute("d", path.dot);
    },
  };
}

// Noise must not look like a storm: the height is never less than a part of the gauge's scale.
function pathOf(samples, spanOfScale) {
  const known = samples.filter(Number.isFinite);
  if (known.length === 0) return { line: "", dot: "" };
  const middle = (Math.min(...known) + Math.max(...known)) / 2;
  const span = Math.max(Math.max(...known) - Math.min(...known), spanOfScale === null ? Math.abs(middle) * 0.05 : spanOfScale * 0.12, 1e-12);
  const x = (index) => (WIDTH - MARGIN) * (1 - (samples.length - 1 - index) / (SAMPLES - 1));
  const y = (value) => HEIGHT / 2 - ((value - middle) / span) * (HEIGHT - 2 * MARGIN);
  let line = "";
  let pen = "M";
  samples.forEach((value, index) => {
    if (!Number.isFinite(value)) {
      pen = "M";
      return;
    }
    line += `${pen}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  const last = samples.at(-1);
  return { line, dot: Number.isFinite(last) ? `M${x(samples.length - 1).toFixed(1)} ${y(last).toFixed(1)}h0` : "" };
}
