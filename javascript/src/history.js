// Slopes from report to report, with the gate's verdicts.

import { addChart, redraw } from "./charts.js";
import { DATA, LINES, METRICS } from "./data.js";
import { badge, bullets, byId, details, element, field, note, shortened, variable } from "./dom.js";
import { chosenLines } from "./filters.js";
import { keyOf, keys } from "./keys.js";
import { axisTitle, colourOf, errorBars } from "./layout.js";
import { change, MOST_LINES, state } from "./state.js";
import { makeTable } from "./tables.js";
import { moment, plotText, plural, slopeText, unitFor } from "./words.js";

const { points: POINTS, series: SERIES } = DATA.history;

const fitOf = (index) => LINES[index].fits[state.history.metric];
// A series is known by its latest line.
const latestOf = (pairs) => LINES[pairs.at(-1)[1]];

export function startHistory() {
  const indices = SERIES.flat().map(([, index]) => index);
  const fitted = DATA.metrics.filter((metric) => indices.some((index) => LINES[index].fits[metric.name]));
  if (fitted.length) startChart(fitted);
  else
    byId("history-chart").replaceWith(
      element("p", { class: "empty" }, "No two of these reports share a line whose slope is known."),
    );
  startVerdicts();
}

function startChart(fitted) {
  state.history.metric = (fitted.find((metric) => metric.name === "retained") ?? fitted[0]).name;
  const options = fitted.map((metric) => [metric.name, metric.title]);
  const choose = (metric) => change(state.history, { metric });
  byId("history-controls").append(field("Quantity", options, state.history.metric, choose, "history-metric"));
  addChart(byId("history-chart"), buildHistory);
}

export function drawHistory() {
  if (!state.history.metric) return;
  redraw(byId("history-chart"));
  const nameOf = (pairs) => `${latestOf(pairs).short}, ${LINES[pairs[0][1]].datasetTitle}`;
  const entries = shownSeries().map((pairs) => keyOf(latestOf(pairs), nameOf(pairs)));
  const text =
    "Reports are in the order of time. The verdict is that of capsbench check, with the oldest report as the baseline.";
  byId("history-caption").replaceChildren(keys(entries), note(text));
}

function shownSeries() {
  const chosen = new Set(chosenLines("report"));
  const known = SERIES.map((pairs) => pairs.filter(([, index]) => chosen.has(index) && fitOf(index)));
  return known.filter((pairs) => pairs.length > 1).slice(0, MOST_LINES);
}

// The verdict on a report in a word or two signs; the oldest one has none.
function verdictOf({ verdict, passed }, unknown) {
  if (!verdict) return "";
  if (passed === undefined) return unknown;
  return passed ? "passed" : "failed";
}

function tickText(point) {
  const verdict = verdictOf(point, "?");
  return plotText(shortened(point.commits[0] ?? point.name, 14)) + (verdict && `<br>${verdict}`);
}

function buildHistory() {
  const metric = METRICS[state.history.metric];
  const series = shownSeries();
  if (!series.length) return { empty: "No chosen line is in two reports." };
  const fits = series.flat().map(([, index]) => fitOf(index));
  const unit = unitFor(
    fits.map((fit) => fit.slope),
    metric.bytes,
  );
  const layout = {
    xaxis: { tickvals: [...POINTS.keys()], ticktext: POINTS.map(tickText), range: [-0.5, POINTS.length - 0.5] },
    yaxis: { title: axisTitle(`${metric.title}, ${unit[1]} per ${fits[0].per}`) },
  };
  const data = series.map((pairs) => seriesTrace(pairs, unit));
  return { data, layout, label: `Slope of ${metric.title} over ${POINTS.length} reports` };
}

// A slope that cannot be distinguished from 0 stands at 0, with its bound.
const levelOf = (fit) => (fit.shape === "no change measurable" ? 0 : fit.slope);

function reachOf(fit, side, other) {
  if (fit[side] === null) return 0;
  const level = levelOf(fit);
  return Math.max(Math.abs(fit[side] - level), level ? 0 : Math.abs(fit[other]));
}

function seriesTrace(pairs, [size]) {
  const { look } = latestOf(pairs);
  const colour = colourOf(latestOf(pairs));
  const fits = pairs.map(([, index]) => fitOf(index));
  const above = fits.map((fit) => reachOf(fit, "slope_high", "slope_low") / size);
  const below = fits.map((fit) => reachOf(fit, "slope_low", "slope_high") / size);
  const marker = { symbol: look.symbol, size: look.size, color: variable("--paper"), line: { color: colour, width: 1.6 } };
  return {
    x: pairs.map(([report]) => report),
    y: fits.map((fit) => levelOf(fit) / size),
    mode: "lines+markers",
    hoverinfo: "text",
    hovertext: pairs.map(historyHover),
    line: { color: colour, width: 1.4, dash: look.dash },
    marker,
    error_y: errorBars(above, below, colour, 3),
  };
}

function historyHover([report, index]) {
  const fit = fitOf(index);
  const slope = fit.shape === "not a line" ? `slope ${fit.text} per ${fit.per} (not a line)` : slopeText(fit, "slope ");
  const [line, name] = [shortened(LINES[index].label, 60), shortened(POINTS[report].name, 60)].map(plotText);
  return `<b>${line}</b><br>${name}<br>${plotText(slope)}`;
}

function startVerdicts() {
  const verdictNode = (point) => (point.verdict ? badge(point.verdict, verdictOf(point, "open")) : "the oldest report");
  makeTable(byId("history-table"), "history-table", {
    name: "Verdicts",
    rows: POINTS,
    columns: [
      { label: "report", value: (point) => point.name, name: true },
      { label: "commit", value: (point) => point.commits.join(", ") },
      { label: "began", value: (point) => point.started, text: (point) => moment(point.started) },
      { label: `against ${shortened(POINTS[0].name, 40)}`, value: (point) => point.verdict, node: verdictNode },
      { label: "findings", value: (point) => point.findings.length, node: findingsNode },
    ],
  });
}

// The first findings, and on demand the rest and remarks on figures that could not be compared.
function findingsNode({ findings, remarks }) {
  const [first, rest] = [findings.slice(0, 3), findings.slice(3)];
  const more = rest.length ? details(`${rest.length} more`, bullets(rest)) : null;
  return element(
    "div",
    {},
    bullets(first),
    more,
    remarks.length ? details(plural(remarks.length, "remark"), bullets(remarks)) : null,
  );
}
