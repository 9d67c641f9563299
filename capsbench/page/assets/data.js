"use strict";
// The data of the page, and its formatting. Texts of records are set as text, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const LINES = DATA.lines;
// Fits come without the names of their fields, which would be most of a large page.
for (const line of LINES) {
  for (const [metric, values] of Object.entries(line.fits)) line.fits[metric] = Object.fromEntries(DATA.fit.map((name, place) => [name, values[place]]));
}
const CELLS = DATA.cells;
const COUNT = CELLS.line.length;
const METRICS = Object.fromEntries(DATA.metrics.map((metric) => [metric.name, metric]));
const TIMES = ["train", "forward", "inference"];
const SAMPLES = { train: 0, forward: 1, inference: 2 };

const textOf = (number) => DATA.texts[number];
const byId = (id) => document.getElementById(id);

function element(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const UNITS = {
  bytes: [[2 ** 30, "GiB", 2], [2 ** 20, "MiB", 2], [2 ** 10, "KiB", 2], [1, "B", 0]],
  seconds: [[1, "s", 2], [1e-3, "ms", 1], [1e-6, "µs", 0]],
};

function quantity(value, isBytes) {
  if (value === null || value === undefined) return "-";
  const units = isBytes ? UNITS.bytes : UNITS.seconds;
  const [size, name, decimals] = units.find((unit) => Math.abs(value) >= unit[0]) || units[units.length - 1];
  // A value that is not 0 must not read as 0.
  const needed = value ? Math.min(9, -Math.floor(Math.log10(Math.abs(value / size)))) : 0;
  return `${(value / size).toFixed(Math.max(decimals, needed))} ${name}`;
}

const exact = (nbytes) => `${nbytes.toLocaleString("en-US")} bytes`;
const seconds = (value) => `${Number(value.toPrecision(6))} s`;
const moment = (text) => text.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*$/, "$1 $2");
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// A figure as it stands in the record.
function figure(cell, metric) {
  const value = CELLS[metric.column][cell];
  return value === undefined ? null : value;
}

function exactly(cell, metric) {
  const value = figure(cell, metric);
  if (value === null) return "-";
  return metric.bytes ? `${quantity(value, true)} (${exact(value)})` : `${quantity(value, false)} (${seconds(value)})`;
}

function interval(cell, metric) {
  if (metric.bytes) return isPredicted(lineOf(cell)) ? "predicted, not measured" : "one reading";
  const low = CELLS[`${metric.name}_low`][cell];
  const high = CELLS[`${metric.name}_high`][cell];
  const taken = plural(CELLS[`${metric.name}_taken`][cell], "sample");
  return low === null ? `median of ${taken}` : `median of ${taken}; 95 % interval ${quantity(low, false)} to ${quantity(high, false)}`;
}

const statusOf = (cell) => textOf(CELLS.status[cell]);
const noiseOf = (cell) => textOf(CELLS.noise[cell]);
const lineOf = (cell) => LINES[CELLS.line[cell]];
const isPredicted = (line) => line.kind === "predicted";
const isGood = (cell, metric) => statusOf(cell) === "ok" && figure(cell, metric) !== null;
const blocksText = (count) => (count ? plural(count, "block") : "no blocks");
const depthText = (cell) => blocksText(CELLS.blocks[cell]) + (CELLS.replicate[cell] ? `, replicate ${CELLS.replicate[cell] + 1}` : "");
const recordText = (cell) => `record ${CELLS.key[cell]} of ${lineOf(cell).report}`;
const commandOf = (cell) => lineOf(cell).command && lineOf(cell).command + textOf(CELLS.ending[cell]);
const timelineCommandOf = (cell) => lineOf(cell).timelineCommand && lineOf(cell).timelineCommand + (CELLS.blocks[cell] ? ` ${DATA.options.depthFlag} ${CELLS.blocks[cell]}` : "");
const takenOf = (cell, name) => CELLS[`${name}_taken`][cell];
const samplesOf = (cell, name) => (CELLS.samples[cell] || [])[SAMPLES[name]] || [];

const CELLS_OF = LINES.map(() => []);
for (let cell = 0; cell < COUNT; cell++) CELLS_OF[CELLS.line[cell]].push(cell);
for (const cells of CELLS_OF) cells.sort((a, b) => CELLS.blocks[a] - CELLS.blocks[b] || CELLS.replicate[a] - CELLS.replicate[b]);

// The charting library interprets some markup in its texts.
const plotText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const shortened = (text, length) => (text.length <= length ? text : `${text.slice(0, length - 1)}…`);

function download(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csvField(value) {
  if (value === null || value === undefined) return "";
  // A record stays one line.
  let text = String(value).replace(/\s*[\r\n\v\f\u0085\u2028\u2029]+\s*/g, " ");
  // A spreadsheet must not take a name for a formula; a number is none.
  if (typeof value === "string" && /^\s*[=+\-@]/.test(text) && !/^[+-]?\d+(\.\d*)?(e[+-]?\d+)?$/i.test(text)) text = `'${text}`;
  return /[",\t]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

const csv = (rows) => rows.map((row) => row.map(csvField).join(",")).join("\r\n") + "\r\n";
