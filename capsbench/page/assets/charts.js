// Charts. The library is unpacked once, and all charts are drawn in one go once the page has loaded, so that a picture of the whole page,
// taken without scrolling, has them. After a change a chart in sight is drawn at once, and others when the browser is idle.

const CHARTS = new Map();
const PAPER = { on: false, wide: 690, narrow: 330 };

function unpack() {
  if (window.Plotly) return window.Plotly;
  const signs = atob(byId("library").textContent.trim());
  const packed = new Uint8Array(signs.length);
  for (let place = 0; place < signs.length; place++) packed[place] = signs.charCodeAt(place);
  const script = element("script", {});
  script.textContent = new TextDecoder().decode(inflated(packed));
  document.head.append(script);
  script.remove();
  return window.Plotly;
}

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = CHARTS.get(entry.target);
    if (!chart) continue;
    chart.seen = entry.isIntersecting;
    if (chart.seen && chart.stale) draw(entry.target);
  }
}, { rootMargin: "400px" });

const whenIdle = window.requestIdleCallback ? (work) => requestIdleCallback(work, { timeout: 500 }) : (work) => setTimeout(work, 50);
let waiting = false;

// A folded part has no size yet.
const undrawn = () => [...CHARTS.keys()].find((node) => CHARTS.get(node).stale && node.clientWidth > 0);

// Returns whether there was a chart to draw. One that cannot be drawn does not affect the others.
function drawNext() {
  const node = undrawn();
  if (!node) return false;
  try {
    draw(node);
  } catch (error) {
    reportError(error);
  }
  return true;
}

function drawRest() {
  while (drawNext());
  document.documentElement.dataset.drawn = "yes";
}

function drawWhenIdle() {
  delete document.documentElement.dataset.drawn;
  if (waiting) return;
  waiting = true;
  whenIdle(() => {
    waiting = false;
    if (drawNext()) drawWhenIdle();
    else document.documentElement.dataset.drawn = "yes";
  });
}

// Ticks and texts are chosen for a width, and again after the window has changed and come to rest.
function whenWider(work) {
  let [wide, timer] = [innerWidth, 0];
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (innerWidth !== wide) work();
      wide = innerWidth;
    }, 300);
  };
}

// `build` returns { data, layout, label, empty }: the library's data, the text for a screen reader, or the reason that there is no chart.
function chart(node, build, clicked) {
  CHARTS.set(node, { build, clicked, stale: true, seen: false });
  sight.observe(node);
  drawWhenIdle();
}

function forget(node) {
  for (const known of [...CHARTS.keys()]) {
    if (known !== node && !node.contains(known)) continue;
    sight.unobserve(known);
    CHARTS.delete(known);
    // The library may still be at work on it.
    setTimeout(() => window.Plotly && window.Plotly.purge(known), 1000);
  }
}

function redraw(node) {
  const known = CHARTS.get(node);
  if (!known) return;
  known.stale = true;
  if (known.seen) draw(node);
  else drawWhenIdle();
}

function draw(node) {
  const known = CHARTS.get(node);
  known.stale = false;
  const { data, layout, label, empty } = known.build(node);
  const Plotly = unpack();
  if (empty) {
    Plotly.purge(node);
    node.replaceChildren(element("p", { class: "empty" }, empty));
    node.removeAttribute("role");
    node.removeAttribute("aria-label");
    node.dataset.drawn = "empty";
    return;
  }
  if (node.dataset.drawn === "empty") node.replaceChildren();
  if (node.dataset.drawn === "yes" && known.paper !== PAPER.on) {
    // The library keeps the size with which a chart began.
    Plotly.purge(node);
    node.dataset.drawn = "empty";
  }
  known.paper = PAPER.on;
  Plotly.react(node, data, { ...themed(layout), ...sheet(node) }, { displayModeBar: false, responsive: true, displaylogo: false });
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", label);
  if (node.dataset.drawn !== "yes" && known.clicked) {
    node.on("plotly_click", (event) => {
      const cell = event.points[0] && event.points[0].customdata;
      if (Number.isInteger(cell)) known.clicked(cell);
    });
  }
  node.dataset.drawn = "yes";
}

function drawAll() {
  for (const node of CHARTS.keys()) draw(node);
}

// A sheet of paper is narrower than a screen, and nothing on it reacts.
function sheet(node) {
  return PAPER.on ? { width: widthOf(node), height: node.clientHeight || 380, autosize: false } : {};
}

function widthOf(node) {
  const width = node.closest(".multiples") ? PAPER.narrow : PAPER.wide;
  return PAPER.on ? Math.min(width, node.clientWidth || width) : node.clientWidth || width;
}

function themed(layout) {
  const ink = variable("--ink");
  const soft = variable("--soft");
  const grid = variable("--grid");
  const axis = { gridcolor: grid, linecolor: variable("--rule"), zerolinecolor: variable("--rule"), tickfont: { color: soft }, automargin: true };
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: ink },
    margin: { l: 64, r: 16, t: 14, b: 46 },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { bgcolor: variable("--paper"), bordercolor: soft, font: { color: ink, size: 12 }, align: "left", namelength: 0 },
    dragmode: false,
    ...layout,
  };
  whole.xaxis = { ...axis, ...(layout.xaxis || {}) };
  whole.yaxis = { ...axis, ...(layout.yaxis || {}) };
  return whole;
}

const axisTitle = (text) => ({ text, standoff: 8, font: { size: 12, color: variable("--soft") } });

// Every depth, every second one and so on: as many as fit beside each other.
function wholeTicks(depths, node) {
  const range = Math.max(...depths) - Math.min(...depths);
  if (range > 16) return {};
  const wide = Math.max(32, 12 + 8 * String(Math.max(...depths)).length);
  return { tickmode: "linear", tick0: 0, dtick: [1, 2, 4].find((step) => (wide * range) / step < widthOf(node) - 100) || 8 };
}

// Keeps level lines looking level.
function levelRange(values, unit) {
  const [low, high] = [Math.min(...values) / unit[0], Math.max(...values) / unit[0]];
  return high - low < 0.05 * high ? { range: [Math.max(0, low - 0.05 * high), high + 0.05 * high] } : {};
}

// The unit of an axis: that of its largest value.
function unitFor(values, isBytes) {
  const largest = Math.max(0, ...values.map(Math.abs));
  const units = isBytes ? UNITS.bytes : UNITS.seconds;
  return units.find((unit) => largest >= unit[0]) || units[units.length - 1];
}

// A slope in words: a number, the bound on a change that cannot be distinguished from 0, or that there is no line.
const perBlock = (fit) => `${fit.text} per block${fit.remarks && fit.shape === "line" ? ` (${fit.remarks})` : ""}`;
const slopeText = (fit, before = "") => (fit.shape === "not a line" ? fit.shape : fit.shape === "line" ? before + perBlock(fit) : perBlock(fit));

function hoverText(cell, metrics) {
  const line = lineOf(cell);
  const rows = [`<b>${plotText(shortened(line.label, 60))}</b>`, plotText(depthText(cell))];
  for (const metric of metrics) {
    rows.push(`${metric.title}: <b>${exactly(cell, metric)}</b>`, plotText(interval(cell, metric)));
    const fit = line.fits[metric.name];
    if (fit) rows.push(plotText(slopeText(fit, "slope ")));
  }
  if (statusOf(cell) !== "ok") rows.push(`<b>${plotText(statusOf(cell))}</b>, and in no slope: ${plotText(shortened(textOf(CELLS.message[cell]), 70))}`);
  if (metrics.some((metric) => !metric.bytes) && noiseOf(cell)) rows.push(`noisy: ${plotText(noiseOf(cell))}`);
  rows.push(plotText(shortened(recordText(cell), 70)));
  return rows.join("<br>");
}

// The key of a figure: a list, which wraps, prints and can be read aloud.
function keys(entries) {
  const list = element("ul", { class: "keys" });
  for (const entry of entries) {
    list.append(element("li", {}, swatch(entry), element("span", {}, entry.text)));
  }
  return list;
}

// The rest of a long key, made on demand.
function moreKeys(places, entry) {
  if (!places.length) return null;
  const rest = element("details", {}, element("summary", {}, `${plural(places.length, "more line")}`));
  rest.addEventListener("toggle", () => rest.childElementCount < 2 && rest.append(keys(places.map(entry))));
  return rest;
}

const SHAPES = {
  "triangle-up": "M20 3 L27 15 L13 15 Z", "triangle-down": "M20 15 L27 3 L13 3 Z", square: "M14.5 3.5 h11 v11 h-11 Z",
  circle: "M25 9 A5 5 0 1 1 15 9 A5 5 0 1 1 25 9 Z", diamond: "M20 2.5 L26.5 9 L20 15.5 L13.5 9 Z",
  cross: "M18 3 h4 v4 h4 v4 h-4 v4 h-4 v-4 h-4 v-4 h4 Z", x: "M15 4 L25 14 M25 4 L15 14", star: "M20 2 L22 7 L27 7 L23 10.5 L25 16 L20 12.5 L15 16 L17 10.5 L13 7 L18 7 Z",
};
const DASHES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" };

function swatch({ colour, symbol, dash, pale }) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("width", "52");
  svg.setAttribute("height", "18");
  svg.setAttribute("aria-hidden", "true");
  const add = (tag, attributes) => {
    const node = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    svg.append(node);
  };
  const opacity = pale ? "0.45" : "1";
  const dashes = !dash ? "" : DASHES[dash] === undefined ? dash.replaceAll("px", "").replaceAll(",", " ") : DASHES[dash];
  // Styles, since attributes know no variables: a key follows the theme by itself.
  if (dash) add("line", { x1: 1, x2: 51, y1: 9, y2: 9, style: `stroke: ${colour}`, "stroke-width": 1.8, "stroke-dasharray": dashes, opacity });
  if (symbol) add("path", { d: SHAPES[symbol], transform: "translate(6 0)", style: `stroke: ${colour}; fill: var(--paper)`, "stroke-width": 1.8, opacity });
  return svg;
}
