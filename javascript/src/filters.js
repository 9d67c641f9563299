// Filters for the whole page, and the lines that they let through.

import { cellsOf, DATA, drawAlong, hasFigure, LINES, statusOf } from "./data.js";
import { byId, field } from "./dom.js";
import { ALL, change, MOST_LINES, state } from "./state.js";
import { quantity } from "./words.js";

const FILTERS = DATA.options.filters;
const NONE = "";

const optionOf = (line, name) => String(line[name] ?? NONE);

// The chosen lines, by their indices; the filter `ignored` does not count.
export function chosenLines(ignored) {
  const counting = FILTERS.filter(({ name }) => name !== ignored && state.filters[name] !== ALL);
  const isChosen = (index) => counting.every(({ name }) => optionOf(LINES[index], name) === state.filters[name]);
  return [...LINES.keys()].filter(isChosen);
}

export const chosenCells = () => chosenLines().flatMap(cellsOf);

// Running out of memory is a result too.
const says = (index, metric) => cellsOf(index).some((cell) => hasFigure(cell, metric) || statusOf(cell) === "oom");
const QUANTITIES = LINES.map((_, index) => DATA.metrics.filter((metric) => says(index, metric)).length);

// The lines that a figure has room for. Those with most quantities come first, so that neighbouring figures draw the same if they can.
export function drawnLines(metric) {
  const chosen = chosenLines().filter((index) => says(index, metric));
  const drawn = [...chosen].sort((a, b) => QUANTITIES[b] - QUANTITIES[a] || a - b).slice(0, MOST_LINES);
  return { drawn: drawn.sort((a, b) => a - b), all: chosen.length };
}

export function metricOptions(test = () => true) {
  return DATA.metrics.filter(test).map((metric) => [metric.name, metric.title]);
}

// Names of lines shown together, without their report and data set if they share both.
export function namesOf(indices) {
  const shared = new Set(indices.map((index) => JSON.stringify([LINES[index].report, LINES[index].dataset]))).size < 2;
  return new Map(indices.map((index) => [index, shared ? LINES[index].short : LINES[index].label]));
}

// An option that a line does not have distinguishes nothing, unless lines of one model differ in having it.
function differs({ name }) {
  const [all, models] = [new Set(), new Map()];
  for (const line of LINES) {
    const value = optionOf(line, name);
    if (value !== NONE) all.add(value);
    models.set(line.model, (models.get(line.model) ?? new Set()).add(value));
  }
  return all.size > 1 || [...models.values()].some((values) => values.size > 1);
}

// A machine, by its processor or GPU and the key in its records.
function machineTitle(key) {
  const { titles } = DATA.environments;
  const title = Object.hasOwn(titles, key) && titles[key];
  return title ? `${title} (${key})` : key;
}

const TITLES = {
  axis: (line) => DATA.axes[line.axis].title,
  dataset: (line) => line.datasetTitle,
  environment: (line) => machineTitle(line.environment),
};

function valueTitle(line, { name, none, bytes }) {
  if (optionOf(line, name) === NONE) return none;
  if (TITLES[name]) return TITLES[name](line);
  return bytes ? quantity(line[name], true) : optionOf(line, name);
}

// With too many lines only the latest report is shown, and lines of two data sets cannot be compared well.
function firstChoice({ name }) {
  if (name === "axis") return (LINES.find((line) => line.report === DATA.latest) ?? LINES[0]).axis;
  if (name === "report" && LINES.length > MOST_LINES) return DATA.latest;
  return name === "dataset" ? optionOf(LINES[chosenLines()[0] ?? 0], name) : ALL;
}

export function startFilters() {
  const form = byId("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const filter of FILTERS.filter(differs)) {
    const { name, title } = filter;
    state.filters[name] = firstChoice(filter);
    const titles = new Map(LINES.map((line) => [optionOf(line, name), valueTitle(line, filter)]));
    const choose = (value) => {
      if (name === "axis") drawAlong(value);
      change(state.filters, { [name]: value });
    };
    // Lines along different axes share no chart.
    const all = name === "axis" ? [] : [[ALL, "all"]];
    form.append(field(title, [...all, ...titles], state.filters[name], choose, `filter-${name}`));
    if (name === "axis") drawAlong(state.filters.axis);
  }
}

// A heading that is jumped to must lie beneath the bar that stays at the top.
export function clearHeadings() {
  const form = byId("filters");
  const sticks = getComputedStyle(form).position === "sticky";
  document.documentElement.style.scrollPaddingTop = `${56 + (sticks ? form.offsetHeight + 8 : 0)}px`;
}
