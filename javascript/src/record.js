// All that is known of one record, and the commands to measure it again.

import {
  CELLS,
  commandOf,
  DATA,
  hasFigure,
  isPredicted,
  lineOf,
  METRICS,
  noiseOf,
  samplesOf,
  statusOf,
  takenOf,
  textOf,
} from "./data.js";
import { copyButton, element, factList, note } from "./dom.js";
import { exactly } from "./words.js";

export function command(text) {
  if (!text) return note("The command is too long for this page; the record has its options.");
  const code = element("code", {}, text);
  const copy = copyButton(
    "Copy",
    () => text,
    () => getSelection().selectAllChildren(code),
  );
  return element("div", { class: "command" }, code, copy);
}

export function againText(cell) {
  const verb = isPredicted(lineOf(cell)) ? "predict" : "measure";
  const replicates = CELLS.replicate[cell];
  const before = replicates ? `, after the replicate${replicates > 1 ? "s" : ""} before it` : "";
  return `To ${verb} it again${before}:`;
}

function samplesText(raw, taken) {
  if (!raw.length) return `${taken}, all of which are in records.jsonl`;
  const cut = raw.length < taken ? ` (the first ${raw.length} of ${taken}; all are in records.jsonl)` : "";
  return `${raw.join(", ")} s${cut}`;
}

function sampleFacts(cell) {
  const facts = DATA.samples.map(({ name }, index) => {
    const taken = takenOf(cell, name);
    return taken ? [`${METRICS[name]?.title ?? name}, raw`, samplesText(samplesOf(cell, index), taken)] : null;
  });
  return facts.filter(Boolean);
}

function textFacts(cell) {
  const { notes, probe, data_source: source, started } = CELLS;
  const named = { notes, "counted by": probe, data: source, began: started };
  const known = Object.entries(named).filter(([, numbers]) => numbers[cell]);
  const texts = known.map(([name, numbers]) => [name, textOf(numbers[cell])]);
  return noiseOf(cell) ? [["noise", noiseOf(cell).replaceAll(",", ", ")], ...texts] : texts;
}

function optionsText(line) {
  const known = DATA.options.details.filter(({ name }) => line[name] !== undefined);
  return known.map(({ name, noun }) => `${noun} ${line[name]}`).join(", ") || "none";
}

export function recordDetail(cell) {
  const line = lineOf(cell);
  const facts = [
    ["record", `${CELLS.key[cell]} in ${line.report}`],
    ["status", [statusOf(cell), textOf(CELLS.message[cell])].filter(Boolean).join(": ")],
    ...DATA.metrics.filter((metric) => hasFigure(cell, metric)).map((metric) => [metric.title, exactly(cell, metric)]),
    ...sampleFacts(cell),
    ...textFacts(cell),
    ...(line.environment ? [["machine", line.environment]] : []),
    ["options", optionsText(line)],
  ];
  return element("div", {}, factList(facts), note(againText(cell)), command(commandOf(cell)));
}
