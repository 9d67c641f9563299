// The memory inside one step, allocation by allocation.

import { addChart } from "./charts.js";
import { CELLS } from "./data.js";
import { element, factList, note, shortened, variable } from "./dom.js";
import { axisTitle, keyColour, widthOf } from "./layout.js";
import { exactBytes, grouped, plotText, quantity, unitFor } from "./words.js";

const bytesOf = (value) => quantity(value, true);
const atTop = { yref: "paper", yanchor: "bottom", showarrow: false };

// The chart of a timeline with its key and caption, and facts about its peak; `cell` is the record that it belongs to, or null.
export function timelineParts(timeline, cell) {
  const node = element("div", { class: "chart tall" });
  addChart(node, () => buildTimeline(node, timeline));
  const key = element("ul", { class: "keys short" }, ...timeline.categories.map(categoryKey));
  const caption = element("figcaption", {}, key, note(timeline.caption.join(". ")));
  return [element("figure", {}, node, caption), factList(factsOf(timeline, cell))];
}

// A colour of Python's that follows the theme: a place in the palette, or a colour that suits both themes.
export const keyFill = (colour) => (Number.isInteger(colour) ? keyColour(colour) : colour);

function categoryKey({ name, colour, atPeak }) {
  const block = element("span", { class: "block", "aria-hidden": "true" });
  block.style.background = keyFill(colour);
  return element("li", {}, block, element("span", {}, `${name}: ${bytesOf(atPeak)} at the peak`));
}

function factsOf({ peak, path }, cell) {
  const facts = [
    ["peak", `${bytesOf(peak.allocated)} (${exactBytes(peak.allocated)}) in ${peak.phase}`],
    ["operator", peak.operator || "none, or not known"],
    ["module", peak.module ?? "not known"],
    ["left over", exactBytes(peak.leftOver)],
    ["from", path || "memory"],
  ];
  if (cell === null) {
    return [...facts, ["of", "no record of these reports: it is in none of their folders, or was made with other options"]];
  }
  const own = CELLS.peak_allocated_bytes[cell];
  if (own === null || own === peak.allocated) return facts;
  return [...facts, ["differs", `the record’s own peak is ${bytesOf(own)} (${exactBytes(own)})`]];
}

function buildTimeline(node, timeline) {
  const { peak, phases } = timeline;
  const unit = unitFor([peak.total], true);
  const height = peak.total / unit[0];
  const layout = {
    annotations: [peakNote(node, peak, height), ...phases.map(phaseName)],
    shapes: phases.map(phaseEnd),
    margin: { l: 64, r: 16, t: 30, b: 46 },
    xaxis: {
      title: axisTitle("allocations and frees, in their order"),
      range: [0, 1],
      tickvals: phases.map((phase) => phase.last),
      ticktext: phases.map((phase) => grouped(phase.event)),
    },
    yaxis: { title: axisTitle(`${unit[1]} allocated`), range: [0, 1.3 * height] },
  };
  const data = [...timeline.categories.map((category) => categoryTrace(timeline, category, unit)), peakTrace(peak, height)];
  const label = `Memory inside the step: peak ${bytesOf(peak.allocated)} in ${peak.phase}; its categories are listed below.`;
  return { data, layout, label };
}

const fillOf = ({ colour }) => (Number.isInteger(colour) ? variable(`--c${colour}`) : colour);

function categoryTrace(timeline, category, unit) {
  const name = plotText(category.name);
  const text = (value, index) => {
    return `${name}: <b>${bytesOf(value)}</b> (${exactBytes(value)})<br>event ${grouped(timeline.events[index])}`;
  };
  const points = { x: timeline.places, y: category.bytes.map((value) => value / unit[0]), mode: "lines", stackgroup: "alive" };
  const style = { line: { width: 0.5, shape: "hv", color: variable("--paper") }, fillcolor: fillOf(category) };
  return { ...points, ...style, hoverinfo: "text", hovertext: category.bytes.map(text) };
}

function peakTrace(peak, height) {
  const words = [`peak <b>${bytesOf(peak.allocated)}</b>`, plotText(peak.operator || ""), plotText(peak.module || "")];
  const line = { color: variable("--ink"), width: 1.5 };
  const marker = { symbol: "triangle-down", size: 11, color: variable("--paper"), line };
  return { x: [peak.place], y: [height], mode: "markers", hoverinfo: "text", hovertext: [words.join("<br>")], marker };
}

function peakNote(node, peak, height) {
  const side = peak.place > 0.5 ? "right" : "left";
  // As many characters as stand between the peak and the farther end.
  const room = Math.floor((Math.max(peak.place, 1 - peak.place) * (widthOf(node) - 80)) / 6.5);
  const words = [`peak ${bytesOf(peak.allocated)}`, peak.operator, peak.module].filter(Boolean);
  const text = words.map((word) => plotText(shortened(word, Math.min(40, room)))).join("<br>");
  const where = { x: peak.place, y: height, align: side, xanchor: side, yanchor: "bottom", yshift: 10 };
  return { ...where, text, showarrow: false, font: { size: 11 }, bgcolor: variable("--paper") };
}

function phaseName({ first, last, name }) {
  return { x: (first + last) / 2, y: 1.02, ...atTop, text: plotText(name), font: { size: 11, color: variable("--soft") } };
}

function phaseEnd({ last }) {
  const line = { color: variable("--soft"), width: 0.8, dash: "dash" };
  return { type: "line", x0: last, x1: last, y0: 0, y1: 1, yref: "paper", line };
}
