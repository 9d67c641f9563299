// The key of a figure: a list, which wraps, prints and can be read aloud.

import { details, element } from "./dom.js";
import { keyColour } from "./layout.js";
import { plural } from "./words.js";

const SHAPES = {
  "triangle-up": "M20 3 L27 15 L13 15 Z",
  "triangle-down": "M20 15 L27 3 L13 3 Z",
  square: "M14.5 3.5 h11 v11 h-11 Z",
  circle: "M25 9 A5 5 0 1 1 15 9 A5 5 0 1 1 25 9 Z",
  diamond: "M20 2.5 L26.5 9 L20 15.5 L13.5 9 Z",
  cross: "M18 3 h4 v4 h4 v4 h-4 v4 h-4 v-4 h-4 v-4 h4 Z",
  x: "M15 4 L25 14 M25 4 L15 14",
  star: "M20 2 L22 7 L27 7 L23 10.5 L25 16 L20 12.5 L15 16 L17 10.5 L13 7 L18 7 Z",
};
const DASHES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" };

function drawing(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Colours are in styles, since attributes know no variables: a key follows the theme by itself.
function swatch({ colour, symbol, dash, pale, filled }) {
  const svg = drawing("svg", { width: 52, height: 18, "aria-hidden": true });
  const stroke = { "stroke-width": 1.8, opacity: pale ? 0.45 : 1 };
  if (dash) {
    const dashes = DASHES[dash] ?? dash.replaceAll("px", "").replaceAll(",", " ");
    const across = { x1: 1, x2: 51, y1: 9, y2: 9, style: `stroke: ${colour}` };
    svg.append(drawing("line", { ...across, ...stroke, "stroke-dasharray": dashes }));
  }
  if (symbol) {
    const shape = {
      d: SHAPES[symbol],
      transform: "translate(6 0)",
      style: `stroke: ${colour}; fill: ${filled ? colour : "var(--paper)"}`,
    };
    svg.append(drawing("path", { ...shape, ...stroke }));
  }
  return svg;
}

export const keyOf = (line, text) => ({ ...line.look, colour: keyColour(line.look.colour), text });

export function keys(entries) {
  const rows = entries.map((entry) => element("li", {}, swatch(entry), element("span", {}, entry.text)));
  return element("ul", { class: "keys" }, ...rows);
}

// The rest of a long key, made on demand.
export function moreKeys(indices, entry) {
  if (!indices.length) return null;
  const rest = details(plural(indices.length, "more line"));
  rest.addEventListener("toggle", () => rest.childElementCount < 2 && rest.append(keys(indices.map(entry))));
  return rest;
}
