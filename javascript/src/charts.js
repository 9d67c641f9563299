// Charts. All of them are drawn in one go once the page has loaded, so that a picture of the whole page, taken without scrolling, has
// them. After a change a chart in sight is drawn at once, and others when the browser is idle.

import { byId, element } from "./dom.js";
import { sheet, themed } from "./layout.js";
import { plotly } from "./library.js";
import { state } from "./state.js";

// By element: functions that build the chart and follow a click, and whether it is stale, in sight, and drawn for paper.
export const CHARTS = new Map();

const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const chart = CHARTS.get(target);
      if (!chart) continue;
      chart.seen = isIntersecting;
      if (chart.seen && chart.stale) drawChart(target);
    }
  },
  { rootMargin: "400px" },
);

const whenIdle = (work) => (window.requestIdleCallback ? requestIdleCallback(work, { timeout: 500 }) : setTimeout(work, 50));
let waiting = false;

// A folded part has no size yet.
const undrawn = () => [...CHARTS.keys()].find((node) => CHARTS.get(node).stale && node.clientWidth > 0);

const allAreDrawn = () => {
  document.documentElement.dataset.drawn = "yes";
};

// Returns whether there was a chart to draw. One that cannot be drawn does not affect the others.
function drawNext() {
  const node = undrawn();
  if (!node) return false;
  try {
    drawChart(node);
  } catch (error) {
    reportError(error);
  }
  return true;
}

export function drawRest() {
  while (drawNext());
  allAreDrawn();
}

function drawWhenIdle() {
  delete document.documentElement.dataset.drawn;
  if (waiting) return;
  waiting = true;
  whenIdle(() => {
    waiting = false;
    if (drawNext()) drawWhenIdle();
    else allAreDrawn();
  });
}

// `build` returns { data, layout, label, empty }: the library's data, the text for a screen reader, or the reason that there is no chart.
export function addChart(node, build, clicked) {
  CHARTS.set(node, { build, clicked, stale: true, seen: false });
  sight.observe(node);
  drawWhenIdle();
}

// Forgets all charts inside an element.
export function forgetCharts(node) {
  for (const known of [...CHARTS.keys()].filter((one) => node.contains(one))) {
    sight.unobserve(known);
    CHARTS.delete(known);
    // The library may still be at work on it.
    setTimeout(() => window.Plotly?.purge(known), 1000);
  }
}

export function redraw(node) {
  const chart = CHARTS.get(node);
  if (!chart) return;
  chart.stale = true;
  if (chart.seen) drawChart(node);
  else drawWhenIdle();
}

export function redrawAll() {
  for (const node of CHARTS.keys()) redraw(node);
}

export function drawAll() {
  for (const node of CHARTS.keys()) if (node.clientWidth > 0) drawChart(node);
}

function drawChart(node) {
  const chart = CHARTS.get(node);
  chart.stale = false;
  const built = chart.build(node);
  if (built.empty) drawEmpty(node, built.empty);
  else drawBuilt(node, chart, built);
}

function drawEmpty(node, reason) {
  plotly().purge(node);
  node.replaceChildren(element("p", { class: "empty" }, reason));
  node.removeAttribute("role");
  node.removeAttribute("aria-label");
  node.dataset.drawn = "empty";
}

function drawBuilt(node, chart, { data, layout, label }) {
  if (node.dataset.drawn === "empty") node.replaceChildren();
  if (node.dataset.drawn === "yes" && chart.printed !== state.look.printed) {
    // The library keeps the size with which a chart began.
    plotly().purge(node);
    node.dataset.drawn = "empty";
  }
  chart.printed = state.look.printed;
  const options = { displayModeBar: false, responsive: true, displaylogo: false };
  plotly().react(node, data, { ...themed(layout), ...sheet(node) }, options);
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", label);
  if (node.dataset.drawn !== "yes" && chart.clicked) node.on("plotly_click", (event) => followClick(event, chart.clicked));
  node.dataset.drawn = "yes";
}

function followClick(event, clicked) {
  const cell = event.points[0]?.customdata;
  if (Number.isInteger(cell)) clicked(cell);
}

export function saveImage(id) {
  const node = byId(id);
  const size = { width: node.clientWidth, height: node.clientHeight };
  if (node.dataset.drawn === "yes") plotly().downloadImage(node, { format: "svg", filename: id, ...size });
}

// Ticks and texts are chosen for a width, and again after the window has changed and come to rest.
export function whenWider(work) {
  let [wide, timer] = [innerWidth, 0];
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (innerWidth !== wide) work();
      wide = innerWidth;
    }, 300);
  };
}
