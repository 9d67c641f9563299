// The reader's choices in the address, as far as they differ from how the page began: a link to it shows the same selection.

import { CELLS, drawAlong, LINES, METRICS } from "./data.js";
import { byId } from "./dom.js";
import { change, state } from "./state.js";

const KEPT = { depth: ["metric", "axis", "paper"], tradeoff: ["memory", "time", "place"] };

// The marks of entries of the browser's history whose address has the selection, the second of those that a jump on this page made.
// An entry of a link inside the page has none.
const [OWN, JUMP] = ["selection", "jump"];

let began = new Map();
let showCell = () => {};
let isRestoring = false;

function choices() {
  const filters = Object.entries(state.filters).map(([name, value]) => [`filter-${name}`, value]);
  const others = Object.entries(KEPT).flatMap(([part, names]) => names.map((name) => [`${part}-${name}`, state[part][name]]));
  const all = [...filters, ...others, ...recordChosen()];
  return all.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => [name, String(value)]);
}

const reportOf = (cell) => LINES[CELLS.line[cell]].report;

// The record of the chosen cell by its key and report, since its index is another one in a page of other reports.
function recordChosen() {
  const { cell, chosen } = state.step;
  return chosen ? Object.entries({ record: CELLS.key[cell], report: reportOf(cell) }) : [];
}

function address(section) {
  const changed = choices().filter(([name, value]) => began.get(name) !== value);
  const hash = section + (changed.length ? `?${new URLSearchParams(changed)}` : "");
  return hash ? `#${hash}` : location.pathname;
}

function write(way, section, mark = OWN) {
  try {
    history[way](mark, "", address(section));
  } catch {
    // A browser may refuse this to a page from a disk, or to one that changes its address often.
  }
}

const sectionNow = () => location.hash.slice(1).split("?")[0];
const SECTIONS = new Map([
  [state.depth, "depth"],
  [state.tradeoff, "tradeoff"],
  [state.filters, "depth"],
]);

const markNow = () => (history.state === JUMP ? JUMP : OWN);

// Keeps a choice in the address.
export function remember(part) {
  if (isRestoring) return; // the address holds what is being restored, of which the state has only a part so far
  if (began.size && SECTIONS.has(part)) write("replaceState", SECTIONS.get(part), markNow());
}

// A jump inside the page: the browser's way back leads to where the reader was.
export const jumpTo = (section) => write("pushState", section, JUMP);
export const jumpBack = () => history.back();

const isOffered = (select, value) => select && [...select.options].some((option) => option.value === value);

// Takes a choice into a control and the state, if it is one of those that the control offers.
function take(part, name, control, value) {
  const node = byId(control);
  if (value === null || !node || (node.options && !isOffered(node, value))) return;
  if (node.type === "checkbox") {
    node.checked = value === "true";
    part[name] = node.checked;
  } else {
    node.value = value;
    part[name] = value;
  }
}

function restoreTradeoff(chosen) {
  const { tradeoff } = state;
  const known = (name, bytes, otherwise) => {
    const metric = chosen(`tradeoff-${name}`);
    return Object.hasOwn(METRICS, metric) && METRICS[metric].bytes === bytes ? metric : otherwise;
  };
  Object.assign(tradeoff, {
    memory: known("memory", true, null),
    time: known("time", false, tradeoff.time),
    place: Number(chosen("tradeoff-place")),
  });
}

// The cell whose record an address names; null if it names none of this page.
function cellIn(given) {
  const [key, report] = [given.get("record"), given.get("report")];
  const cell = CELLS.key.findIndex((one, index) => one === key && reportOf(index) === report);
  return cell < 0 ? null : cell;
}

function restore() {
  const section = sectionNow();
  const given = new URLSearchParams(location.hash.split("?")[1] ?? "");
  const chosen = (name) => given.get(name) ?? began.get(name) ?? null;
  for (const name of Object.keys(state.filters)) take(state.filters, name, `filter-${name}`, chosen(`filter-${name}`));
  if (byId("filter-axis")) drawAlong(state.filters.axis);
  for (const [name, control] of [
    ["metric", "metric"],
    ["axis", "axis"],
    ["paper", "with-paper"],
  ])
    take(state.depth, name, control, chosen(`depth-${name}`));
  restoreTradeoff(chosen);
  isRestoring = true;
  try {
    for (const part of SECTIONS.keys()) change(part, {});
    showCell(cellIn(given), history.state === JUMP);
  } finally {
    isRestoring = false;
  }
  write("replaceState", section, markNow());
}

// Begins once everything is drawn: `show` shows the step of a cell, or without one the step that the page began with.
export function startLinks(show) {
  showCell = show;
  const section = sectionNow();
  const isSelection = location.hash.includes("?");
  began = new Map(choices());
  if (isSelection) restore();
  else write("replaceState", section);
  if (isSelection) byId(section)?.scrollIntoView({ behavior: "instant" });
  addEventListener("popstate", ({ state: mark }) => {
    if (mark === OWN || mark === JUMP || location.hash.includes("?")) restore();
    else write("replaceState", sectionNow());
  });
}
