// Tables that can be sorted, searched and paged. How each one is sorted and searched is in `state.tables`.

import { downloadCsv } from "./csv.js";
import { button, element, scrolled } from "./dom.js";
import { change, resetTable, state } from "./state.js";
import { grouped } from "./words.js";

// By id: what `makeTable` was given, and the elements that change.
const TABLES = new Map();

// `columns` have a label, a value (sorted by, and downloaded), and perhaps a text or node that is shown instead, number or name for the
// style, and the column's name in a file. `detail` is what a row opens, and `searched` a text by which it is found too; `also` is downloaded only.
export function makeTable(host, id, { rows, name, columns, search = false, extra = [], file = null, ...more }) {
  resetTable(id);
  const status = element("span", { role: "status" });
  const turns = [button("Previous", () => turn(id, -1)), button("Next", () => turn(id, 1))];
  const table = { rows, columns, size: 25, detail: null, searched: () => "", also: [], ...more, status, turns };
  table.body = element("tbody", {});
  table.heads = columns.map((column, index) => headOf(id, column, index));
  TABLES.set(id, table);
  const head = element("tr", {}, table.detail && element("td", {}), ...table.heads);
  const tools = [...(search ? [searchBox(id)] : []), ...extra];
  if (file) tools.push(button("Download CSV", () => downloadCsv(file, fileRows(id))));
  const whole = element("table", { "aria-label": name }, element("thead", {}, head), table.body);
  const pages = element("div", { class: "pages" }, status, ...turns);
  host.replaceChildren(...(tools.length ? [element("div", { class: "controls" }, ...tools)] : []), scrolled(name, whole), pages);
  drawRows(id);
}

// Gives a table other rows, and shows the first page of them.
export function setRows(id, rows) {
  TABLES.get(id).rows = rows;
  change(state.tables[id], { page: 0 });
}

function headOf(id, column, index) {
  const head = button(column.label, () => sort(id, index));
  return element("th", { scope: "col", "aria-sort": "none", class: column.number ? "number" : "" }, head);
}

function searchBox(id) {
  const changed = () => change(state.tables[id], { words: box.value.toLowerCase(), page: 0 });
  const box = element("input", { type: "search", oninput: changed });
  return element("label", { class: "field" }, "Search", box);
}

function sort(id, by) {
  const shown = state.tables[id];
  change(shown, { down: shown.by === by && !shown.down, by, page: 0 });
}

function turn(id, step) {
  const { turns } = TABLES.get(id);
  change(state.tables[id], { page: state.tables[id].page + step });
  // A disabled button has no focus, so a keyboard user who turns pages stays next to it.
  const [pressed, other] = step < 0 ? turns : [...turns].reverse();
  if (pressed.disabled) other.focus();
}

const textIn = (column, row) => (column.text ? column.text(row) : column.value(row));

function matching(table, rows, words) {
  const texts = (row) => [...table.columns.map((column) => textIn(column, row)), table.searched(row)].join(" ").toLowerCase();
  const wanted = words.split(/\s+/);
  return rows.filter((row) => {
    const text = texts(row);
    return wanted.every((word) => text.includes(word));
  });
}

const isMissing = (value) => value === null || value === undefined || value === "";

function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

// Rows without a value come last in both directions.
function sorted(rows, { value }, down) {
  return [...rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
    return down ? order(b, a) : order(a, b);
  });
}

function found(id) {
  const [table, { by, down, words }] = [TABLES.get(id), state.tables[id]];
  const rows = words ? matching(table, table.rows, words) : table.rows;
  return by < 0 ? rows : sorted(rows, table.columns[by], down);
}

function fileRows(id) {
  const { columns, also } = TABLES.get(id);
  const heads = [...columns.map((column) => column.column ?? column.label), ...also.map(([head]) => head)];
  const values = [...columns.map((column) => column.value), ...also.map(([, value]) => value)];
  return [heads, ...found(id).map((row) => values.map((value) => value(row)))];
}

// Draws a table as its part of the state says.
export function drawRows(id) {
  const [table, shown, rows] = [TABLES.get(id), state.tables[id], found(id)];
  const { size, status, turns, heads, body } = table;
  const last = Math.max(0, Math.ceil(rows.length / size) - 1);
  shown.page = Math.min(shown.page, last);
  const first = shown.page * size;
  const end = Math.min(rows.length, first + size);
  body.replaceChildren(...rows.slice(first, end).map((row) => rowNode(table, row)));
  status.textContent = rows.length ? `${grouped(first + 1)} to ${grouped(end)} of ${grouped(rows.length)}` : "nothing found";
  for (const [index, node] of turns.entries())
    Object.assign(node, { hidden: !last, disabled: shown.page === (index ? last : 0) });
  for (const [index, node] of heads.entries()) node.setAttribute("aria-sort", direction(shown, index));
}

function direction({ by, down }, index) {
  if (by !== index) return "none";
  return down ? "descending" : "ascending";
}

function cellNode(column, row) {
  const style = column.number ? "number" : column.name ? "name" : "";
  return element("td", { class: style }, column.node ? column.node(row) : String(textIn(column, row) ?? "-"));
}

function rowNode(table, row) {
  const node = element("tr", {}, ...table.columns.map((column) => cellNode(column, row)));
  if (table.detail) node.prepend(element("td", {}, opener(table, row, node)));
  return node;
}

// A button that opens what belongs to a row, and closes it.
function opener(table, row, node) {
  let opened = null;
  const toggle = button("▸", () => {
    opened?.remove();
    opened = opened
      ? null
      : element("tr", { class: "detail" }, element("td", { colspan: table.columns.length + 1 }, table.detail(row)));
    if (opened) node.after(opened);
    toggle.setAttribute("aria-expanded", String(opened !== null));
    toggle.textContent = opened ? "▾" : "▸";
    node.classList.toggle("open", opened !== null);
  });
  toggle.className = "toggle";
  toggle.setAttribute("aria-expanded", "false");
  toggle.setAttribute("aria-label", "Details");
  return toggle;
}
