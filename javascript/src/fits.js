// The largest networks that fit: memory over the axis, continued along its line, against the sizes of common GPUs.

import { addChart, redraw } from "./charts.js";
import { axisNow, cellsOf, DATA, figure, isGood, LINES, METRICS, placeOf } from "./data.js";
import { byId, note } from "./dom.js";
import { chosenLines, namesOf } from "./filters.js";
import { keyOf, keys } from "./keys.js";
import { axisTitle, colourOf } from "./layout.js";
import { MOST_LINES } from "./state.js";
import { makeTable } from "./tables.js";
import { grouped, heightOn, placeText, plotText, plural, quantity } from "./words.js";

const [FIRST, SECOND] = ["reserved", "peak"];
const GIB = 2 ** 30;
const DEEPEST = 100_000;

// A line's memory can be continued if it lies exactly on a line that rises.
function fitOf(index) {
  const name = [FIRST, SECOND].find((one) => LINES[index].fits[one]?.shape === "line" && LINES[index].fits[one].slope > 0);
  return name ? { index, metric: METRICS[name], fit: LINES[index].fits[name] } : null;
}

const fitted = () => chosenLines().map(fitOf).filter(Boolean).slice(0, MOST_LINES);

// The last position whose memory is at most that of a GPU; null if even the first one does not fit.
function largest({ fit }, nbytes) {
  const place = Math.floor((nbytes - fit.intercept) / fit.slope);
  return place < 1 ? null : Math.min(place, DEEPEST);
}

export function startFits() {
  addChart(byId("fits-chart"), buildFits);
}

export function drawFits() {
  const found = DATA.gpus.length ? fitted() : [];
  byId("fits").hidden = !found.length;
  document.querySelector(".bar a[href='#fits']").parentElement.hidden = !found.length;
  if (!found.length) return;
  redraw(byId("fits-chart"));
  const names = namesOf(found.map(({ index }) => index));
  const { unit } = DATA.axes[axisNow()];
  const text =
    `Solid as far as it was measured, dotted beyond: memory continued along its line (${quantitiesText(found)}). ` +
    `Dashed levels: what a GPU has for a process's tensors, without CUDA's context. A device needs room for fragments beside it.`;
  byId("fits-caption").replaceChildren(keys(found.map(({ index }) => keyOf(LINES[index], names.get(index)))), note(text));
  makeTable(byId("fits-table"), "fits-table", {
    name: `The most ${unit}s that fit`,
    rows: found,
    columns: [
      { label: "line", value: ({ index }) => names.get(index), name: true },
      { label: "memory", value: ({ metric }) => metric.title },
      ...DATA.gpus.map((gpu) => ({
        label: gpu.title,
        value: (one) => largest(one, gpu.bytes) ?? 0,
        text: (one) => fitText(largest(one, gpu.bytes)),
        number: true,
      })),
    ],
  });
}

const quantitiesText = (found) => [...new Set(found.map(({ metric }) => metric.title))].join(" or ");
const fitText = (place) => (place === null ? "none" : place === DEEPEST ? `over ${grouped(DEEPEST)}` : grouped(place));

function buildFits() {
  const found = fitted();
  if (!found.length) return { empty: "No chosen line has a memory that rises along a line." };
  const most = Math.max(...found.map((one) => largest(one, DATA.gpus.at(-1).bytes) ?? 1));
  const first = Math.min(...found.flatMap(({ index }) => cellsOf(index).map(placeOf)).filter((place) => place > 0));
  const layout = {
    margin: { l: 64, r: 116, t: 14, b: 46 },
    xaxis: { title: axisTitle(DATA.axes[axisNow()].label), type: "log", range: [Math.log10(first), Math.log10(1.2 * most)] },
    yaxis: { title: axisTitle("GiB"), type: "log" },
    shapes: DATA.gpus.map(levelOf),
    annotations: DATA.gpus.map(levelName),
  };
  const label = `The memory of ${plural(found.length, "line")} against the sizes of GPUs; the largest networks are in a table below.`;
  return { data: found.flatMap((one) => tracesOf(one, most)), layout, label };
}

const RIM = { xref: "paper", yref: "y" };

function levelOf({ bytes }) {
  const line = { color: "#888888", width: 1, dash: "dash" };
  return { type: "line", ...RIM, x0: 0, x1: 1, y0: bytes / GIB, y1: bytes / GIB, line };
}

function levelName({ bytes, title }) {
  const where = { ...RIM, x: 1.005, y: Math.log10(bytes / GIB), xanchor: "left", yanchor: "middle" };
  return { ...where, text: plotText(title), showarrow: false, font: { size: 10.5 } };
}

// The measured part of a line, and what lies beyond it.
function tracesOf({ index, metric, fit }, most) {
  const cells = cellsOf(index).filter((cell) => isGood(cell, metric));
  const places = cells.map(placeOf);
  const [colour, last] = [colourOf(LINES[index]), Math.max(1, ...places)];
  const beyond = [last];
  while (beyond.at(-1) < most) beyond.push(Math.min(most, beyond.at(-1) * 1.25));
  const name = plotText(LINES[index].short);
  const hover = (place, value) => `<b>${name}</b><br>${plotText(placeText(axisNow(), place))}: ${quantity(value, true)}`;
  const { look } = LINES[index];
  return [
    {
      x: places,
      y: cells.map((cell) => figure(cell, metric) / GIB),
      mode: "lines+markers",
      line: { color: colour, width: 1.6 },
      marker: { symbol: look.symbol, size: look.size, color: colour },
      hoverinfo: "text",
      hovertext: cells.map((cell) => hover(placeOf(cell), figure(cell, metric))),
    },
    {
      x: beyond,
      y: beyond.map((place) => heightOn(fit, place) / GIB),
      mode: "lines",
      line: { color: colour, width: 1.4, dash: "dot" },
      hoverinfo: "text",
      hovertext: beyond.map((place) => hover(Math.floor(place), heightOn(fit, Math.floor(place)))),
    },
  ];
}
