// Memory against time at one position on the axis, as a basis for a choice.

import { addChart, redraw } from "./charts.js";
import { axisNow, CELLS, DATA, figure, isGood, LINES, lineIndexOf, lineOf, METRICS, placeOf, statusOf } from "./data.js";
import { byId, field, note, variable } from "./dom.js";
import { chosenCells, metricOptions, namesOf } from "./filters.js";
import { keyOf, keys, moreKeys } from "./keys.js";
import { axisTitle, colourOf, levelRange } from "./layout.js";
import { change, MOST_LINES, state } from "./state.js";
import { selectCell } from "./step.js";
import { makeTable } from "./tables.js";
import { exactly, hoverText, placeText, plural, unitFor } from "./words.js";

const metricsNow = () => [METRICS[state.tradeoff.memory], METRICS[state.tradeoff.time]];
const linesOf = (points) => [...new Set(points.map((point) => lineIndexOf(point.cell)))];

export const startTradeoff = () => addChart(byId("tradeoff-chart"), buildTradeoff, selectCell);

export function drawTradeoff() {
  const good = chosenCells().filter((cell) => statusOf(cell) === "ok");
  const places = [...new Set(good.filter((cell) => !lineOf(cell).lacks).map(placeOf))].sort((a, b) => a - b);
  // A position that the filters leave out cannot stay chosen.
  if (!places.includes(state.tradeoff.place)) state.tradeoff.place = places.at(-1);
  drawControls(places);
  redraw(byId("tradeoff-chart"));
  const points = tradePoints();
  drawCaption(points);
  drawNumbers(points);
}

function drawControls(places) {
  const { memory, time, place } = state.tradeoff;
  const choose =
    (name, of = (value) => value) =>
    (value) =>
      change(state.tradeoff, { [name]: of(value) });
  const texts = places.map((one) => [String(one), String(one)]);
  const focused = document.activeElement?.id;
  const controls = byId("tradeoff-controls");
  controls.replaceChildren();
  if (!memory || !time || !places.length) return;
  const memories = metricOptions((metric) => metric.bytes);
  const times = metricOptions((metric) => !metric.bytes);
  controls.append(field(DATA.axes[axisNow()].title, texts, String(place), choose("place", Number), "trade-place"));
  controls.append(field("Memory", memories, memory, choose("memory"), "trade-memory"));
  controls.append(field("Time", times, time, choose("time"), "trade-time"));
  if (focused && controls.querySelector(`#${CSS.escape(focused)}`)) byId(focused).focus();
}

// The options that decide how much work a step is: only records that agree in them can beat each other.
const workOf = ({ cell }) => JSON.stringify([lineOf(cell).dataset, lineOf(cell).batch_size]);

// The records at this position that have both figures, with those of networks that lack the axis; no record of the same work beats those on the front.
export function tradePoints() {
  const [memory, time] = metricsNow();
  if (!memory || !time) return [];
  const isThere = (cell) => lineOf(cell).lacks || placeOf(cell) === state.tradeoff.place;
  const isShown = (cell) => isThere(cell) && isGood(cell, memory) && isGood(cell, time);
  const pointOf = (cell) => ({ cell, memory: figure(cell, memory), time: figure(cell, time), front: false });
  const points = chosenCells().filter(isShown).map(pointOf);
  const best = new Map();
  for (const point of [...points].sort((a, b) => a.time - b.time || a.memory - b.memory)) {
    if (isBeaten(point, best.get(workOf(point)))) continue;
    point.front = true;
    best.set(workOf(point), point);
  }
  return points;
}

// A record that equals the last one in both is beaten by it in neither.
function isBeaten(point, last) {
  return last && point.memory >= last.memory && (point.memory > last.memory || point.time > last.time);
}

function buildTradeoff() {
  const points = tradePoints();
  if (!points.length) return { empty: "No chosen cell has both memory and time at one position." };
  const [memory, time] = metricsNow();
  const [memories, times] = [points.map((point) => point.memory), points.map((point) => point.time)];
  const [across, up] = [unitFor(times, false), unitFor(memories, true)];
  const scaled = (some) => ({
    x: some.map((point) => point.time / across[0]),
    y: some.map((point) => point.memory / up[0]),
  });
  const pointsOf = (index) => points.filter((point) => lineIndexOf(point.cell) === index);
  const data = [
    ...frontsOf(points).map((front) => ({ ...scaled(front), ...frontStyle() })),
    ...linesOf(points).map((index) => ({ ...scaled(pointsOf(index)), ...pointsStyle(index, pointsOf(index)) })),
  ];
  const layout = {
    xaxis: { title: axisTitle(`${time.title}, ${across[1]} per step`), ...levelRange(times, across) },
    yaxis: { title: axisTitle(`${memory.title}, ${up[1]}`), ...levelRange(memories, up) },
  };
  const what = `${memory.title} against ${time.title} at ${placeText(axisNow(), state.tradeoff.place)}`;
  return { data, layout, label: `${what}, ${plural(points.length, "record")}; the numbers are in a table below.` };
}

// The points on the front of each amount of work, in the order of time.
function frontsOf(points) {
  const front = points.filter((point) => point.front).sort((a, b) => a.time - b.time);
  return [...new Set(front.map(workOf))].map((work) => front.filter((point) => workOf(point) === work));
}

function frontStyle() {
  return { mode: "lines", line: { color: variable("--soft"), width: 1.2, shape: "hv", dash: "dot" }, hoverinfo: "skip" };
}

function pointsStyle(index, points) {
  const { look } = LINES[index];
  const [colour, paper] = [colourOf(LINES[index]), variable("--paper")];
  const marker = {
    opacity: 1,
    symbol: look.symbol,
    size: points.map((point) => look.size + (point.front ? 4 : 0)),
    color: points.map((point) => (point.front ? colour : paper)),
    line: { color: colour, width: 1.6 },
  };
  const hovertext = points.map((point) => hoverText(point.cell, metricsNow()));
  return { mode: "markers", customdata: points.map((point) => point.cell), hovertext, hoverinfo: "text", marker };
}

function drawCaption(points) {
  const front = new Set(linesOf(points.filter((point) => point.front)));
  // Lines on the front come first, since the choice is among them.
  const indices = linesOf(points).sort((a, b) => front.has(b) - front.has(a) || a - b);
  const names = namesOf(indices);
  const nameOf = (index) => names.get(index) + (front.has(index) ? " (on the front)" : "");
  const entry = (index) => ({ ...keyOf(LINES[index], nameOf(index)), dash: null });
  const several = new Set(points.map(workOf)).size > 1 ? " Each batch size of each data set has a front of its own." : "";
  const text = `Filled markers lie on the front, which the dotted line joins: less of one only for more of the other.${several}`;
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
