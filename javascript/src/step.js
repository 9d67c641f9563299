// The inside of one step: a cell's memory by category and by module, and its record.

import { forgetCharts } from "./charts.js";
import { COUNT, DATA, lineOf, placeOf, statusOf, textOf, timelineCommandOf } from "./data.js";
import { button, byId, element, field, note, scrolled } from "./dom.js";
import { chosenCells } from "./filters.js";
import { jumpBack, jumpTo } from "./links.js";
import { command, recordDetail } from "./record.js";
import { change, state } from "./state.js";
import { keyFill, timelineParts } from "./timeline.js";
import { quantity, whereText } from "./words.js";

// The colour of bytes of a category, as in a timeline: its place in the palette, or itself.
const categoryColour = (name) => keyFill(DATA.contents.colours[DATA.contents.names.indexOf(name)]);

const timelineOf = (cell) => DATA.timelines.find((timeline) => timeline.cells.includes(cell)) ?? null;
const hasModules = (cell) => DATA.modules.of[cell] >= 0;

export function startStep() {
  if (DATA.timelines.length) byId("step-controls").append(timelineField());
  byId("step-controls").append(button("← Back to where you were", jumpBack));
  showFirst();
}

function showFirst() {
  if (DATA.timelines.length) selectTimeline(DATA.timelines[0]);
  else if (COUNT) change(state.step, { cell: firstCell(), timeline: null, chosen: false, jumped: false });
}

// Shows the step of a chosen cell, or the first one; `jumped` if a jump on this page leads to it.
export function showCell(cell, jumped) {
  if (cell === null) showFirst();
  else change(state.step, { cell, timeline: timelineOf(cell), chosen: true, jumped });
}

function timelineField() {
  const title = ({ report, title, caption }) => `${report === null ? "" : `${report}: `}${title} (${caption[0]})`;
  const options = [["", "of the chosen cell"], ...DATA.timelines.map((timeline, index) => [String(index), title(timeline)])];
  const choose = (value) => value !== "" && selectTimeline(DATA.timelines[Number(value)]);
  return field("Timeline", options, "", choose, "step-timeline");
}

// The deepest of the chosen cells that ended well, if possible one whose modules are known.
function firstCell() {
  const good = chosenCells().filter((cell) => statusOf(cell) === "ok");
  const better = (a, b) => hasModules(b) - hasModules(a) || placeOf(b) - placeOf(a);
  return good.sort(better)[0] ?? 0;
}

function selectTimeline(timeline) {
  change(state.step, { cell: timeline.cells[0] ?? null, timeline, chosen: false, jumped: false });
}

export function selectCell(cell) {
  showCell(cell, true);
  jumpTo("step");
  byId("step").scrollIntoView();
  // A keyboard user continues from here.
  byId("step-name").focus({ preventScroll: true });
}

export function drawStep() {
  const { cell, timeline, jumped } = state.step;
  byId("step-controls").lastElementChild.hidden = !jumped;
  const body = byId("step-body");
  forgetCharts(body);
  const select = byId("step-timeline");
  if (select) select.value = timeline ? String(DATA.timelines.indexOf(timeline)) : "";
  const name = cell === null ? timeline.title : `${lineOf(cell).label}, ${whereText(cell)}`;
  const head = element("h3", { id: "step-name", tabindex: "-1" }, name);
  const top = timeline ? timelineParts(timeline, cell) : [];
  const rest = cell === null ? [modulesPart(timeline.modules)] : cellParts(cell, timeline === null);
  body.replaceChildren(head, ...top, ...rest);
}

// The contents and modules of the record itself, since a timeline comes from another run.
function cellParts(cell, hasNoTimeline) {
  const { modules, contents } = DATA;
  const parts = contents.of[cell] < 0 ? [] : [contentsPart(contents.lists[contents.of[cell]])];
  const named = ([name, ...rest]) => [name === null ? null : textOf(name), ...rest];
  if (hasModules(cell)) parts.push(modulesPart(modules.lists[modules.of[cell]].map(named)));
  if (hasNoTimeline) {
    const missing = hasModules(cell) ? "" : "This record does not list what its modules retain. ";
    parts.push(note(`${missing}To see the step allocation by allocation:`), command(timelineCommandOf(cell)));
  }
  return [...parts, element("h3", {}, "The record"), recordDetail(cell)];
}

// A list of amounts as bars, which is a table for a screen reader.
function barTable(head, rows, colourIn) {
  const most = Math.max(1, ...rows.map((row) => row[1]));
  const heads = head.map((text, index) => element("th", { scope: "col", class: index === 1 ? "number" : "" }, text));
  const body = element("tbody", {}, ...rows.map((row) => barRow(row, most, colourIn(row))));
  const table = element("table", { class: "plain" }, element("thead", {}, element("tr", {}, ...heads, element("td", {}))), body);
  return scrolled(head[0], table);
}

function barRow([name, nbytes, note], most, colour) {
  const bar = element("span", { class: "amount", "aria-hidden": "true" });
  Object.assign(bar.style, { background: colour, width: `${Math.max(0, (100 * nbytes) / most)}%` });
  const amount = element("td", { class: "number" }, quantity(nbytes, true));
  return element(
    "tr",
    {},
    element("td", { class: "name" }, name),
    amount,
    element("td", {}, note),
    element("td", { style: "width:40%" }, bar),
  );
}

// The last entry, without a name, is the sum of all others.
function moduleRow([name, nbytes, count]) {
  if (name === null) return [`and ${count} more`, nbytes, ""];
  return [name, nbytes * count, count > 1 ? `${count} × ${quantity(nbytes, true)}` : ""];
}

function modulesPart(modules) {
  const rows = modules.map(moduleRow);
  const total = rows.reduce((sum, row) => sum + row[1], 0);
  const table = rows.length
    ? barTable(["module", "retained", "each"], rows, () => categoryColour("retained"))
    : element("p", {}, "Nothing is retained.");
  const stars = rows.some(([name]) => name.includes("*")) ? note(`${DATA.modules.stars}.`) : null;
  return element("div", {}, element("h4", {}, `Retained by module: ${quantity(total, true)}`), table, stars);
}

function contentsPart([phase, ...amounts]) {
  const rows = DATA.contents.names.map((name, index) => [name, amounts[index], ""]).filter((row) => row[1]);
  const head = element("h4", {}, `Alive at the peak, in ${textOf(phase)}`);
  return element(
    "div",
    {},
    head,
    barTable(["category", "bytes", ""], rows, ([name]) => categoryColour(name)),
  );
}
