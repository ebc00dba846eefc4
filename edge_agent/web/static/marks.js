// Each verdict has a shape, a letter and a colour of its own, so that none of the three is needed alone.
import { h, svg } from "./dom.js";
import { sayOr } from "./words.js";

const SHAPES = {
  alarm: () => [
    svg("path", { class: "shape", d: "M7.4 1.5h9.2l6 6v9l-6 6H7.4l-6-6v-9z" }),
    letter("letter.alarm", 16.6),
  ],
  warning: () => [
    svg("path", { class: "shape", d: "M12 1.8 23 21.6a.6.6 0 0 1-.5.9h-21a.6.6 0 0 1-.5-.9z" }),
    letter("letter.warning", 19.4),
  ],
  bad: () => [
    svg("circle", { class: "shape", cx: 12, cy: 12, r: 9.6 }),
    letter("letter.bad", 16.8),
  ],
  pending: () => [svg("path", { class: "tick", d: "M12 4.5 21 20H3z" })],
  normal: () => [svg("path", { class: "tick", d: "m5 12.6 4.6 4.6L19.2 7" })],
  none: () => [svg("path", { class: "tick", d: "M7 12h10" })],
};

function letter(key, y) {
  return svg("text", { class: "letter", x: 12, y, "text-anchor": "middle" }, sayOr(key, "!"));
}

export function mark(verdict, hollow = false) {
  const shape = (SHAPES[verdict] ?? SHAPES.none)();
  return svg("svg", { class: `mark ${verdict}${hollow ? " hollow" : ""}`, viewBox: "0 0 24 24", "aria-hidden": "true" }, shape);
}

export function spoken(text) {
  return h("span", { class: "spoken" }, text);
}
