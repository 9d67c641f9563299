// The tables of every cell and of every slope.

import { downloadCsv } from "./csv.js";
import {
  AXES,
  CELLS,
  commandOf,
  DATA,
  figure,
  LINES,
  lineOf,
  METRICS,
  markOf,
  noiseOf,
  samplesOf,
  statusOf,
  takenOf,
  textOf,
} from "./data.js";
import { badge, button, byId, copyButton, element, field } from "./dom.js";
import { chosenCells, chosenLines } from "./filters.js";
import { recordDetail } from "./record.js";
import { asLatex, asMarkdown } from "./slopetext.js";
import { ALL, change, state } from "./state.js";
import { selectCell } from "./step.js";
import { makeTable, setRows } from "./tables.js";
import { isFitted, positionsHead, positionText, quantity } from "./words.js";

const KINDS = { ok: "ok", oom: "oom", skipped: "oom" };

export const drawCells = () => setRows("cells-table", shownCells());
export const drawSlopes = () => setRows("slopes-table", shownSlopes());

function shownCells() {
  const { status } = state.cells;
  const cells = chosenCells().filter((cell) => status === ALL || statusOf(cell) === status);
  return cells.sort((a, b) => a - b);
}

function reportColumn(lineOfRow) {
  return DATA.reports.length > 1
    ? [{ label: "report", column: "report", value: (row) => lineOfRow(row).report, name: true }]
    : [];
}

const placeOn = (axis, cell) => CELLS.places[axis][cell];
// Axes that are no options: settings of cases.
const OWN_AXES = AXES.filter((axis) => !DATA.axes[axis].option);

// Columns of values in which cells may differ are left out if they do not.
function cellColumns() {
  const differ = (values) => new Set(values).size > 1;
  const dataset = { label: "data set", column: "dataset", value: (cell) => lineOf(cell).datasetTitle };
  const replicate = { label: "replicate", column: "replicate", value: (cell) => CELLS.replicate[cell] + 1, number: true };
  return [
    ...reportColumn(lineOf),
    { label: "line", column: "line", value: (cell) => lineOf(cell).short, name: true },
    ...(differ(LINES.map((line) => line.dataset)) ? [dataset] : []),
    ...AXES.map((axis) => ({
      label: positionsHead(axis),
      column: axis,
      value: (cell) => placeOn(axis, cell),
      text: (cell) => positionText(axis, placeOn(axis, cell) ?? "-"),
      number: true,
    })),
    ...(differ(CELLS.replicate) ? [replicate] : []),
    ...DATA.metrics.map(metricColumn),
    { label: "status", column: "status", value: statusOf, node: statusBadge },
    ...(CELLS.noise.some(Boolean)
      ? [{ label: "noise", column: "noise", value: noiseOf, text: (cell) => noiseOf(cell).replaceAll(",", ", ") }]
      : []),
    { label: "record", column: "key", value: (cell) => CELLS.key[cell] },
  ];
}

function metricColumn(metric) {
  const text = (cell) => markOf(cell, metric) + quantity(figure(cell, metric), metric.bytes);
  return { label: metric.head, column: metric.column, value: (cell) => figure(cell, metric), text, number: true };
}

const statusBadge = (cell) => badge(statusOf(cell), KINDS[statusOf(cell)] ?? "worse");

export function startCells() {
  const known = [...new Set(CELLS.status)].map(textOf);
  const choose = (status) => change(state.cells, { status });
  const options = [[ALL, "all"], ...known.map((status) => [status, status])];
  const extra = known.length > 1 ? [field("Status", options, ALL, choose, "filter-status")] : [];
  extra.push(button("Download CSV", () => downloadCsv("cells.csv", fileRows())));
  makeTable(byId("cells-table"), "cells-table", {
    name: "Table of cells",
    rows: shownCells(),
    columns: cellColumns(),
    search: true,
    extra,
    detail: cellDetail,
    searched: (cell) => `${textOf(CELLS.message[cell])} ${textOf(CELLS.notes[cell])}`,
  });
}

function cellDetail(cell) {
  const look = button("Look inside its step", () => selectCell(cell));
  return element("div", {}, look, recordDetail(cell));
}

// All columns that the page has of the chosen cells, named as in `capsbench.load`.
function fileRows() {
  const { texts, numbers } = DATA.columns;
  const options = DATA.options.columns;
  // The number of samples that were taken: not all of them may be on the page.
  const samples = DATA.samples.flatMap(({ column }) => [column, `${column}_taken`]);
  const heads = ["key", ...options, "blocks", ...OWN_AXES, "replicate", ...texts, ...numbers, ...samples, "command"];
  return [heads, ...shownCells().map(fileRow)];
}

function fileRow(cell) {
  const { texts, numbers } = DATA.columns;
  const options = DATA.options.columns;
  const taken = ({ name }, index) => [samplesOf(cell, index).join(" "), takenOf(cell, name) || null];
  return [
    CELLS.key[cell],
    ...options.map((name) => lineOf(cell)[name] ?? (AXES.includes(name) ? placeOn(name, cell) : undefined)),
    CELLS.blocks[cell],
    ...OWN_AXES.map((axis) => placeOn(axis, cell)),
    CELLS.replicate[cell],
    ...texts.map((name) => textOf(CELLS[name][cell])),
    ...numbers.map((name) => CELLS[name][cell]),
    ...DATA.samples.flatMap(taken),
    commandOf(cell),
  ];
}

function shownSlopes() {
  const slopesOf = (line) => Object.entries(line.fits).map(([name, fit]) => ({ line, metric: METRICS[name], fit }));
  return chosenLines().flatMap((index) => slopesOf(LINES[index]));
}

const ANSWERS = { line: "yes", "not a line": "no" };

function shapeText({ fit }) {
  return [ANSWERS[fit.shape] ?? fit.shape, isFitted(fit) ? fit.remarks : ""].filter(Boolean).join(", ");
}

// A number of a fit, under its name in `capsbench.slopes`.
function fitColumn(label, name, text, column = name) {
  return { label, column, value: ({ fit }) => fit[name], text: ({ fit }) => fit[text] || "-", number: true };
}

// Slopes along several axes name their unit in each row.
function slopeColumns() {
  if (AXES.length > 1) return [fitColumn("slope", "slope", "text"), { label: "per", value: ({ fit }) => fit.per }];
  const { unit } = DATA.axes[AXES[0]];
  return [fitColumn(`slope per ${unit}`, "slope", "text", `slope_per_${unit.replaceAll(" ", "_")}`)];
}

// Shows a text below the table of slopes, to be copied by hand.
function showText(text) {
  const area = element("textarea", { class: "copied", readonly: true, rows: "8", "aria-label": "Slopes as text" });
  area.value = text;
  byId("slopes").querySelector(".copied")?.remove();
  byId("slopes").append(area);
  area.select();
}

export function startSlopes() {
  const copies = [
    copyButton("Copy as Markdown", () => asMarkdown(shownSlopes()), showText),
    copyButton("Copy as LaTeX", () => asLatex(shownSlopes()), showText),
  ];
  const shown = ["slope", "ratio_to_rescapsnet"];
  const ratio = fitColumn("× ResCapsNet", "ratio_to_rescapsnet", "ratioText");
  const hasRatio = LINES.some((line) => Object.values(line.fits).some((fit) => fit.ratioText));
  const numbers = DATA.columns.slopes.filter((name) => !shown.includes(name));
  makeTable(byId("slopes-table"), "slopes-table", {
    name: "All slopes",
    rows: shownSlopes(),
    file: "slopes.csv",
    search: true,
    extra: copies,
    columns: [
      ...reportColumn(({ line }) => line),
      { label: "line", value: ({ line }) => line.short, name: true },
      { label: "data set", value: ({ line }) => line.datasetTitle },
      { label: "quantity", value: ({ metric }) => metric.title },
      ...slopeColumns(),
      ...(hasRatio ? [ratio] : []),
      { label: "points", value: ({ fit }) => fit.points, number: true },
      { label: "a line", value: shapeText },
      { label: "noise", value: ({ fit }) => fit.noise },
    ],
    also: [
      ...(hasRatio ? [] : [["ratio_to_rescapsnet", ({ fit }) => fit.ratio_to_rescapsnet]]),
      ["unit", ({ metric, fit }) => `${metric.bytes ? "bytes" : "seconds"} per ${fit.per}`],
      ["certainty", ({ fit }) => fit.certainty],
      ...numbers.map((name) => [name, ({ fit }) => fit[name]]),
    ],
  });
}
