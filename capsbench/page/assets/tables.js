// Tables that can be sorted, searched and paged.

function scrolled(name, node) {
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, node);
}

// `columns`: label, value (sorted by, and downloaded), text or node (shown), number, name. `detail` opens a row, and its `told` is searched;
// `also` is downloaded.
function makeTable(host, { name, rows, columns, size = 25, search = false, detail = null, told = null, extra = [], file = null, also = [] }) {
  const state = { by: -1, down: false, page: 0, words: "" };
  const body = element("tbody", {});
  const heads = columns.map((column, place) => element("th", { scope: "col", "aria-sort": "none", class: column.number ? "number" : "" }, element("button", { type: "button", onclick: () => sort(place) }, column.label)));
  const where = element("span", { role: "status" });
  const turns = [-1, 1].map((by) => element("button", { type: "button", onclick: () => turn(by) }, by < 0 ? "Previous" : "Next"));
  const pages = element("div", { class: "pages" }, where, ...turns);
  const tools = element("div", { class: "controls" });
  if (search) {
    const box = element("input", { type: "search", oninput: () => Object.assign(state, { words: box.value.toLowerCase(), page: 0 }) && show() });
    tools.append(element("label", { class: "field" }, "Search", box));
  }
  tools.append(...extra);
  if (file) tools.append(element("button", { type: "button", onclick: () => download(file, "text/csv", csv([[...columns.map((column) => column.column || column.label), ...also.map(([head]) => head)], ...found().map((row) => [...columns.map((column) => column.value(row)), ...also.map(([, value]) => value(row))])])) }, "Download CSV"));
  const head = element("tr", {}, ...(detail ? [element("td", {})] : []), ...heads);
  host.replaceChildren(...(tools.childElementCount ? [tools] : []), scrolled(name, element("table", { "aria-label": name }, element("thead", {}, head), body)), pages);
  let kept = rows;

  function sort(place) {
    Object.assign(state, { down: state.by === place && !state.down, by: place, page: 0 });
    heads.forEach((node, other) => node.setAttribute("aria-sort", other === place ? (state.down ? "descending" : "ascending") : "none"));
    show();
  }

  function found() {
    const said = (row) => [...columns.map((column) => (column.text ? column.text(row) : column.value(row))), told ? told(row) : ""].join(" ").toLowerCase();
    let list = state.words ? kept.filter((row) => state.words.split(/\s+/).every((word) => said(row).includes(word))) : kept;
    if (state.by >= 0) {
      const value = columns[state.by].value;
      const missing = (one) => one === null || one === undefined || one === "";
      list = [...list].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (missing(x) || missing(y)) return missing(x) - missing(y);
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
        return state.down ? -order : order;
      });
    }
    return list;
  }

  function show() {
    const list = found();
    const last = Math.max(0, Math.ceil(list.length / size) - 1);
    state.page = Math.min(state.page, last);
    body.replaceChildren(...list.slice(state.page * size, (state.page + 1) * size).flatMap(rowNodes));
    where.textContent = list.length ? `${(state.page * size + 1).toLocaleString("en-US")} to ${Math.min(list.length, (state.page + 1) * size).toLocaleString("en-US")} of ${list.length.toLocaleString("en-US")}` : "nothing found";
    turns.forEach((button, place) => Object.assign(button, { hidden: !last, disabled: state.page === (place ? last : 0) }));
  }

  function turn(by) {
    state.page += by;
    show();
    // A disabled button has no focus, so a keyboard user who turns pages stays beside it.
    if (turns[by < 0 ? 0 : 1].disabled) turns[by < 0 ? 1 : 0].focus();
  }

  function rowNodes(row) {
    const cells = columns.map((column) => element("td", { class: column.number ? "number" : column.name ? "name" : "" }, column.node ? column.node(row) : String((column.text ? column.text(row) : column.value(row)) ?? "-")));
    if (!detail) return [element("tr", {}, ...cells)];
    const node = element("tr", {});
    const button = element("button", { type: "button", class: "toggle", "aria-expanded": "false", "aria-label": "Details" }, "▸");
    let opened = null;
    button.addEventListener("click", () => {
      if (opened) {
        opened.remove();
        opened = null;
      } else {
        opened = element("tr", { class: "detail" }, element("td", { colspan: columns.length + 1 }, detail(row)));
        node.after(opened);
      }
      button.setAttribute("aria-expanded", String(Boolean(opened)));
      button.textContent = opened ? "▾" : "▸";
      node.classList.toggle("open", Boolean(opened));
    });
    node.append(element("td", {}, button), ...cells);
    return [node];
  }

  show();
  return { show(changed) {
    kept = changed;
    state.page = 0;
    show();
  } };
}

const TABLES = { status: ALL, cells: null, slopes: null };
const badge = (text, kind) => element("span", { class: `verdict ${kind}` }, text);

function cellRows() {
  const found = [];
  for (const place of chosenLines()) for (const cell of CELLS_OF[place]) if (TABLES.status === ALL || statusOf(cell) === TABLES.status) found.push(cell);
  return found.sort((a, b) => a - b);
}

function cellColumns() {
  const several = (values) => new Set(values).size > 1;
  const columns = [];
  // Separate columns have the report and the data set.
  if (DATA.reports.length > 1) columns.push({ label: "report", column: "report", value: (cell) => lineOf(cell).report, name: true });
  columns.push({ label: "line", column: "line", value: (cell) => lineOf(cell).short, name: true });
  if (several(LINES.map((line) => line.dataset))) columns.push({ label: "data set", column: "dataset", value: (cell) => lineOf(cell).datasetTitle });
  columns.push({ label: "blocks", column: "blocks", value: (cell) => CELLS.blocks[cell], number: true });
  if (several(CELLS.replicate)) columns.push({ label: "replicate", column: "replicate", value: (cell) => CELLS.replicate[cell] + 1, number: true });
  for (const metric of DATA.metrics) columns.push({ label: metric.head, column: metric.column, value: (cell) => figure(cell, metric), text: (cell) => quantity(figure(cell, metric), metric.bytes), number: true });
  columns.push(
    { label: "status", column: "status", value: (cell) => statusOf(cell), node: (cell) => badge(statusOf(cell), statusOf(cell) === "ok" ? "ok" : ["oom", "skipped"].includes(statusOf(cell)) ? "oom" : "worse") },
    { label: "noise", column: "noise", value: (cell) => noiseOf(cell) },
    { label: "record", column: "key", value: (cell) => CELLS.key[cell] },
  );
  return columns;
}

function startTables() {
  const known = [...new Set(CELLS.status)].map(textOf);
  const extra = known.length > 1 ? [field("Status", [[ALL, "all"], ...known.map((status) => [status, status])], ALL, (value) => {
    TABLES.status = value;
    TABLES.cells.show(cellRows());
  }, "filter-status")] : [];
  extra.push(element("button", { type: "button", onclick: downloadAll }, "Download CSV"));
  TABLES.cells = makeTable(byId("cells-table"), { name: "Table of cells", rows: cellRows(), columns: cellColumns(), search: true, extra, detail: cellDetailWithStep, told: (cell) => `${textOf(CELLS.message[cell])} ${textOf(CELLS.notes[cell])}` });
  const slopes = () => chosenLines().flatMap((place) => Object.entries(LINES[place].fits).map(([name, fit]) => ({ line: LINES[place], metric: METRICS[name], fit })));
  const columns = [
    ...(DATA.reports.length > 1 ? [{ label: "report", value: (row) => row.line.report, name: true }] : []),
    { label: "line", value: (row) => row.line.short, name: true },
    { label: "data set", value: (row) => row.line.datasetTitle },
    { label: "quantity", value: (row) => row.metric.title },
    { label: "slope per block", column: "slope_per_block", value: (row) => row.fit.slope, text: (row) => row.fit.text, number: true },
    { label: "× ResCapsNet", column: "ratio_to_rescapsnet", value: (row) => row.fit.ratio, text: (row) => row.fit.ratioText || "-", number: true },
    { label: "points", value: (row) => row.fit.points, number: true },
    { label: "a line", value: (row) => [{ line: "yes", "not a line": "no" }[row.fit.shape] || row.fit.shape, row.fit.shape === "line" ? row.fit.remarks : ""].filter(Boolean).join(", ") },
    { label: "noise", value: (row) => row.fit.noise },
  ];
  const table = makeTable(byId("slopes-table"), { name: "All slopes", rows: slopes(), columns, file: "slopes.csv", search: true, also: [["unit", (row) => (row.metric.bytes ? "bytes" : "seconds")], ["slope_low", (row) => row.fit.low], ["slope_high", (row) => row.fit.high], ["intercept", (row) => row.fit.intercept], ["ratio_low", (row) => row.fit.ratioLow], ["ratio_high", (row) => row.fit.ratioHigh]] });
  listeners.push(() => TABLES.cells.show(cellRows()), () => table.show(slopes()));
}

function cellDetailWithStep(cell) {
  return element("div", {}, element("button", { type: "button", onclick: () => selectCell(cell) }, "Look inside its step"), cellDetail(cell));
}

// All columns that the page has of the chosen cells, named as in `capsbench.load`.
function downloadAll() {
  const options = DATA.options.columns;
  const numbers = Object.keys(CELLS).filter((name) => /_(bytes|seconds)$/.test(name));
  const texts = ["status", "message", "noise", "notes", "probe", "data_source", "started"];
  // The number of further samples, which are in records.jsonl alone.
  const raw = Object.keys(SAMPLES).flatMap((name) => [`${name === "train" ? "train_step" : name}_samples`, `${name === "train" ? "train_step" : name}_samples_taken`]);
  const rows = [["key", ...options, "blocks", "replicate", ...texts, ...numbers, ...raw, "command"]];
  for (const cell of cellRows()) {
    const line = lineOf(cell);
    const samples = Object.keys(SAMPLES).flatMap((name) => [samplesOf(cell, name).join(" "), takenOf(cell, name) || null]);
    rows.push([CELLS.key[cell], ...options.map((name) => line[name]), CELLS.blocks[cell], CELLS.replicate[cell], ...texts.map((name) => textOf(CELLS[name][cell])), ...numbers.map((name) => CELLS[name][cell]), ...samples, commandOf(cell)]);
  }
  download("cells.csv", "text/csv", csv(rows));
}
