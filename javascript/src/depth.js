// Figures 3 and 4 of the paper, from one's own records: memory and time over depth, or over what was varied.

import { addChart, forgetCharts, redraw, saveImage } from "./charts.js";
import {
  axisNow,
  CELLS,
  cellsOf,
  DATA,
  figure,
  fullOf,
  hasFailed,
  hasFigure,
  isPredicted,
  LINES,
  lineIndexOf,
  lineOf,
  METRICS,
  placeOf,
  statusOf,
} from "./data.js";
import { button, byId, element, field, note, tick } from "./dom.js";
import { chosenLines, drawnLines, metricOptions, namesOf } from "./filters.js";
import { keyOf, keys } from "./keys.js";
import { endText, overAxis, paperLines } from "./overdepth.js";
import { change, state } from "./state.js";
import { selectCell } from "./step.js";
import { makeTable } from "./tables.js";
import { barsText, crossesText, exactly, interval, isFitted, positionsHead, positionText, slopeText } from "./words.js";

const HEIGHTS = [
  ["close", "close to the values"],
  ["zero", "from 0"],
  ["log", "logarithmic"],
];
const NOTHING = "No cell has a figure: there is nothing to draw.";

export function startDepth() {
  const { metric, axis, paper } = state.depth;
  const choose = (name) => (value) => change(state.depth, { [name]: value });
  const controls = byId("depth-controls");
  if (DATA.metrics.length) controls.append(field("Quantity", metricOptions(), metric, choose("metric"), "metric"));
  controls.append(field("Axis", HEIGHTS, axis, choose("axis"), "axis"));
  controls.append(tick("the paper’s values", paper, choose("paper"), "with-paper"));
  controls.append(button("Save as SVG", () => saveImage("figure4")));
  addChart(byId("figure4"), buildFigure4, selectCell);
}

export function drawDepth() {
  redraw(byId("figure4"));
  drawNotes();
  drawFigure3();
}

function buildFigure4(node) {
  const metric = METRICS[state.depth.metric];
  if (!metric) return { empty: NOTHING };
  return overAxis(node, metric, drawnLines(metric).drawn, { ...state.depth, large: true });
}

function drawNotes() {
  const metric = METRICS[state.depth.metric];
  const caption = byId("figure4-caption");
  byId("with-paper").parentElement.hidden = !metric || !paperLines(metric, chosenLines()).length;
  if (!metric) return caption.replaceChildren();
  const lines = drawnLines(metric);
  const names = namesOf(lines.drawn);
  const pale = state.depth.paper ? paperLines(metric, lines.drawn) : [];
  const entries = [...lines.drawn.map((index) => lineKey(index, metric, names)), ...pale.map(paperKey)];
  caption.replaceChildren(keys(entries), note(captionText(metric, lines)));
  drawNumbers(metric, lines.drawn.flatMap(cellsOf), names);
}

function lineKey(index, metric, names) {
  const fit = LINES[index].fits[metric.name];
  const facts = [fit ? slopeText(fit) : "", endText(index)].filter(Boolean).join("; ");
  const key = keyOf(LINES[index], names.get(index) + (facts ? `: ${facts}` : ""));
  return fit?.shape === "no change measurable" ? { ...key, dash: "" } : key;
}

function paperKey(line) {
  return {
    ...keyOf(line, `the paper’s ${line.title}, ${line.dataset} (nvidia-smi)`),
    symbol: "circle",
    dash: "solid",
    pale: true,
  };
}

function captionText(metric, { drawn, all }) {
  const cells = drawn.flatMap(cellsOf);
  const { axis } = state.depth;
  const isZero = (cell) => hasFigure(cell, metric) && figure(cell, metric) <= 0;
  const sentences = [
    [drawn.length < all, `${drawn.length} of ${all} lines are drawn: choose above.`],
    [true, "Every point is a record; click one to look inside its step."],
    [true, barsText(cells, metric)],
    [!metric.bytes, crossesText(cells)],
    [drawn.some((index) => isPredicted(LINES[index])), "Dashed: predicted."],
    [drawn.some((index) => fullOf(index).length), "Crosses at the end of a dotted line: out of memory."],
    [cells.some((cell) => hasFailed(cell, metric)), "Crossed circles: cells that failed, which are in no slope."],
    [axis !== "zero", "The axis need not start at 0."],
    [axis === "log" && cells.some(isZero), "It is not logarithmic, since such an axis cannot show 0."],
  ];
  return sentences.flatMap(([holds, text]) => (holds && text ? [text] : [])).join(" ");
}

function figureText(cell, metric) {
  if (!hasFigure(cell, metric)) return statusOf(cell);
  return exactly(cell, metric) + (hasFailed(cell, metric) ? `, ${statusOf(cell)}` : "");
}

const axisText = (cell) => (lineOf(cell).lacks ? "none" : positionText(axisNow(), placeOf(cell)));

function drawNumbers(metric, cells, names) {
  const value = { value: (cell) => figure(cell, metric), text: (cell) => figureText(cell, metric), number: true };
  makeTable(byId("figure4-numbers").lastElementChild, "figure4-numbers", {
    name: `Numbers of the figure ${DATA.axes[axisNow()].over}`,
    rows: cells,
    size: 10,
    columns: [
      { label: "line", value: (cell) => names.get(lineIndexOf(cell)), name: true },
      { label: positionsHead(axisNow()), value: placeOf, text: axisText, number: true },
      { label: metric.title, ...value },
      { label: "interval", value: (cell) => (hasFigure(cell, metric) ? interval(cell, metric) : "") },
      { label: "record", value: (cell) => CELLS.key[cell] },
    ],
  });
}

// Small multiples: the chosen memory, training and inference; a row for each data set.
function drawFigure3() {
  const host = byId("figure3");
  forgetCharts(host);
  const memory = METRICS[state.depth.metric]?.bytes ? state.depth.metric : "retained";
  const metrics = [memory, "train", "inference"].map((name) => METRICS[name]).filter(Boolean);
  const drawn = metrics.map((metric) => ({ metric, indices: drawnLines(metric).drawn }));
  const datasets = [...new Set(drawn.flatMap(({ indices }) => indices.map((index) => LINES[index].dataset)))].slice(0, 4);
  const panels = datasets.flatMap((dataset) => drawn.map((one) => panelOf(dataset, one, datasets.length > 1)));
  host.replaceChildren(...panels.map((panel) => panel.node));
  drawFigure3Notes(new Set(panels.flatMap((panel) => panel.indices)), metrics);
}

function panelOf(dataset, { metric, indices }, named) {
  const own = indices.filter((index) => LINES[index].dataset === dataset);
  const title = named ? `${LINES.find((line) => line.dataset === dataset).datasetTitle}: ` : "";
  const chart = element("div", { class: "chart" });
  const options = { large: false, axis: state.depth.axis, paper: false };
  addChart(chart, () => overAxis(chart, metric, own, options), selectCell);
  return { node: element("div", { class: "panel" }, element("h4", {}, title + metric.title), chart), indices: own };
}

// The key of lines that only the small charts draw, since they lack the quantity above.
function drawFigure3Notes(drawn, metrics) {
  const metric = METRICS[state.depth.metric];
  const above = metric ? drawnLines(metric).drawn : [];
  const others = [...drawn].filter((index) => !above.includes(index)).sort((a, b) => a - b);
  const names = namesOf([...above, ...others]);
  const which = `Colours and markers are those of the figure above${others.length ? ", and of the key below" : ""}.`;
  const fits = [...drawn].flatMap((index) => metrics.map(({ name }) => LINES[index].fits[name]).filter(Boolean));
  const has = (test, text) => (fits.some(test) ? text : "");
  const joined = has((fit) => fit.shape === "not a line", " Lines of points that no line fits join the means over replicates.");
  const flat = has((fit) => fit.shape === "no change measurable", " Points without a line: no change measurable.");
  const text = drawn.size ? `${which}${has(isFitted, " Lines are fitted.")}${joined}${flat}` : NOTHING;
  const entries = others.map((index) => keyOf(LINES[index], names.get(index)));
  byId("figure3-caption").replaceChildren(note(text), ...(others.length ? [keys(entries)] : []));
}
