// Differences of each report from the first, figure by figure.

import { DATA } from "./data.js";
import { badge, bullets, byId, element, field, note, shortened } from "./dom.js";
import { change, state } from "./state.js";
import { makeTable } from "./tables.js";
import { plural } from "./words.js";

const ALL = DATA.comparisons;

export function startComparison() {
  if (ALL.length < 2) return;
  const label = `Against ${shortened(ALL[0].before, 40)}, which was named first`;
  const options = ALL.map(({ after }, index) => [String(index), after]);
  const choose = (value) => change(state.comparison, { index: Number(value) });
  byId("compare-controls").append(field(label, options, "0", choose, "compare-with"));
}

export function drawComparison() {
  const comparison = ALL[state.comparison.index];
  if (!comparison) return;
  const { remarks, more, why } = comparison;
  const left = more ? [note(`${plural(more, "more row")}: capsbench compare shows all.`)] : [];
  const said = remarks.length ? [element("h4", {}, "Remarks of capsbench compare"), bullets(remarks)] : [];
  byId("compare-remarks").replaceChildren(...left, ...said);
  if (why) byId("compare-table").replaceChildren(element("p", { class: "empty" }, why));
  else drawDifferences(comparison);
}

function verdictNode({ verdict }) {
  const [word, ...why] = verdict.split(":");
  return element("span", {}, badge(word, word), element("small", {}, why.join(":")));
}

function drawDifferences({ before, after, columns, rows }) {
  makeTable(byId("compare-table"), "compare-table", {
    name: `${before} and ${after}`,
    rows: rows.map((row) => Object.fromEntries(columns.map((name, index) => [name, row[index]]))),
    search: true,
    file: "comparison.csv",
    also: ["unit", "difference_low", "difference_high"].map((name) => [name, (row) => row[name]]),
    columns: [
      { label: "line", value: (row) => row.line, name: true },
      { label: "figure", value: (row) => row.figure },
      { label: before, column: "before", value: (row) => row.before_value, text: (row) => row.before, number: true },
      { label: after, column: "after", value: (row) => row.after_value, text: (row) => row.after, number: true },
      { label: "difference", value: (row) => row.difference_value, text: (row) => row.difference, number: true },
      { label: "verdict", value: (row) => row.verdict, node: verdictNode },
    ],
  });
}
