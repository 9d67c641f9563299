// Figures in words. Units come from Python: size, name and number of decimals, the largest first.

import {
  CELLS,
  DATA,
  endsOf,
  figure,
  isPredicted,
  lineOf,
  markOf,
  noiseOf,
  placedTime,
  placesOf,
  statusOf,
  takenOf,
  textOf,
} from "./data.js";
import { shortened } from "./dom.js";

// The unit that suits a value.
function unitOf(value, isBytes) {
  const units = isBytes ? DATA.units.bytes : DATA.units.seconds;
  return units.find(([size]) => value >= size) ?? units.at(-1);
}

// The unit of an axis: that of its largest value.
export const unitFor = (values, isBytes) => unitOf(Math.max(0, ...values.map(Math.abs)), isBytes);

export function quantity(value, isBytes) {
  if (value === null || value === undefined) return "-";
  const [size, name, decimals] = unitOf(Math.abs(value), isBytes);
  // A value that is not 0 must not read as 0.
  const needed = value ? Math.min(9, -Math.floor(Math.log10(Math.abs(value / size)))) : 0;
  return `${(value / size).toFixed(Math.max(decimals, needed))} ${name}`;
}

export const grouped = (number) => number.toLocaleString("en-US");
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
export const moment = (text) => text.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*$/, "$1 $2");
export const exactBytes = (nbytes) => `${grouped(nbytes)} bytes`;
const exactSeconds = (value) => `${Number(value.toPrecision(6))} s`;

// A figure in a unit that suits it, and with all its digits.
export function exactly(cell, metric) {
  const value = figure(cell, metric);
  if (value === null) return "-";
  return `${markOf(cell, metric)}${quantity(value, metric.bytes)} (${metric.bytes ? exactBytes(value) : exactSeconds(value)})`;
}

export function interval(cell, metric) {
  if (metric.bytes) return isPredicted(lineOf(cell)) ? "predicted, not measured" : "one reading";
  const [low, high] = endsOf(cell, metric);
  const taken = takenOf(cell, metric.name);
  const from =
    placedTime(cell, metric) === null ? `median of ${plural(taken, "sample")}` : `from ${plural(taken, "round")} in turn`;
  return low === null ? from : `${from}; 95 % interval ${quantity(low, false)} to ${quantity(high, false)}`;
}

// The meaning of bars: most times are medians, but those of cells that took turns are differences within their rounds.
export function barsText(cells, metric) {
  if (metric.bytes) return "";
  const timed = cells.filter((cell) => figure(cell, metric) !== null && !isPredicted(lineOf(cell)));
  const barred = timed.filter((cell) => endsOf(cell, metric)[0] !== null);
  const few = "A time from fewer than six samples has no interval.";
  if (!barred.length) return timed.length ? few : "";
  const count = barred.filter((cell) => placedTime(cell, metric) !== null).length;
  const [medians, turns] = ["medians", "differences from the first and last position, in the rounds that cells took in turn"];
  const which = count === 0 ? medians : count < barred.length ? `${medians} or of ${turns}` : turns;
  const bars = `Bars: 95 % intervals of ${which}; a marker hides a bar that is shorter.`;
  return barred.length < timed.length ? `${bars} ${few}` : bars;
}

// The meaning of crosses over points of times.
export const crossesText = (cells) =>
  cells.some(noiseOf) ? "Points that are crossed out were disturbed while they were timed." : "";

const blocksText = (count) => (count ? plural(count, "block") : "no blocks");

// A position on an axis: the sides of square images, which lie at their number of pixels; a number, or some in words, as they are.
export function positionText(axis, place) {
  const side = DATA.axes[axis].square ? Math.round(Math.sqrt(place)) : 0;
  return side && side * side === place ? `${side} × ${side}` : String(place);
}

export const placeText = (axis, place) =>
  axis === "blocks" ? blocksText(place) : `${DATA.axes[axis].noun} ${positionText(axis, place)}`;

// The head of a column of positions.
export const positionsHead = (axis) => DATA.axes[axis][DATA.axes[axis].square ? "noun" : "label"];
export const recordText = (cell) => `record ${CELLS.key[cell]} of ${lineOf(cell).report}`;

// Where a cell lies on the axes of its report.
export function whereText(cell) {
  const places = placesOf(cell).map(([axis, place]) => placeText(axis, place));
  return [...places, ...(CELLS.replicate[cell] ? [`replicate ${CELLS.replicate[cell] + 1}`] : [])].join(", ");
}

// A cost with a square in addition to its slope, or divided by its axis; its text names the units of both terms.
const isCurve = ({ shape }) => shape === "quadratic" || shape === "inverse";
export const isFitted = (fit) => fit.shape === "line" || isCurve(fit);
export const heightOn = (fit, place) =>
  fit.intercept + fit.slope * place + (isCurve(fit) ? fit.term * (fit.shape === "inverse" ? 1 / place : place ** 2) : 0);

// A slope in words: a number, the bound on a change that cannot be distinguished from 0, or that there is no line.
export function slopeText(fit, before = "") {
  if (fit.shape === "not a line") return fit.shape;
  const text = isCurve(fit) ? fit.text : `${fit.text} per ${fit.per}`;
  if (fit.shape === "no change measurable") return text;
  return before + text + (fit.remarks ? ` (${fit.remarks})` : "");
}

// The charting library interprets some markup in its texts.
export const plotText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function metricRows(cell, metric) {
  const rows = [`${metric.title}: <b>${exactly(cell, metric)}</b>`, plotText(interval(cell, metric))];
  const fit = lineOf(cell).fits[metric.name];
  return fit ? [...rows, plotText(slopeText(fit, "slope "))] : rows;
}

// What disturbed a time, from the names of its signs.
export function disturbedText(names) {
  const known = names.split(",").map((name) => DATA.disturbances[name] ?? name);
  const last = known.pop();
  return `disturbed by ${known.join(", ")}${known.length ? " and " : ""}${last}`;
}

// The text next to a point.
export function hoverText(cell, metrics) {
  const [label, status, noise] = [shortened(lineOf(cell).label, 60), statusOf(cell), noiseOf(cell)];
  const rows = [`<b>${plotText(label)}</b>`, plotText(whereText(cell)), ...metrics.flatMap((metric) => metricRows(cell, metric))];
  if (status !== "ok") {
    const message = plotText(shortened(textOf(CELLS.message[cell]), 70));
    rows.push(`<b>${plotText(status)}</b>, and in no slope: ${message}`);
  }
  if (noise && metrics.some((metric) => !metric.bytes)) rows.push(plotText(disturbedText(noise)));
  return [...rows, plotText(shortened(recordText(cell), 70))].join("<br>");
}
