// Sizes, axes and colours of charts.

import { variable } from "./dom.js";
import { state } from "./state.js";

// Widths on paper, which is narrower than a screen.
const WIDE = 690;
const NARROW = 330;
// Largest number of positions that all have ticks, as in the figures.
const MOST_TICKS = 8;

export function widthOf(node) {
  const width = node.closest(".multiples") ? NARROW : WIDE;
  return state.look.printed ? Math.min(width, node.clientWidth || width) : node.clientWidth || width;
}

// Nothing on paper reacts.
export function sheet(node) {
  return state.look.printed ? { width: widthOf(node), height: node.clientHeight || 380, autosize: false } : {};
}

// A layout in the colours of the theme.
export function themed(layout) {
  const [ink, soft, grid, rule] = ["--ink", "--soft", "--grid", "--rule"].map(variable);
  const axis = { gridcolor: grid, linecolor: rule, zerolinecolor: rule, tickfont: { color: soft }, automargin: true };
  const font = { color: ink, size: 12 };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", ...font },
    margin: { l: 64, r: 16, t: 14, b: 46 },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { bgcolor: variable("--paper"), bordercolor: soft, font, align: "left", namelength: 0 },
    dragmode: false,
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}

// The colour of a line in charts, which are drawn anew when the theme changes, and in keys, which follow it.
export const colourOf = (line) => variable(`--c${line.look.colour}`);
export const keyColour = (index) => `var(--c${index})`;

export const axisTitle = (text) => ({ text, standoff: 8, font: { size: 12, color: variable("--soft") } });

// The ticks of an axis with these places: the places themselves if they are few, on an axis on which doubles lie at equal distances,
// or where their numbers fit next to each other.
export function ticksAt(places, node, doubles) {
  const tickvals = [...new Set(places)].sort((a, b) => a - b);
  const own = { tickmode: "array", tickvals, ticktext: tickvals.map(String) };
  if (doubles) return { type: "log", ...own };
  const range = tickvals.at(-1) - tickvals[0];
  const wide = Math.max(32, 12 + 8 * Math.max(...own.ticktext.map((text) => text.length)));
  const room = widthOf(node) - 100;
  const closest = Math.min(...tickvals.slice(1).map((place, index) => place - tickvals[index]));
  if (tickvals.length <= MOST_TICKS && wide * range < room * closest) return own;
  // Every position, every second one and so on.
  if (range > 16 || !tickvals.every(Number.isInteger)) return {};
  return { tickmode: "linear", tick0: 0, dtick: [1, 2, 4].find((step) => (wide * range) / step < room) ?? 8 };
}

// Keeps level lines looking level.
export function levelRange(values, [size]) {
  const [low, high] = [Math.min(...values) / size, Math.max(...values) / size];
  return high - low < 0.05 * high ? { range: [Math.max(0, low - 0.05 * high), high + 0.05 * high] } : {};
}

// Bars from each value to the ends of its interval.
export function errorBars(above, below, colour, width) {
  return { type: "data", symmetric: false, array: above, arrayminus: below, color: colour, thickness: 0.8, width };
}

export const CROSS = { symbol: "x-thin", size: 10 };

// Crosses over points of this size whose times were disturbed, as a list of traces.
export function crossesOver(x, y, size, colour) {
  const marker = { ...CROSS, size: size + 6, line: { color: colour, width: 1 } };
  return x.length ? [{ x, y, mode: "markers", hoverinfo: "skip", marker }] : [];
}

// A range with room next to its values for names of points, which keeps level values looking level.
export function roomyRange(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = Math.max(high - low, 0.1 * high, 1e-12);
  const middle = (low + high) / 2;
  return [middle - 0.64 * span, middle + 0.64 * span];
}
