// Memory against time at one position on the axis, as a basis for a choice. It begins with the memory that differs most.

import { addChart, redraw } from "./charts.js";
import {
  AXES,
  axisNow,
  CELLS,
  DATA,
  endsOf,
  figure,
  isGood,
  isPredicted,
  LINES,
  lineIndexOf,
  lineOf,
  METRICS,
  noiseOf,
  placeOf,
  statusOf,
} from "./data.js";
import { byId, field, note, variable } from "./dom.js";
import { chosenCells, metricOptions, namesOf } from "./filters.js";
import { keyOf, keys, moreKeys } from "./keys.js";
import { pointLabels } from "./labels.js";
import { axisTitle, colourOf, crossesOver, errorBars, roomyRange } from "./layout.js";
import { change, MOST_LINES, state } from "./state.js";
import { selectCell } from "./step.js";
import { makeTable } from "./tables.js";
import { barsText, crossesText, exactly, hoverText, placeText, plural, positionText, unitFor } from "./words.js";

const MARGIN = { l: 72, r: 16, t: 14, b: 52 };

const linesOf = (points) => [...new Set(points.map((point) => lineIndexOf(point.cell)))];

// The options that decide how much work a step is, and those that a report varies as further axes: only records that agree in them
// can beat each other. The settings of a case have its own axes, such as the length.
const WORK = [...new Set(["dataset", "batch_size", "image_shape", "classes", "settings", ...AXES])];
const workOf = (cell) => JSON.stringify(WORK.filter((name) => name !== axisNow()).map((name) => lineOf(cell)[name] ?? null));

export const startTradeoff = () => addChart(byId("tradeoff-chart"), buildTradeoff, selectCell);

export function drawTradeoff() {
  const good = chosenCells().filter((cell) => statusOf(cell) === "ok");
  const places = [...new Set(good.filter((cell) => !lineOf(cell).lacks).map(placeOf))].sort((a, b) => a - b);
  // A position that the filters leave out cannot stay chosen.
  if (!places.includes(state.tradeoff.place)) state.tradeoff.place = fullest(good, places);
  // Without a memory that differs there is no choice to make.
  const nothing = !places.some((place) => memories().some((metric) => spread(metric, place) > 0));
  byId("tradeoff").hidden = nothing;
  document.querySelector(".bar a[href='#tradeoff']").parentElement.hidden = nothing;
  if (nothing) return;
  drawControls(places);
  redraw(byId("tradeoff-chart"));
  const points = tradePoints();
  drawCaption(points);
  drawNumbers(points);
}

// The position with the most lines, and of several the last: one line alone is no choice.
function fullest(cells, places) {
  const lines = new Map(places.map((place) => [place, new Set()]));
  for (const cell of cells) lines.get(placeOf(cell))?.add(lineIndexOf(cell));
  return places.reduce((best, place) => (lines.get(place).size >= lines.get(best).size ? place : best), places[0]);
}

const memories = () => DATA.metrics.filter((metric) => metric.bytes);

// The largest difference of a memory between records of the same work at a position, as a share of the larger one.
function spread(memory, place) {
  const groups = new Map();
  for (const point of pointsAt(memory, METRICS[state.tradeoff.time], place)) {
    const [low, high] = groups.get(point.work) ?? [Infinity, 0];
    groups.set(point.work, [Math.min(low, point.memory), Math.max(high, point.memory)]);
  }
  return Math.max(0, ...[...groups.values()].map(([low, high]) => (high ? 1 - low / high : 0)));
}

// The reader's memory, or the one that differs most.
function memoryNow() {
  const { memory, place } = state.tradeoff;
  if (memory) return METRICS[memory];
  return memories().reduce((best, metric) => (spread(metric, place) > spread(best, place) ? metric : best), memories()[0]);
}

const metricsNow = () => [memoryNow(), METRICS[state.tradeoff.time]];

function drawControls(places) {
  const choose =
    (name, of = (value) => value) =>
    (value) =>
      change(state.tradeoff, { [name]: of(value) });
  const [memory, time] = metricsNow();
  const texts = places.map((one) => [String(one), positionText(axisNow(), one)]);
  const focused = document.activeElement?.id;
  const controls = byId("tradeoff-controls");
  const memoryOptions = metricOptions((metric) => metric.bytes);
  const timeOptions = metricOptions((metric) => !metric.bytes);
  controls.replaceChildren(
    field(DATA.axes[axisNow()].title, texts, String(state.tradeoff.place), choose("place", Number), "trade-place"),
    field("Memory", memoryOptions, memory.name, choose("memory"), "trade-memory"),
    field("Time", timeOptions, time.name, choose("time"), "trade-time"),
  );
  if (focused && controls.querySelector(`#${CSS.escape(focused)}`)) byId(focused).focus();
}

// A predicted time is one number. A measured time without an interval may be any: with fewer than six samples nothing is known at 95 %.
function pointOf(cell, memory, time) {
  const value = figure(cell, time);
  const unknown = isPredicted(lineOf(cell)) ? [value, value] : [0, Infinity];
  const [low, high] = endsOf(cell, time).map((end, side) => end ?? unknown[side]);
  const bar = endsOf(cell, time).map((end) => end ?? value);
  return { cell, work: workOf(cell), memory: figure(cell, memory), time: value, low, high, bar };
}

// The chosen records at a position that have both figures, and those of networks that lack the axis.
function pointsAt(memory, time, place) {
  if (!memory || !time) return [];
  const isThere = (cell) => lineOf(cell).lacks || placeOf(cell) === place;
  const isShown = (cell) => isThere(cell) && isGood(cell, memory) && isGood(cell, time);
  return chosenCells()
    .filter(isShown)
    .map((cell) => pointOf(cell, memory, time));
}

// A record is beaten by one of the same work that needs no more memory and whose time is shorter beyond both intervals.
const beats = (one, other) => one.memory <= other.memory && one.high < other.low && one.work === other.work;

// The records at the chosen position, those on the front marked: no other one beats them.
export function tradePoints() {
  const points = pointsAt(...metricsNow(), state.tradeoff.place);
  return points.map((point) => ({ ...point, front: !points.some((other) => beats(other, point)) }));
}

function buildTradeoff(node) {
  const points = tradePoints();
  if (!points.length) return { empty: "No chosen cell has both memory and time at one position." };
  const [memory, time] = metricsNow();
  const across = unitFor(
    points.map((point) => point.time),
    false,
  );
  const up = unitFor(
    points.map((point) => point.memory),
    true,
  );
  const shown = points.map((point) => ({ ...point, x: point.time / across[0], y: point.memory / up[0] }));
  const ranges = [
    roomyRange(points.flatMap(({ time: value, bar }) => [value, ...bar].map((end) => end / across[0]))),
    roomyRange(shown.map(({ y }) => y)),
  ];
  const layout = {
    margin: MARGIN,
    xaxis: { title: axisTitle(`${time.title}, ${across[1]} per step`), range: ranges[0], automargin: false },
    yaxis: { title: axisTitle(`${memory.title}, ${up[1]}`), range: ranges[1], automargin: false },
    annotations: pointLabels(node, namedPoints(shown), ranges, MARGIN),
  };
  const what = `${memory.title} against ${time.title} at ${placeText(axisNow(), state.tradeoff.place)}`;
  const data = linesOf(points).flatMap((index) => pointsTraces(index, shown, across, [memory, time]));
  return { data, layout, label: `${what}, ${plural(points.length, "record")}; the numbers are in a table below.` };
}

// The points that have a name next to them: one of each line, those on the front first.
function namedPoints(shown) {
  const names = namesOf(linesOf(shown));
  const first = [...shown].sort((a, b) => b.front - a.front);
  return linesOf(first)
    .slice(0, MOST_LINES)
    .map((index) => {
      const { x, y } = first.find((point) => lineIndexOf(point.cell) === index);
      return { x, y, name: names.get(index), colour: colourOf(LINES[index]) };
    });
}

function pointsTraces(index, shown, [size], metrics) {
  const points = shown.filter((point) => lineIndexOf(point.cell) === index);
  const { look } = LINES[index];
  const [colour, paper] = [colourOf(LINES[index]), variable("--paper")];
  const sizeOf = ({ front }) => look.size + (front ? 4 : 0);
  const marker = {
    opacity: 1,
    symbol: look.symbol,
    size: points.map(sizeOf),
    color: points.map((point) => (point.front ? colour : paper)),
    line: { color: colour, width: 1.6 },
  };
  const trace = {
    x: points.map(({ x }) => x),
    y: points.map(({ y }) => y),
    mode: "markers",
    customdata: points.map((point) => point.cell),
    hovertext: points.map((point) => hoverText(point.cell, metrics)),
    hoverinfo: "text",
    marker,
    error_x: errorBars(
      points.map(({ bar, time }) => (bar[1] - time) / size),
      points.map(({ bar, time }) => (time - bar[0]) / size),
      colour,
      3,
    ),
  };
  // A cross over a filled marker is seen by its ends alone.
  const crosses = points
    .filter((point) => noiseOf(point.cell))
    .map((point) => crossesOver([point.x], [point.y], sizeOf(point), colour));
  return [trace, ...crosses.flat()];
}

function drawCaption(points) {
  const front = new Set(linesOf(points.filter((point) => point.front)));
  // Lines on the front come first, since the choice is among them.
  const indices = linesOf(points).sort((a, b) => front.has(b) - front.has(a) || a - b);
  const names = namesOf(indices);
  const nameOf = (index) => names.get(index) + (front.has(index) ? " (on the front)" : "");
  const entry = (index) => ({ ...keyOf(LINES[index], nameOf(index)), dash: null, filled: front.has(index) });
  const several =
    new Set(points.map(({ work }) => work)).size > 1
      ? " Each amount of work has a front of its own: a data set, batch size, shape of images, number of classes, the settings of a case, and a position on each other axis."
      : "";
  const cells = points.map(({ cell }) => cell);
  const words = [barsText(cells, METRICS[state.tradeoff.time]), crossesText(cells)].filter(Boolean).join(" ");
  const text = `Filled markers are on the front: no other record is faster with as little memory. A time is shorter only if its interval does not overlap the other one; a time without an interval is neither shorter nor longer than another. ${words}${several}`;
  const legend = [keys(indices.slice(0, MOST_LINES).map(entry)), moreKeys(indices.slice(MOST_LINES), entry), note(text)];
  byId("tradeoff-caption").replaceChildren(...(points.length ? legend.filter(Boolean) : []));
}

function drawNumbers(points) {
  const [memory, time] = metricsNow();
  const host = byId("tradeoff-numbers").lastElementChild;
  if (!points.length) return host.replaceChildren();
  const names = namesOf(linesOf(points));
  const amount = (metric, name) => ({
    label: metric.title,
    value: (point) => point[name],
    text: (point) => exactly(point.cell, metric),
    number: true,
  });
  makeTable(host, "tradeoff-numbers", {
    name: "Numbers of the trade-off",
    rows: points,
    size: 10,
    columns: [
      { label: "line", value: (point) => names.get(lineIndexOf(point.cell)), name: true },
      amount(memory, "memory"),
      amount(time, "time"),
      { label: "on the front", value: (point) => (point.front ? "yes" : "no") },
      { label: "record", value: (point) => CELLS.key[point.cell] },
    ],
  });
}
