// The data of the page, as Python wrote it. Lines and cells are known by their indices.

export const DATA = JSON.parse(document.getElementById("data").textContent);

// Fits come without the names of their fields, which would be most of a large page.
const fitOf = (values) => Object.fromEntries(DATA.fit.map((name, index) => [name, values[index]]));
const fitsOf = (fits) => Object.fromEntries(Object.entries(fits).map(([metric, values]) => [metric, fitOf(values)]));

export const LINES = DATA.lines.map((line) => ({ ...line, fits: fitsOf(line.fits) }));
export const CELLS = DATA.cells;
export const COUNT = CELLS.line.length;
export const METRICS = Object.fromEntries(DATA.metrics.map((metric) => [metric.name, metric]));

const CELLS_OF = LINES.map(() => []);
for (let cell = 0; cell < COUNT; cell++) CELLS_OF[CELLS.line[cell]].push(cell);
for (const cells of CELLS_OF) cells.sort((a, b) => CELLS.blocks[a] - CELLS.blocks[b] || CELLS.replicate[a] - CELLS.replicate[b]);

// The cells of a line, by depth and replicate.
export const cellsOf = (index) => CELLS_OF[index];
export const lineOf = (cell) => LINES[CELLS.line[cell]];
export const textOf = (number) => DATA.texts[number];
export const statusOf = (cell) => textOf(CELLS.status[cell]);
export const noiseOf = (cell) => textOf(CELLS.noise[cell]);
export const isPredicted = (line) => line.kind === "predicted";

// A figure as it is in the record; null if there is none.
export const figure = (cell, metric) => CELLS[metric.column][cell] ?? null;
export const hasFigure = (cell, metric) => figure(cell, metric) !== null;
export const isGood = (cell, metric) => statusOf(cell) === "ok" && hasFigure(cell, metric);
export const hasFailed = (cell, metric) => statusOf(cell) !== "ok" && hasFigure(cell, metric);
export const fullOf = (index) => cellsOf(index).filter((cell) => statusOf(cell) === "oom");

// Both ends of the interval of a time's median; null if there is none.
export const endsOf = (cell, metric) => ["low", "high"].map((side) => CELLS[`${metric.name}_${side}`][cell]);
export const takenOf = (cell, name) => CELLS[`${name}_taken`][cell];
export const samplesOf = (cell, index) => CELLS.samples[cell]?.[index] ?? [];

export const commandOf = (cell) => lineOf(cell).command && lineOf(cell).command + textOf(CELLS.ending[cell]);

export function timelineCommandOf(cell) {
  const depth = CELLS.blocks[cell] ? ` ${DATA.options.depthFlag} ${CELLS.blocks[cell]}` : "";
  return lineOf(cell).timelineCommand && lineOf(cell).timelineCommand + depth;
}
