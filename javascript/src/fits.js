// The largest networks that may fit: memory over the axis, continued beyond what was measured, against the sizes of common GPUs.

import { addChart, redraw } from "./charts.js";
import { axisNow, cellsOf, DATA, figure, isGood, LINES, METRICS, placeOf } from "./data.js";
import { byId, note, variable } from "./dom.js";
import { chosenLines, namesOf } from "./filters.js";
import { keyOf, keys } from "./keys.js";
import { axisTitle, colourOf } from "./layout.js";
import { MOST_LINES } from "./state.js";
import { makeTable } from "./tables.js";
import { grouped, heightOn, placeText, plotText, plural, positionText, quantity } from "./words.js";

// The unit in which the sizes of GPUs are given.
const [GIB, GIB_NAME] = DATA.units.bytes[0];
const DEEPEST = 100_000;

// The memory of a line that can be continued; null if it cannot.
function fitOf(index) {
  const { continued } = LINES[index];
  return continued && { index, metric: METRICS[continued.metric], terms: continued.terms };
}

const fitted = () => chosenLines().map(fitOf).filter(Boolean).slice(0, MOST_LINES);

// The least memory at a position: the largest of the line of the peak and those of what is alive at the end of each phase.
const leastAt = (terms, place) => Math.max(...terms.map((term) => heightOn(term, place)));

// The last position whose least memory is at most that of a GPU; null if even the first one does not fit.
function largest({ terms }, nbytes) {
  const fits = (place) => leastAt(terms, place) <= nbytes;
  if (!fits(1)) return null;
  let [fitting, failing] = [1, DEEPEST + 1];
  while (failing - fitting > 1) {
    const middle = Math.floor((fitting + failing) / 2);
    if (fits(middle)) fitting = middle;
    else failing = middle;
  }
  return fitting;
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
  const alike = found.length > 1 && new Set(found.map(answersOf)).size === 1;
  const text =
    `Solid as far as it was measured, dotted beyond: the least memory (${quantitiesText(found)}) of a larger network, which is on ` +
    `its line or on that of all that is alive at the end of forward or of backward, whichever is higher. ${driftText(found)}${alike ? alikeText(unit, found[0]) : ""}` +
    `Numbers beyond the measured ones have two digits and an “about”, since they are continued from few positions. ` +
    `Dashed levels: what a GPU has for a process's tensors, without CUDA's context. A device needs room for fragments as well.`;
  byId("fits-caption").replaceChildren(keys(found.map(({ index }) => keyOf(LINES[index], names.get(index)))), note(text));
  makeTable(byId("fits-table"), "fits-table", {
    name: `The most ${unit}s that may fit`,
    rows: alike ? found.slice(0, 1) : found,
    columns: [
      { label: "line", value: ({ index }) => (alike ? `all ${found.length} lines` : names.get(index)), name: true },
      { label: "memory", value: ({ metric }) => metric.title },
      { label: "from", value: measuredAt },
      ...DATA.gpus.map((gpu) => ({
        label: gpu.title,
        value: (one) => largest(one, gpu.bytes) ?? 0,
        text: (one) => fitText(one, largest(one, gpu.bytes)),
        number: true,
      })),
    ],
  });
}

const quantitiesText = (found) => [...new Set(found.map(({ metric }) => metric.title))].join(" or ");

// The positions that a line was measured at, on which its answers rest.
function measuredAt({ index, metric }) {
  const cells = cellsOf(index).filter((cell) => isGood(cell, metric));
  const places = [...new Set(cells.map(placeOf))].sort((one, other) => one - other);
  const texts = places.map((place) => positionText(axisNow(), place));
  const shown = texts.length > 4 ? `${texts[0]} to ${texts.at(-1)}` : texts.join(", ");
  return placeText(axisNow(), shown);
}

// A number as far as it is known: whole up to the last measured position, and beyond it two digits, which are never too many.
function fitText({ index }, place) {
  if (place === null) return "none";
  if (place === DEEPEST) return `over ${grouped(DEEPEST)}`;
  // Images of a side are known as far as their number of pixels is.
  const { square } = DATA.axes[axisNow()];
  const inWords = (number) => (square ? `${grouped(number)} × ${grouped(number)}` : grouped(number));
  const number = square ? Math.floor(Math.sqrt(place)) : place;
  if (place <= Math.max(...cellsOf(index).map(placeOf))) return inWords(number);
  const step = 10 ** Math.max(0, Math.floor(Math.log10(number)) - 1);
  return `about ${inWords(Math.floor(number / step) * step)}`;
}

const answersOf = (one) =>
  JSON.stringify([one.metric.name, measuredAt(one), DATA.gpus.map((gpu) => fitText(one, largest(one, gpu.bytes)))]);

// The reason that all lines have one answer: what one more unit of the axis adds where memory is highest, unless that is a curve.
function alikeText(unit, { terms }) {
  const far = leastAt(terms, DEEPEST);
  const { shape, slope } = terms.find((term) => heightOn(term, DEEPEST) === far);
  if (shape !== "line") return "All lines have one answer. ";
  return `All lines have one answer, since each further ${unit} adds about ${quantity(slope, true)} to the least memory of every one. `;
}

// The inverse `float` retains nothing at any depth, but gives usable gradients only to some depth.
function driftText(found) {
  if (axisNow() !== "blocks" || !found.some(({ index }) => LINES[index].inverse === "float")) return "";
  return "The inverse float drifts in deep stacks, where another inverse is needed that retains more with each block. ";
}

function buildFits() {
  const found = fitted();
  if (!found.length) return { empty: "No chosen line has a memory that rises along a line." };
  const most = Math.max(...found.map((one) => largest(one, DATA.gpus.at(-1).bytes) ?? 1));
  const first = Math.min(...found.flatMap(({ index }) => cellsOf(index).map(placeOf)).filter((place) => place > 0));
  const layout = {
    margin: { l: 64, r: 116, t: 14, b: 46 },
    xaxis: { title: axisTitle(DATA.axes[axisNow()].label), type: "log", range: [Math.log10(first), Math.log10(1.2 * most)] },
    yaxis: { title: axisTitle(GIB_NAME), type: "log" },
    shapes: DATA.gpus.map(levelOf),
    annotations: DATA.gpus.map(levelName),
  };
  const label = `The memory of ${plural(found.length, "line")} against the sizes of GPUs; the largest networks are in a table below.`;
  return { data: found.flatMap((one) => tracesOf(one, most)), layout, label };
}

const RIM = { xref: "paper", yref: "y" };

function levelOf({ bytes }) {
  const line = { color: variable("--pale"), width: 1, dash: "dash" };
  return { type: "line", ...RIM, x0: 0, x1: 1, y0: bytes / GIB, y1: bytes / GIB, line };
}

function levelName({ bytes, title }) {
  const where = { ...RIM, x: 1.005, y: Math.log10(bytes / GIB), xanchor: "left", yanchor: "middle" };
  return { ...where, text: plotText(title), showarrow: false, font: { size: 10.5 } };
}

// The measured part of a line, and what lies beyond it.
function tracesOf({ index, metric, terms }, most) {
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
      y: beyond.map((place) => leastAt(terms, place) / GIB),
      mode: "lines",
      line: { color: colour, width: 1.4, dash: "dot" },
      hoverinfo: "text",
      hovertext: beyond.map((place) => hover(Math.floor(place), leastAt(terms, Math.floor(place)))),
    },
  ];
}
