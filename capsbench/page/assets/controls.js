// Controls of what is shown: filters for the whole page, and choices for single figures.

// All options that distinguish lines.
const FILTERS = DATA.options.filters;
const ALL = "*";
const NONE = "";
const CHOSEN = {};
const MOST_LINES = 12;
const listeners = [];

const optionOf = (line, name) => (line[name] === undefined || line[name] === null ? NONE : String(line[name]));

function field(label, options, value, changed, id) {
  const select = element("select", { id, onchange: () => changed(select.value) });
  for (const [key, text] of options) select.append(element("option", { value: key, title: text }, shortened(text, 60)));
  select.value = value;
  return element("label", { class: "field" }, label, select);
}

function tick(label, value, changed, id) {
  const box = element("input", { type: "checkbox", id, onchange: () => changed(box.checked) });
  box.checked = value;
  return element("label", { class: "tick" }, box, label);
}

// An option that a line does not have distinguishes nothing, unless lines of one model differ in having it.
function differs(name) {
  const [all, models] = [new Set(), new Map()];
  for (const line of LINES) {
    const value = optionOf(line, name);
    if (value !== NONE) all.add(value);
    models.set(line.model, (models.get(line.model) || new Set()).add(value));
  }
  return all.size > 1 || [...models.values()].some((values) => values.size > 1);
}

// A machine, by its processor or GPU and the key in its records.
function machineTitle(key) {
  const { keys: known, rows } = DATA.environments;
  const place = known.indexOf(key);
  const part = (name) => (rows.find((row) => row.name === name) || { values: [] }).values[place];
  const told = place < 0 ? "" : part("cuda devices 0 name") || part("cpu model");
  return told ? `${told} (${key})` : key;
}

const OPTION_TITLES = {
  dataset: (line) => line.datasetTitle,
  environment: (line) => machineTitle(line.environment),
};

function startFilters() {
  const form = byId("filters");
  for (const { name } of FILTERS) CHOSEN[name] = ALL;
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const { name, title: label, none, bytes } of FILTERS) {
    const values = [...new Set(LINES.map((line) => optionOf(line, name)))];
    if (!differs(name)) continue;
    if (name === "report" && LINES.length > MOST_LINES) CHOSEN[name] = DATA.latest;
    // Lines of two data sets cannot be compared well, so start with the first one of the chosen report.
    if (name === "dataset") CHOSEN[name] = optionOf(LINES[chosenLines()[0] || 0], name);
    const title = OPTION_TITLES[name] || ((line) => (bytes ? quantity(line[name], true) : optionOf(line, name)));
    const titles = new Map(LINES.map((line) => [optionOf(line, name), optionOf(line, name) === NONE ? none : title(line)]));
    const options = [[ALL, "all"], ...values.map((value) => [value, titles.get(value)])];
    form.append(field(label, options, CHOSEN[name], (value) => {
      CHOSEN[name] = value;
      for (const tell of listeners) tell();
    }, `filter-${name}`));
  }
}

// A heading that is jumped to must lie beneath the bar that stays at the top.
function clearHeadings() {
  const form = byId("filters");
  const sticks = getComputedStyle(form).position === "sticky";
  document.documentElement.style.scrollPaddingTop = `${56 + (sticks ? form.offsetHeight + 8 : 0)}px`;
}

// The chosen lines, by their indices; `whatever` names a filter that does not count.
function chosenLines(whatever) {
  const found = [];
  LINES.forEach((line, place) => {
    if (FILTERS.every(({ name }) => name === whatever || CHOSEN[name] === ALL || optionOf(line, name) === CHOSEN[name])) found.push(place);
  });
  return found;
}

// The number of quantities that a line has values for; running out of memory counts as all of them.
const TOLD_OF = LINES.map((_, place) => DATA.metrics.filter((metric) => CELLS_OF[place].some((cell) => figure(cell, metric) !== null || statusOf(cell) === "oom")).length);

// The lines that a figure has room for. Those with most values come first, so that neighbouring figures draw the same ones if they can.
function drawnLines(metric) {
  const chosen = chosenLines().filter((place) => CELLS_OF[place].some((cell) => figure(cell, metric) !== null || statusOf(cell) === "oom"));
  const drawn = [...chosen].sort((a, b) => TOLD_OF[b] - TOLD_OF[a] || a - b).slice(0, MOST_LINES);
  return { drawn: drawn.sort((a, b) => a - b), all: chosen.length };
}

function linesNote({ drawn, all }) {
  return drawn.length < all ? `${drawn.length} of ${all} lines are drawn: choose above. ` : "";
}

function metricOptions(test) {
  return DATA.metrics.filter((metric) => !test || test(metric)).map((metric) => [metric.name, metric.title]);
}

// Names of lines beside each other, without their report and data set if they share both.
function namesOf(places) {
  const shared = new Set(places.map((place) => JSON.stringify([LINES[place].report, LINES[place].dataset]))).size < 2;
  return new Map(places.map((place) => [place, shared ? LINES[place].short : LINES[place].label]));
}
