// One quantity over an axis: a point for each record, fitted lines, joins if none fits, and points alone if no change is measurable.

import {
  axisNow,
  cellsOf,
  DATA,
  endsOf,
  figure,
  fullOf,
  hasFailed,
  hasFigure,
  isGood,
  LINES,
  lineOf,
  noiseOf,
  placeOf,
} from "./data.js";
import { shortened, variable } from "./dom.js";
import { axisTitle, CROSS, colourOf, crossesOver, errorBars, levelRange, ticksAt } from "./layout.js";
import { heightOn, hoverText, isFitted, placeText, plotText, plural, quantity, recordText, unitFor, whereText } from "./words.js";

const PALE = 0.4;
const placesOf = (cells) => cells.map(placeOf);

// `large`: name the quantity, and draw joins of means palely; `axis`: "close", "zero" or "log"; `paper`: draw the paper's values.
export function overAxis(node, metric, indices, { large, axis, paper }) {
  const measured = indices.flatMap(cellsOf).filter((cell) => hasFigure(cell, metric));
  if (!measured.length) return { empty: whyEmpty(metric, indices) };
  const pale = paper ? paperLines(metric, indices) : [];
  const values = [...measured.map((cell) => figure(cell, metric)), ...pale.flatMap((line) => line.bytes)];
  const plot = { metric, large, unit: unitFor(values, metric.bytes) };
  const nowhere = indices.filter((index) => fullOf(index).length && !cellsOf(index).some((cell) => isGood(cell, metric)));
  // Lines of networks that lack the axis have no place on it: they are levels from its first place to its last.
  const [levels, placed] = [indices.filter(isLevel), indices.filter((index) => !isLevel(index))];
  const onAxis = [...measured, ...indices.flatMap(fullOf)].filter((cell) => !lineOf(cell).lacks);
  const places = onAxis.length ? placesOf(onAxis) : [0];
  const ends = [Math.min(...places), Math.max(...places)];
  const data = [
    ...pale.map((one) => paperTrace(one, plot)),
    ...levels.flatMap((index) => levelTraces(index, plot, ends)),
    ...placed.flatMap((index) => [...lineTraces(index, plot), ...endTraces(index, plot)]),
    ...nowhere.map((index, row) => fullTrace(index, row, large, ends)),
  ];
  const layout = {
    annotations: [],
    xaxis: { title: axisTitle(DATA.axes[axisNow()].label), ...ticksAt(places, node, DATA.axes[axisNow()].doubles) },
    yaxis: { title: axisTitle(heightTitle(plot)), ...heights(plot, axis, values, measured) },
  };
  // The height of lines that are out of memory everywhere is unknown: they stand at the top.
  if (nowhere.length) layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
  layout.annotations = placed.flatMap((index) => endAnnotations(index, plot, layout, ends));
  const label = `${metric.title} ${DATA.axes[axisNow()].over}, ${plural(indices.length, "line")}; the numbers are in a table below.`;
  return { data, layout, label };
}

const isLevel = (index) => LINES[index].lacks;

// The level of a network that lacks the axis; its ends show its record, and open its step when they are clicked.
function levelTraces(index, { metric, unit }, ends) {
  const [cell] = cellsOf(index).filter((one) => isGood(one, metric));
  if (cell === undefined) return [];
  const y = figure(cell, metric) / unit[0];
  const hover = { customdata: [cell, cell], hovertext: ends.map(() => hoverText(cell, [metric])), hoverinfo: "text" };
  return [{ x: ends, y: [y, y], mode: "lines", opacity: 0.8, ...hover, line: lineStyle(LINES[index], 1.4) }];
}

function whyEmpty(metric, indices) {
  const full = indices.some((index) => fullOf(index).length);
  return full ? "Every cell that was tried ran out of memory." : `No chosen cell has a value of ${metric.title}.`;
}

function heightTitle({ metric, unit, large }) {
  return `${large ? `${metric.title}, ` : ""}${unit[1]}${metric.bytes ? "" : " per step"}`;
}

function heights({ metric, unit }, axis, values, measured) {
  if (axis === "zero") return { rangemode: "tozero" };
  // A value that is not above 0 has no place on a logarithmic axis.
  if (axis === "log") return Math.min(...values) > 0 ? { rangemode: "normal", type: "log" } : { rangemode: "normal" };
  const ends = metric.bytes ? [] : measured.flatMap((cell) => endsOf(cell, metric)).filter((end) => end !== null);
  return { rangemode: "normal", ...levelRange([...values, ...ends], unit) };
}

// A line's own traces: cells that failed, what is drawn through its points, and the points.
function lineTraces(index, plot) {
  const line = LINES[index];
  const cells = cellsOf(index).filter((cell) => isGood(cell, plot.metric));
  const failed = cellsOf(index).filter((cell) => hasFailed(cell, plot.metric));
  const found = failed.length ? [failedTrace(failed, plot, colourOf(line))] : [];
  return cells.length ? [...found, ...throughTraces(line, cells, plot), ...pointTraces(line, cells, plot)] : found;
}

function throughTraces(line, cells, plot) {
  const fit = line.fits[plot.metric.name];
  if (fit?.shape === "no change measurable") return [];
  return fit && isFitted(fit) ? [fittedTrace(line, fit, cells, plot)] : [joinTrace(line, cells, plot)];
}

const lineStyle = (line, width) => ({ color: colourOf(line), width, dash: line.look.dash });

function fittedTrace(line, fit, cells, { unit }) {
  const { doubles } = DATA.axes[line.axis];
  const places = fit.shape === "line" && !doubles ? [...new Set(placesOf(cells))] : along(placesOf(cells), doubles);
  return {
    x: places,
    y: places.map((place) => heightOn(fit, place) / unit[0]),
    mode: "lines",
    line: lineStyle(line, 1.6),
    hoverinfo: "skip",
  };
}

// Places from the first to the last, as close as a curve needs them.
function along(places, doubles) {
  const [low, high] = [Math.min(...places), Math.max(...places)];
  const at = (share) => (doubles ? low * (high / low) ** share : low + (high - low) * share);
  return Array.from({ length: 61 }, (_, step) => at(step / 60));
}

// The allocator reserves in steps.
function joinTrace(line, cells, { metric, unit, large }) {
  const means = line.means[metric.name] ?? cells.map((cell) => [placeOf(cell), figure(cell, metric)]);
  const style = { ...lineStyle(line, 1.4), shape: metric.name === "reserved" ? "hvh" : "linear" };
  const [x, y] = [means.map((pair) => pair[0]), means.map((pair) => pair[1] / unit[0])];
  return { x, y, mode: "lines", hoverinfo: "skip", opacity: large ? PALE : 1, line: style };
}

// Points that show their record, and open its step when they are clicked.
function recordPoints(cells, { metric, unit }, marker) {
  const y = cells.map((cell) => figure(cell, metric) / unit[0]);
  const hover = { customdata: cells, hovertext: cells.map((cell) => hoverText(cell, [metric])), hoverinfo: "text" };
  return { x: placesOf(cells), y, mode: "markers", ...hover, marker };
}

function pointTraces(line, cells, plot) {
  const { metric } = plot;
  const colour = colourOf(line);
  const marker = {
    symbol: line.look.symbol,
    size: line.look.size,
    color: variable("--paper"),
    line: { color: colour, width: 1.6 },
  };
  const points = recordPoints(cells, plot, marker);
  if (metric.bytes) return [points];
  const noisy = cells.filter(noiseOf);
  const y = noisy.map((cell) => figure(cell, metric) / plot.unit[0]);
  const crossed = crossesOver(placesOf(noisy), y, line.look.size, colour);
  return [{ ...points, error_y: medianBars(cells, plot, colour) }, ...crossed];
}

// Cells that failed, which are in no line and no slope.
function failedTrace(cells, plot, colour) {
  const marker = { symbol: "circle-x-open", size: 11, color: colour, line: { color: colour, width: 1.4 } };
  return { ...recordPoints(cells, plot, marker), opacity: 0.7 };
}

function medianBars(cells, { metric, unit }, colour) {
  const reach = (end, cell) => (end === null ? 0 : Math.abs(end - figure(cell, metric)) / unit[0]);
  const reaches = cells.map((cell) => endsOf(cell, metric).map((end) => reach(end, cell)));
  return errorBars(
    reaches.map(([, above]) => above),
    reaches.map(([below]) => below),
    colour,
    2,
  );
}

function fullHover(cell) {
  const name = plotText(shortened(lineOf(cell).label, 60));
  return `<b>${name}</b><br>${plotText(whereText(cell))}: out of memory<br>${plotText(shortened(recordText(cell), 70))}`;
}

function fullPoint(cell, y, colour) {
  const hover = { customdata: [cell], hovertext: [fullHover(cell)], hoverinfo: "text" };
  return { x: [placeOf(cell)], y: [y], mode: "markers", ...hover, marker: { ...CROSS, line: { color: colour, width: 2 } } };
}

// The mark of a line that is out of memory everywhere.
function fullTrace(index, row, named, ends) {
  const colour = colourOf(LINES[index]);
  const text = [`${plotText(shortened(LINES[index].short, 30))}: out of memory`];
  const words = { text, textposition: "middle right", textfont: { color: colour, size: 11 }, cliponaxis: false };
  const point = fullPoint(fullOf(index)[0], 0.97 - 0.05 * row, colour);
  if (isLevel(index)) point.x = [ends[0]];
  return { ...point, ...words, yaxis: "y2", mode: named ? "markers+text" : "markers" };
}

// The last cell before a line runs out of memory, and the first one that did; null if it did not or has no figure.
function endOf(index, metric) {
  const [full] = fullOf(index);
  const measured = cellsOf(index).filter((cell) => isGood(cell, metric));
  if (full === undefined || !measured.length) return null;
  // A larger step may have had room again; the mark stands where there was first none.
  return { full, last: measured.findLast((cell) => placeOf(cell) <= placeOf(full)) ?? measured[0] };
}

// The end of a line because the device was full.
function endTraces(index, { metric, unit }) {
  const end = endOf(index, metric);
  if (!end) return [];
  const y = figure(end.last, metric) / unit[0];
  const colour = colourOf(LINES[index]);
  const dotted = { color: colour, width: 1.2, dash: "dot" };
  const x = placesOf([end.last, end.full]);
  return [{ x, y: [y, y], mode: "lines", line: dotted, hoverinfo: "skip" }, fullPoint(end.full, y, colour)];
}

// The words at the end of a line; annotations of a logarithmic axis lie at logarithms.
function endAnnotations(index, { metric, unit }, { xaxis, yaxis }, ends) {
  const end = endOf(index, metric);
  if (!end) return [];
  const [onX, onY] = [xaxis, yaxis].map(({ type }) => (type === "log" ? Math.log10 : Number));
  const x = onX(placeOf(end.full));
  const place = {
    x,
    y: onY(figure(end.last, metric) / unit[0]),
    xanchor: x < (onX(ends[0]) + onX(ends[1])) / 2 ? "left" : "right",
    yanchor: "bottom",
    yshift: 5,
  };
  const font = { color: colourOf(LINES[index]), size: 11 };
  return [{ ...place, text: "out of memory", showarrow: false, font, bgcolor: variable("--paper"), borderpad: 1 }];
}

// The end of a line in words.
export function endText(index) {
  const [full] = fullOf(index);
  if (full === undefined) return "";
  return `out of memory${placeOf(full) ? ` at ${placeText(LINES[index].axis, placeOf(full))}` : ""}`;
}

// Table 4 of the paper, if it can be compared with the drawn figures: on a GPU, at its batch.
export function paperLines(metric, indices) {
  if (!DATA.paper.metrics.includes(metric.name)) return [];
  const datasets = new Set(indices.filter((index) => LINES[index].paper).map((index) => LINES[index].dataset));
  const known = [...datasets].filter((dataset) => Object.hasOwn(DATA.paper.memory, dataset));
  return known.flatMap((dataset) => DATA.paper.memory[dataset].map((line) => ({ ...line, dataset })));
}

function paperTrace(one, { unit }) {
  const colour = colourOf(one);
  const text = (depth, place) => {
    const value = quantity(one.bytes[place], true);
    return `the paper’s ${one.title}<br>${plural(depth, "block")}: <b>${value}</b><br>table 4, nvidia-smi`;
  };
  const points = { x: one.blocks, y: one.bytes.map((value) => value / unit[0]), mode: "lines+markers", opacity: PALE };
  const style = { line: { color: colour, width: 1 }, marker: { size: 4, color: colour } };
  return { ...points, ...style, hoverinfo: "text", hovertext: one.blocks.map(text) };
}
