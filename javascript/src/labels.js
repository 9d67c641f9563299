// Names next to the points of a chart, where there is room for them.

import { shortened } from "./dom.js";
import { widthOf } from "./layout.js";
import { plotText } from "./words.js";

const [LETTER, LINE, GAP] = [6.3, 15, 9];
const LONGEST = 34;

// Where a name may stand from its point, by which of its edges is there: the best place first, as bars run sideways.
const SIDES = [
  ["center", "bottom"],
  ["center", "top"],
  ["left", "middle"],
  ["right", "middle"],
  ["left", "bottom"],
  ["left", "top"],
  ["right", "bottom"],
  ["right", "top"],
];
const ACROSS = { left: 1, center: 0, right: -1 };
const UP = { bottom: -1, middle: 0, top: 1 };

function boxOf({ left, top }, wide, [across, up]) {
  const x = left + ACROSS[across] * GAP - (across === "right" ? wide : across === "center" ? wide / 2 : 0);
  const y = top + UP[up] * GAP - (up === "bottom" ? LINE : up === "middle" ? LINE / 2 : 0);
  return { left: x, top: y, right: x + wide, bottom: y + LINE };
}

const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
const around = ({ left, top }) => ({ left: left - 5, top: top - 5, right: left + 5, bottom: top + 5 });

// Annotations that name points `{ x, y, name, colour }` in a chart with these ranges; points without room are left to the key.
export function pointLabels(node, points, [x, y], margin) {
  const wide = widthOf(node) - margin.l - margin.r;
  const high = (node.clientHeight || 384) - margin.t - margin.b;
  const placed = points.map((point) => ({
    ...point,
    left: (wide * (point.x - x[0])) / (x[1] - x[0]),
    top: high - (high * (point.y - y[0])) / (y[1] - y[0]),
  }));
  const taken = placed.map(around);
  const inside = (box) => box.left >= 0 && box.right <= wide && box.top >= 0 && box.bottom <= high;
  return placed.flatMap((point, index) => {
    const text = shortened(point.name, LONGEST);
    const others = taken.filter((_, other) => other !== index);
    const free = (side) => {
      const box = boxOf(point, LETTER * text.length, side);
      return inside(box) && !others.some((one) => meet(box, one));
    };
    const side = SIDES.find(free);
    if (!side) return [];
    taken.push(boxOf(point, LETTER * text.length, side));
    const [xanchor, yanchor] = side;
    const where = { x: point.x, y: point.y, xanchor, yanchor, xshift: ACROSS[xanchor] * GAP, yshift: -UP[yanchor] * GAP };
    return [{ ...where, text: plotText(text), showarrow: false, font: { size: 11.5, color: point.colour } }];
  });
}
