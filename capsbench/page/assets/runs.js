// Reports beside each other: slopes over commits with the gate's verdicts, differences, machines.

const HISTORY = { metric: null };

function startRuns() {
  startReports();
  startEnvironments();
  if (!byId("runs")) return;
  startHistory();
  startComparisons();
}

function startReports() {
  const host = byId("reports-table");
  for (const report of DATA.reports) {
    const facts = [report.started && ["began", moment(report.started)], ["cells", String(report.cells)], report.commits.length && ["commit", report.commits.join(", ")], report.environments.length && ["machine", report.environments.join(", ")]].filter(Boolean);
    host.append(element("h3", {}, report.name), factList(facts));
    if (report.command) host.append(command(report.command));
  }
}

function startEnvironments() {
  const { keys: names, rows } = DATA.environments;
  const host = byId("environments");
  if (!names.length) return;
  const differing = rows.filter((row) => row.differs);
  const head = names.length > 1 ? (differing.length ? `${names.length} machines, which differ in ${differing.map((row) => row.name).join(", ")}` : `${names.length} machines, alike in all that figures depend on`) : `Machine ${names[0]}`;
  host.append(element("h3", {}, head));
  const table = (list) => {
    const body = element("tbody", {}, ...list.map((row) => element("tr", { class: row.differs ? "differs" : "" }, element("th", { scope: "row" }, row.name), ...row.values.map((value) => element("td", {}, value || "-")))));
    return scrolled("Machines", element("table", { class: "plain" }, element("thead", {}, element("tr", {}, element("td", {}), ...names.map((name) => element("th", { scope: "col" }, name)))), body));
  };
  if (differing.length) host.append(table(differing));
  const left = DATA.environments.more ? [element("p", { class: "note" }, `${plural(DATA.environments.more, "more row")}: environment.json has all.`)] : [];
  host.append(element("details", {}, element("summary", {}, "Everything that is known of the machines"), table(rows), ...left));
}

function startHistory() {
  const controls = byId("history-controls");
  const places = DATA.history.series.flat().map((pair) => pair[1]);
  const fitted = DATA.metrics.filter((metric) => places.some((place) => LINES[place].fits[metric.name]));
  if (!fitted.length) {
    byId("history-chart").replaceWith(element("p", { class: "empty" }, "No two of these reports have a line in common whose slope is known."));
  } else {
    HISTORY.metric = (fitted.find((metric) => metric.name === "retained") || fitted[0]).name;
    controls.append(field("Quantity", fitted.map((metric) => [metric.name, metric.title]), HISTORY.metric, (value) => {
      HISTORY.metric = value;
      redraw(byId("history-chart"));
      historyNotes();
    }, "history-metric"));
    chart(byId("history-chart"), buildHistory);
    historyNotes();
    listeners.push(() => redraw(byId("history-chart")), historyNotes);
  }
  makeTable(byId("history-table"), {
    name: "Verdicts", rows: DATA.history.points,
    columns: [
      { label: "report", value: (point) => point.name, name: true },
      { label: "commit", value: (point) => point.commits.join(", ") },
      { label: "began", value: (point) => point.started, text: (point) => moment(point.started) },
      { label: `against ${shortened(DATA.history.points[0].name, 40)}`, value: (point) => point.verdict, node: (point) => (point.verdict ? badge(point.verdict, point.passed === undefined ? "open" : point.passed ? "passed" : "failed") : "it is the oldest") },
      { label: "findings", value: (point) => point.findings.length, node: (point) => element("div", {}, findings(point.findings), remarks(point.remarks)) },
    ],
  });
}

function findings(texts) {
  const list = (some) => element("ul", { class: "findings" }, ...some.map((text) => element("li", {}, text)));
  if (texts.length <= 3) return list(texts);
  return element("div", {}, list(texts.slice(0, 3)), element("details", {}, element("summary", {}, `${texts.length - 3} more`), list(texts.slice(3))));
}

// The figures that could not be compared, and further remarks.
function remarks(texts) {
  if (!texts.length) return null;
  return element("details", {}, element("summary", {}, plural(texts.length, "remark")), element("ul", { class: "findings" }, ...texts.map((text) => element("li", {}, text))));
}

function historySeries() {
  const chosen = new Set(chosenLines("report"));
  return DATA.history.series.map((pairs) => pairs.filter((pair) => chosen.has(pair[1]) && LINES[pair[1]].fits[HISTORY.metric])).filter((pairs) => pairs.length > 1).slice(0, MOST_LINES);
}

const historyLabel = (pairs) => `${LINES[pairs[pairs.length - 1][1]].short}, ${LINES[pairs[0][1]].datasetTitle}`;

function buildHistory() {
  const metric = METRICS[HISTORY.metric];
  const series = historySeries();
  if (!series.length) return { empty: "No chosen line is in two reports." };
  const fits = series.flatMap((pairs) => pairs.map((pair) => LINES[pair[1]].fits[metric.name]));
  const unit = unitFor(fits.map((fit) => fit.slope), metric.bytes);
  const points = DATA.history.points;
  const name = (point) => `${plotText(shortened(point.commits[0] || point.name, 14))}${point.verdict ? (point.passed === undefined ? "<br>?" : point.passed ? "<br>passed" : "<br>failed") : ""}`;
  const data = series.map((pairs) => {
    const line = LINES[pairs[pairs.length - 1][1]];
    const own = pairs.map((pair) => LINES[pair[1]].fits[metric.name]);
    // A slope that cannot be distinguished from 0 stands at 0, with its bound.
    const level = (fit) => (fit.shape === "no change measurable" ? 0 : fit.slope);
    const reach = (fit, side) => (fit[side] === null ? 0 : Math.max(...[fit[side], level(fit) ? fit[side] : fit[side === "low" ? "high" : "low"]].map((end) => Math.abs(end - level(fit)))) / unit[0]);
    return {
      x: pairs.map((pair) => pair[0]), y: own.map((fit) => level(fit) / unit[0]), mode: "lines+markers", hoverinfo: "text",
      hovertext: pairs.map((pair, place) => `<b>${plotText(shortened(LINES[pair[1]].label, 60))}</b><br>${plotText(shortened(points[pair[0]].name, 60))}<br>${plotText(own[place].shape === "not a line" ? `slope ${own[place].text} per block (not a line)` : slopeText(own[place], "slope "))}`),
      line: { color: colourOf(line), width: 1.4, dash: line.look.dash }, marker: { symbol: line.look.symbol, size: line.look.size, color: variable("--paper"), line: { color: colourOf(line), width: 1.6 } },
      error_y: { type: "data", symmetric: false, array: own.map((fit) => reach(fit, "high")), arrayminus: own.map((fit) => reach(fit, "low")), color: colourOf(line), thickness: 0.8, width: 3 },
    };
  });
  const layout = { xaxis: { tickvals: points.map((_, place) => place), ticktext: points.map(name), range: [-0.5, points.length - 0.5] }, yaxis: { title: axisTitle(`${metric.title}, ${unit[1]} per block`) } };
  return { data, layout, label: `Slope of ${metric.title} over ${points.length} reports` };
}

function historyNotes() {
  const entries = historySeries().map((pairs) => keyOf(LINES[pairs[pairs.length - 1][1]], historyLabel(pairs)));
  byId("history-caption").replaceChildren(keys(entries), element("p", { class: "note" }, "Reports in the order of time. The verdict is that of capsbench check, with the oldest report as the baseline."));
}

function startComparisons() {
  if (!DATA.comparisons.length) return;
  const show = (place) => {
    const told = DATA.comparisons[place];
    const host = byId("compare-table");
    const said = told.remarks.length ? [element("h4", {}, "Remarks of capsbench compare"), element("ul", { class: "findings" }, ...told.remarks.map((text) => element("li", {}, text)))] : [];
    byId("compare-remarks").replaceChildren(...(told.more ? [element("p", { class: "note" }, `${plural(told.more, "more row")}: capsbench compare shows all.`)] : []), ...said);
    if (told.why) return host.replaceChildren(element("p", { class: "empty" }, told.why));
    const rows = told.rows.map((row) => Object.fromEntries(told.columns.map((name, index) => [name, row[index]])));
    const verdict = (row) => row.verdict.split(":")[0];
    const difference = (row) => (row.before_value === null || row.after_value === null ? null : row.after_value - row.before_value);
    makeTable(host, {
      name: `${told.before} and ${told.after}`, rows, search: true, file: "comparison.csv",
      also: ["unit", "difference_low", "difference_high"].map((name) => [name, (row) => row[name]]),
      columns: [
        { label: "line", value: (row) => row.line, name: true },
        { label: "figure", value: (row) => row.figure },
        { label: told.before, column: "before", value: (row) => row.before_value, text: (row) => row.before, number: true },
        { label: told.after, column: "after", value: (row) => row.after_value, text: (row) => row.after, number: true },
        { label: "difference", value: difference, text: (row) => row.difference, number: true },
        { label: "verdict", value: (row) => row.verdict, node: (row) => element("span", {}, badge(verdict(row), { "not comparable": "open" }[verdict(row)] || verdict(row)), element("small", {}, row.verdict.slice(verdict(row).length).replace(/^:/, ""))) },
      ],
    });
  };
  if (DATA.comparisons.length > 1) byId("compare-controls").append(field(`Against ${shortened(DATA.comparisons[0].before, 40)}, which was named first`, DATA.comparisons.map((told, place) => [String(place), told.after]), "0", (value) => show(Number(value)), "compare-with"));
  show(0);
}
