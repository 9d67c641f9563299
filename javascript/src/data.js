// The data of the page, as Python wrote it. Lines and cells are known by their indices.

export const DATA = JSON.parse(document.getElementById("data").textContent);

// Fits come without the names of their fields, which would be most of a large page.
const fitOf = (values) => Object.fromEntries(DATA.fit.map((name, index) => [name, values[index]]));
const fitsOf = ({ fits, axis }) =>
  Object.fromEntries(Object.entries(fits).map(([metric, values]) => [metric, { ...fitOf(values), per: DATA.axes[axis].unit }]));

export const LINES = DATA.lines.map((line) => ({ ...line, fits: fitsOf(line) }));
export const CELLS = DATA.cells;
export const COUNT = CELLS.line.length;
export const METRICS = Object.fromEntries(DATA.metrics.map((metric) => [metric.name, metric]));

export const AXES = Object.keys(DATA.axes);
// A cell of a grid is on a line along each of its axes.
const LINES_ALONG = CELLS.along ?? { [AXES[0]]: CELLS.line };
const placeOn = (axis, cell) => CELLS.places[axis]?.[cell] ?? 0;

const CELLS_OF = LINES.map(() => []);
for (const lines of Object.values(LINES_ALONG)) {
  lines.forEach((line, cell) => {
    if (line !== null) CELLS_OF[line].push(cell);
  });
}
CELLS_OF.forEach((cells, index) => {
  const { axis } = LINES[index];
  cells.sort((a, b) => placeOn(axis, a) - placeOn(axis, b) || CELLS.replicate[a] - CELLS.replicate[b]);
});

// What everything is drawn over now.
let shownAxis = AXES[0];
export const axisNow = () => shownAxis;
export function drawAlong(axis) {
  shownAxis = axis;
}

// The cells of a line, by position and replicate.
export const cellsOf = (index) => CELLS_OF[index];
export const lineIndexOf = (cell) => LINES_ALONG[shownAxis]?.[cell] ?? CELLS.line[cell];
export const lineOf = (cell) => LINES[lineIndexOf(cell)];
export const placeOf = (cell) => placeOn(lineOf(cell).axis, cell);
// The axes of a cell's report, each with the cell's position.
export const placesOf = (cell) =>
  AXES.filter((axis) => (CELLS.places[axis]?.[cell] ?? null) !== null).map((axis) => [axis, CELLS.places[axis][cell]]);
export const textOf = (number) => DATA.texts[number];
export const statusOf = (cell) => textOf(CELLS.status[cell]);
export const noiseOf = (cell) => textOf(CELLS.noise[cell]);
// The mark before a predicted figure that is not exact.
export const markOf = (cell, metric) => (textOf(CELLS.inexact[cell]).split(",").includes(metric.column) ? DATA.inexact : "");
export const isPredicted = (line) => line.kind === "predicted";

// The time of a cell that took turns, relative to the others of its rounds; null of any other figure.
export const placedTime = (cell, metric) => CELLS[`${metric.name}_placed`]?.[cell] ?? null;
// A figure as it is drawn: that of the record, unless the cell took turns; null if there is none.
export const figure = (cell, metric) => placedTime(cell, metric) ?? CELLS[metric.column][cell] ?? null;
export const hasFigure = (cell, metric) => figure(cell, metric) !== null;
export const isGood = (cell, metric) => statusOf(cell) === "ok" && hasFigure(cell, metric);
export const hasFailed = (cell, metric) => statusOf(cell) !== "ok" && hasFigure(cell, metric);
export const fullOf = (index) => cellsOf(index).filter((cell) => statusOf(cell) === "oom");

// Both ends of the interval of a time; null if there is none.
export const endsOf = (cell, metric) => ["low", "high"].map((side) => CELLS[`${metric.name}_${side}`][cell]);
export const takenOf = (cell, name) => CELLS[`${name}_taken`][cell];
export const samplesOf = (cell, index) => CELLS.samples[cell]?.[index] ?? [];

// Commands are those of a cell's line along the first axis of its report, which the cell's own options complete.
const completed = (command, options) => command && command + textOf(options);
export const commandOf = (cell) => completed(LINES[CELLS.line[cell]].command, CELLS.ending[cell]);
export const timelineCommandOf = (cell) => completed(LINES[CELLS.line[cell]].timelineCommand, CELLS.place[cell]);
