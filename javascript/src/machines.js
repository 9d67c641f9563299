// The reports, their commands and their machines.

import { DATA } from "./data.js";
import { byId, details, element, factList, note, scrolled } from "./dom.js";
import { command } from "./record.js";
import { moment, plural } from "./words.js";

export function startReports() {
  for (const report of DATA.reports) {
    const facts = [
      ["began", report.started && moment(report.started)],
      ["cells", String(report.cells)],
      ["commit", report.commits.join(", ")],
      ["machine", report.environments.join(", ")],
    ];
    byId("reports-table").append(element("h3", {}, report.name), factList(facts.filter(([, text]) => text)));
    if (report.command) byId("reports-table").append(command(report.command));
  }
}

export function startMachines() {
  const { keys, rows, more } = DATA.environments;
  if (!keys.length) return;
  const differing = rows.filter((row) => row.differs);
  const left = more ? note(`${plural(more, "more row")}: environment.json has all.`) : null;
  byId("environments").append(
    element("h3", {}, headText(keys, differing)),
    ...(differing.length ? [partsTable(keys, differing)] : []),
    details("All known facts of the machines", partsTable(keys, rows), left),
  );
}

function headText(keys, differing) {
  if (keys.length === 1) return `Machine ${keys[0]}`;
  if (!differing.length) return `${keys.length} machines, equal in all that figures depend on`;
  return `${keys.length} machines, which differ in ${differing.map((row) => row.name).join(", ")}`;
}

function partRow({ name, values, differs }) {
  const texts = values.map((value) => element("td", {}, value || "-"));
  return element("tr", { class: differs ? "differs" : "" }, element("th", { scope: "row" }, name), ...texts);
}

function partsTable(keys, rows) {
  const heads = keys.map((key) => element("th", { scope: "col" }, key));
  const head = element("thead", {}, element("tr", {}, element("td", {}), ...heads));
  return scrolled("Machines", element("table", { class: "plain" }, head, element("tbody", {}, ...rows.map(partRow))));
}
