// The inside of one step: a cell's memory by category and by module, its raw samples, and the command to measure it again.

const STEP = { cell: null, timeline: null };

const modulesOf = (cell) => (DATA.modules.of[cell] < 0 ? null : DATA.modules.lists[DATA.modules.of[cell]].map(([name, nbytes, count]) => [name === null ? null : textOf(name), nbytes, count]));
const timelineOf = (cell) => DATA.timelines.find((timeline) => timeline.cells.includes(cell)) || null;

function startStep() {
  const controls = byId("step-controls");
  if (DATA.timelines.length) {
    const options = [["", "of the chosen cell"], ...DATA.timelines.map((timeline, place) => [String(place), `${timeline.report === null ? "" : `${timeline.report}: `}${timeline.title} (${timeline.caption[0]})`])];
    controls.append(field("Timeline", options, "", (value) => value !== "" && selectTimeline(DATA.timelines[Number(value)]), "step-timeline"));
  }
  const first = DATA.timelines[0];
  if (first) return selectTimeline(first);
  let best = null;
  for (const cell of chosenLines().flatMap((place) => CELLS_OF[place])) {
    const better = best === null || (DATA.modules.of[cell] >= 0) - (DATA.modules.of[best] >= 0) || CELLS.blocks[cell] - CELLS.blocks[best];
    if (statusOf(cell) === "ok" && (best === null || better > 0)) best = cell;
  }
  if (best === null && COUNT) best = 0;
  if (best !== null) showStep(best, null);
}

function selectTimeline(timeline) {
  showStep(timeline.cells.length ? timeline.cells[0] : null, timeline);
}

function selectCell(cell) {
  showStep(cell, timelineOf(cell));
  byId("step").scrollIntoView();
  // A keyboard user continues from here.
  byId("step-name").focus({ preventScroll: true });
}

function showStep(cell, timeline) {
  Object.assign(STEP, { cell, timeline });
  const body = byId("step-body");
  forget(body);
  const select = byId("step-timeline");
  if (select) select.value = timeline ? String(DATA.timelines.indexOf(timeline)) : "";
  // The modules of the record itself, since a timeline comes from another run.
  const modules = cell === null ? timeline.modules : modulesOf(cell);
  const name = cell === null ? timeline.title : `${lineOf(cell).label}, ${depthText(cell)}`;
  const parts = [element("h3", { id: "step-name", tabindex: "-1" }, name)];
  if (timeline) parts.push(...timelineParts(timeline, cell));
  if (cell !== null && DATA.contents.of[cell] >= 0) parts.push(contentsPart(DATA.contents.lists[DATA.contents.of[cell]]));
  if (modules) parts.push(modulesPart(modules));
  if (!timeline && cell !== null) parts.push(element("p", { class: "note" }, modules ? "Allocation by allocation, a step is seen by:" : "This record does not say which modules retain what. A look inside the step:"), command(timelineCommandOf(cell)));
  if (cell !== null) parts.push(element("h3", {}, "The record"), cellDetail(cell));
  body.replaceChildren(...parts);
}

function timelineParts(timeline, cell) {
  const node = element("div", { class: "chart tall" });
  chart(node, () => buildTimeline(node, timeline));
  const entries = timeline.categories.map((category) => element("li", {}, block(category.colour), element("span", {}, `${category.name}: ${quantity(category.atPeak, true)} at the peak`)));
  const peak = timeline.peak;
  const facts = [
    ["peak", `${quantity(peak.allocated, true)} (${exact(peak.allocated)}) in ${peak.phase}`],
    ["operator", peak.operator || "none, or not known"],
    ["module", peak.module === null ? "not known" : peak.module],
    ["left over", exact(peak.leftOver)],
    ["from", timeline.path || "memory"],
  ];
  const own = cell === null ? null : CELLS.peak_allocated_bytes[cell];
  if (cell === null) facts.push(["of", "no record of these reports: it lies in none of their folders, or was made with other options"]);
  else if (own !== null && own !== peak.allocated) facts.push(["not alike", `the record’s own peak is ${quantity(own, true)} (${exact(own)})`]);
  return [
    element("figure", {}, node, element("figcaption", {}, element("ul", { class: "keys short" }, ...entries), element("p", { class: "note" }, timeline.caption.join(". ")))),
    factList(facts),
  ];
}

function block(colour) {
  const node = element("span", { class: "block", "aria-hidden": "true" });
  node.style.cssText = `background:${/^#[0-9a-fA-F]{6}$/.test(colour) ? colour : "none"}`;
  return node;
}

function buildTimeline(node, timeline) {
  const unit = unitFor([timeline.peak.total], true);
  const data = timeline.categories.map((category) => ({
    x: timeline.places, y: category.bytes.map((value) => value / unit[0]), stackgroup: "alive", mode: "lines", line: { width: 0.5, shape: "hv", color: variable("--paper") }, fillcolor: category.colour,
    hoverinfo: "text", hovertext: category.bytes.map((value, place) => `${plotText(category.name)}: <b>${quantity(value, true)}</b> (${exact(value)})<br>event ${timeline.events[place].toLocaleString("en-US")}`),
  }));
  const peak = timeline.peak;
  data.push({ x: [peak.place], y: [peak.total / unit[0]], mode: "markers", hoverinfo: "text", hovertext: [`peak <b>${quantity(peak.allocated, true)}</b><br>${plotText(peak.operator || "")}<br>${plotText(peak.module || "")}`], marker: { symbol: "triangle-down", size: 11, color: variable("--paper"), line: { color: variable("--ink"), width: 1.5 } } });
  const side = peak.place > 0.5 ? "right" : "left";
  // As many characters as stand between the peak and the farther end.
  const room = Math.floor((Math.max(peak.place, 1 - peak.place) * (widthOf(node) - 80)) / 6.5);
  const words = [`peak ${quantity(peak.allocated, true)}`, peak.operator, peak.module].filter(Boolean).map((word) => plotText(shortened(word, Math.min(40, room))));
  const annotations = [{ x: peak.place, y: peak.total / unit[0], text: words.join("<br>"), align: side, showarrow: false, xanchor: side, yanchor: "bottom", yshift: 10, font: { size: 11 }, bgcolor: variable("--paper") }];
  const shapes = [];
  for (const phase of timeline.phases) {
    annotations.push({ x: (phase.first + phase.last) / 2, y: 1.02, yref: "paper", yanchor: "bottom", text: plotText(phase.name), showarrow: false, font: { size: 11, color: variable("--soft") } });
    shapes.push({ type: "line", x0: phase.last, x1: phase.last, y0: 0, y1: 1, yref: "paper", line: { color: variable("--soft"), width: 0.8, dash: "dash" } });
  }
  const layout = {
    annotations, shapes, margin: { l: 64, r: 16, t: 30, b: 46 },
    xaxis: { title: axisTitle("allocations and frees, in their order"), range: [0, 1], tickvals: timeline.phases.map((phase) => phase.last), ticktext: timeline.phases.map((phase) => phase.event.toLocaleString("en-US")) },
    yaxis: { title: axisTitle(`${unit[1]} allocated`), range: [0, (1.3 * peak.total) / unit[0]] },
  };
  return { data, layout, label: `Memory inside the step: peak ${quantity(peak.allocated, true)} in ${peak.phase}; what is alive there is told below.` };
}

// A list of amounts as bars, which is a table for a screen reader.
function barTable(head, rows, colour) {
  const most = Math.max(1, ...rows.map((row) => row[1]));
  const body = element("tbody", {});
  for (const [name, nbytes, note] of rows) {
    const bar = element("span", { class: "amount", "aria-hidden": "true" });
    bar.style.cssText = `background:${colour};width:${Math.max(0, (100 * nbytes) / most)}%`;
    body.append(element("tr", {}, element("td", { class: "name" }, name), element("td", { class: "number" }, quantity(nbytes, true)), element("td", {}, note), element("td", { style: "width:40%" }, bar)));
  }
  const heads = [...head.map((text, place) => element("th", { scope: "col", class: place === 1 ? "number" : "" }, text)), element("td", {})];
  return scrolled(head[0], element("table", { class: "plain" }, element("thead", {}, element("tr", {}, ...heads)), body));
}

function modulesPart(modules) {
  // The last entry, without a name, is the sum of all others.
  const rows = modules.map(([name, nbytes, count]) => (name === null ? [`and ${count} more`, nbytes, ""] : [name, nbytes * count, count > 1 ? `${count} × ${quantity(nbytes, true)}` : ""]));
  const total = rows.reduce((sum, row) => sum + row[1], 0);
  return element("div", {}, element("h4", {}, `Retained by module: ${quantity(total, true)}`), rows.length ? barTable(["module", "retained", "each"], rows, "var(--c1)") : element("p", {}, "Nothing is retained."));
}

function contentsPart([phase, ...amounts]) {
  const rows = DATA.contents.names.map((name, place) => [name, amounts[place], ""]).filter((row) => row[1]);
  return element("div", {}, element("h4", {}, `Alive at the peak, in ${textOf(phase)}`), barTable(["what for", "bytes", ""], rows, "var(--c0)"));
}

function factList(facts) {
  const list = element("dl", { class: "facts" });
  for (const [name, text] of facts) list.append(element("dt", {}, name), element("dd", {}, text));
  return list;
}

function command(text) {
  if (!text) return element("p", { class: "note" }, "The command is too long for this page; the record holds its options.");
  const button = element("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
    }
  } }, "Copy");
  const code = element("code", {}, text);
  return element("div", { class: "command" }, code, button);
}

function againText(cell) {
  const verb = isPredicted(lineOf(cell)) ? "predict" : "measure";
  const before = CELLS.replicate[cell] ? `, after the replicate${CELLS.replicate[cell] > 1 ? "s" : ""} before it` : "";
  return `To ${verb} it again${before}:`;
}

function cellDetail(cell) {
  const line = lineOf(cell);
  const facts = [["record", `${CELLS.key[cell]} in ${line.report}`], ["status", [statusOf(cell), textOf(CELLS.message[cell])].filter(Boolean).join(": ")]];
  for (const metric of DATA.metrics) if (figure(cell, metric) !== null) facts.push([metric.title, exactly(cell, metric)]);
  for (const name of Object.keys(SAMPLES)) {
    const raw = samplesOf(cell, name);
    const taken = takenOf(cell, name);
    const left = raw.length < taken ? (raw.length ? ` (the first ${raw.length} of ${taken}; all are in records.jsonl)` : `${taken}, all of which are in records.jsonl`) : "";
    if (taken) facts.push([`${METRICS[name] ? METRICS[name].title : name}, raw`, `${raw.length ? `${raw.join(", ")} s` : ""}${left}`]);
  }
  for (const [name, number] of [["noise", CELLS.noise[cell]], ["notes", CELLS.notes[cell]], ["counted by", CELLS.probe[cell]], ["data", CELLS.data_source[cell]], ["began", CELLS.started[cell]]]) if (number) facts.push([name, textOf(number)]);
  if (line.environment) facts.push(["machine", line.environment]);
  facts.push(["options", DATA.options.details.filter(({ name }) => line[name] !== undefined).map(({ name, noun }) => `${noun} ${line[name]}`).join(", ") || "none"]);
  return element("div", {}, factList(facts), element("p", { class: "note" }, againText(cell)), command(commandOf(cell)));
}
