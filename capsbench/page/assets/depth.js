// Figures 3 and 4 of the paper, from one's own records: memory and time over depth.

const DEPTH = { metric: (METRICS.retained || DATA.metrics[0] || {}).name, axis: "close", paper: true };
const AXES = [["close", "close to the values"], ["zero", "from 0"], ["log", "logarithmic"]];

function startDepth() {
  const controls = byId("depth-controls");
  if (DATA.metrics.length) controls.append(field("Quantity", metricOptions(), DEPTH.metric, (value) => depthChanged({ metric: value }), "metric"));
  controls.append(field("Axis", AXES, DEPTH.axis, (value) => depthChanged({ axis: value }), "axis"));
  controls.append(tick("the paper’s values", DEPTH.paper, (value) => depthChanged({ paper: value }), "with-paper"));
  controls.append(element("button", { type: "button", onclick: () => saveImage("figure4") }, "Save as SVG"));
  chart(byId("figure4"), buildFigure4, selectCell);
  depthNotes();
  startFigure3();
}

function depthChanged(change) {
  Object.assign(DEPTH, change);
  redraw(byId("figure4"));
  depthNotes();
  startFigure3();
}

function saveImage(id) {
  const Plotly = unpack();
  const node = byId(id);
  if (node.dataset.drawn === "yes") Plotly.downloadImage(node, { format: "svg", filename: id, width: node.clientWidth, height: node.clientHeight });
}

function buildFigure4(node) {
  const metric = METRICS[DEPTH.metric];
  if (!metric) return { empty: "No cell has a figure: there is nothing to draw." };
  return overDepth(node, metric, drawnLines(metric).drawn, { fits: true, axis: DEPTH.axis, paper: DEPTH.paper });
}

// One quantity over depth: a point for each record, fitted lines, pale joins if none fits, and points alone if no change is measurable.
function overDepth(node, metric, places, { fits, axis, paper }) {
  const measured = places.flatMap((place) => CELLS_OF[place]).filter((cell) => figure(cell, metric) !== null);
  const pale = paper ? paperLines(metric, places) : [];
  const values = [...measured.map((cell) => figure(cell, metric)), ...pale.flatMap((line) => line.bytes)];
  if (!measured.length) {
    const full = places.some((place) => fullOf(place).length);
    return { empty: full ? "Every cell that was tried ran out of memory." : `No chosen cell says anything of ${metric.title}.` };
  }
  const unit = unitFor(values, metric.bytes);
  const data = [];
  const annotations = [];
  for (const one of pale) data.push(paperTrace(one, unit));
  const depths = [...measured, ...places.flatMap(fullOf)].map((cell) => CELLS.blocks[cell]);
  const middle = (Math.min(...depths) + Math.max(...depths)) / 2;
  for (const place of places) data.push(...lineTraces(place, metric, unit, fits), ...endTraces(place, metric, unit, middle, annotations));
  const nowhere = places.filter((place) => fullOf(place).length && !CELLS_OF[place].some((cell) => isGood(cell, metric)));
  data.push(...nowhere.map((place, row) => fullTrace(place, row, fits)));
  const label = `${metric.title} over depth, ${plural(places.length, "line")}; the numbers are in a table below.`;
  const layout = {
    annotations,
    xaxis: { title: axisTitle("blocks"), ...wholeTicks(depths, node) },
    yaxis: { title: axisTitle(`${fits ? `${metric.title}, ` : ""}${unit[1]}${metric.bytes ? "" : " per step"}`), rangemode: axis === "zero" ? "tozero" : "normal" },
  };
  // The height of lines that are out of memory at every depth is unknown: they stand at the top.
  if (nowhere.length) layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
  // A value that is not above 0 has no place on a logarithmic axis.
  if (axis === "log" && Math.min(...values) > 0) layout.yaxis.type = "log";
  const ends = metric.bytes ? [] : measured.flatMap((cell) => [CELLS[`${metric.name}_low`][cell], CELLS[`${metric.name}_high`][cell]]).filter((end) => end !== null);
  if (axis === "close") Object.assign(layout.yaxis, levelRange([...values, ...ends], unit));
  if (layout.yaxis.type === "log") for (const one of annotations) one.y = Math.log10(one.y);
  return { data, layout, label };
}

function lineTraces(place, metric, unit, fits) {
  const line = LINES[place];
  const colour = colourOf(line);
  const cells = CELLS_OF[place].filter((cell) => isGood(cell, metric));
  const failed = CELLS_OF[place].filter((cell) => figure(cell, metric) !== null && statusOf(cell) !== "ok");
  const fit = line.fits[metric.name];
  const found = [];
  if (failed.length) found.push(failedTrace(failed, metric, unit, colour));
  if (!cells.length) return found;
  const means = line.means[metric.name] || cells.map((cell) => [CELLS.blocks[cell], figure(cell, metric)]);
  if (fits && fit && fit.shape === "line") {
    const depths = [...new Set(cells.map((cell) => CELLS.blocks[cell]))];
    found.push({ x: depths, y: depths.map((x) => (fit.intercept + fit.slope * x) / unit[0]), mode: "lines", line: { color: colour, width: 1.6, dash: line.look.dash }, hoverinfo: "skip" });
  } else if (!fits || !fit || fit.shape === "not a line") {
    found.push({
      x: means.map((pair) => pair[0]), y: means.map((pair) => pair[1] / unit[0]), mode: "lines", hoverinfo: "skip", opacity: fits ? 0.4 : 1,
      line: { color: colour, width: 1.4, dash: line.look.dash, shape: metric.name === "reserved" ? "hvh" : "linear" },
    });
  }
  const noisy = cells.map((cell) => !metric.bytes && noiseOf(cell) !== "");
  const points = {
    x: cells.map((cell) => CELLS.blocks[cell]), y: cells.map((cell) => figure(cell, metric) / unit[0]), mode: "markers", customdata: cells,
    hovertext: cells.map((cell) => hoverText(cell, [metric])), hoverinfo: "text",
    marker: { symbol: line.look.symbol, size: line.look.size, color: noisy.map((bad) => (bad ? colour : variable("--paper"))), line: { color: colour, width: 1.6 } },
  };
  if (!metric.bytes) points.error_y = bars(cells, metric, unit, colour);
  found.push(points);
  return found;
}

// The message of a cell that failed, which is in no line and no slope.
function failedTrace(cells, metric, unit, colour) {
  return {
    x: cells.map((cell) => CELLS.blocks[cell]), y: cells.map((cell) => figure(cell, metric) / unit[0]), mode: "markers", customdata: cells, opacity: 0.7,
    hovertext: cells.map((cell) => hoverText(cell, [metric])), hoverinfo: "text", marker: { symbol: "circle-x-open", size: 11, color: colour, line: { color: colour, width: 1.4 } },
  };
}

const fullOf = (place) => CELLS_OF[place].filter((cell) => statusOf(cell) === "oom");

// The end of a line because the device is full, in words.
function endText(place) {
  const full = fullOf(place);
  if (!full.length) return "";
  return `out of memory${CELLS.blocks[full[0]] ? ` at ${blocksText(CELLS.blocks[full[0]])}` : ""}`;
}

const fullHover = (cell) => `<b>${plotText(shortened(lineOf(cell).label, 60))}</b><br>${plotText(depthText(cell))}: out of memory<br>${plotText(shortened(recordText(cell), 70))}`;

function fullTrace(place, row, named) {
  const [cell] = fullOf(place);
  const colour = colourOf(LINES[place]);
  return {
    x: [CELLS.blocks[cell]], y: [0.97 - 0.05 * row], yaxis: "y2", mode: named ? "markers+text" : "markers", customdata: [cell], hovertext: [fullHover(cell)], hoverinfo: "text", cliponaxis: false,
    text: [`${plotText(shortened(LINES[place].short, 30))}: out of memory`], textposition: "middle right", textfont: { color: colour, size: 11 },
    marker: { symbol: "x-thin", size: 10, line: { color: colour, width: 2 } },
  };
}

// Intervals of medians.
function bars(cells, metric, unit, colour) {
  const reach = (cell, side) => {
    const end = CELLS[`${metric.name}_${side}`][cell];
    return end === null ? 0 : Math.abs(end - figure(cell, metric)) / unit[0];
  };
  return { type: "data", symmetric: false, array: cells.map((cell) => reach(cell, "high")), arrayminus: cells.map((cell) => reach(cell, "low")), color: colour, thickness: 0.8, width: 2 };
}

// The end of a line because the device was full.
function endTraces(place, metric, unit, middle, annotations) {
  const full = fullOf(place);
  const measured = CELLS_OF[place].filter((cell) => isGood(cell, metric));
  if (!full.length || !measured.length) return [];
  const colour = colourOf(LINES[place]);
  // A deeper network may have had room again; the mark stands where there was first none.
  const last = measured.filter((cell) => CELLS.blocks[cell] <= CELLS.blocks[full[0]]).pop() ?? measured[0];
  const y = figure(last, metric) / unit[0];
  annotations.push({ x: CELLS.blocks[full[0]], y, text: "out of memory", showarrow: false, xanchor: CELLS.blocks[full[0]] < middle ? "left" : "right", yanchor: "bottom", yshift: 5, font: { color: colour, size: 11 }, bgcolor: variable("--paper"), borderpad: 1 });
  return [
    { x: [CELLS.blocks[last], CELLS.blocks[full[0]]], y: [y, y], mode: "lines", line: { color: colour, width: 1.2, dash: "dot" }, hoverinfo: "skip" },
    { x: [CELLS.blocks[full[0]]], y: [y], mode: "markers", customdata: [full[0]], hovertext: [fullHover(full[0])], hoverinfo: "text", marker: { symbol: "x-thin", size: 10, line: { color: colour, width: 2 } } },
  ];
}

// Table 4 of the paper, if it can stand beside the drawn figures: on a GPU, at its batch.
function paperLines(metric, places) {
  if (!DATA.paper.metrics.includes(metric.name)) return [];
  const found = [];
  for (const dataset of new Set(places.filter((place) => LINES[place].paper).map((place) => LINES[place].dataset))) {
    for (const [model, one] of Object.entries(DATA.paper.memory[dataset] || {})) found.push({ ...one, model, dataset });
  }
  return found;
}

const PAPER_COLOURS = { mocapsnet: 0, rescapsnet: 1, capsnet: 2 };
const paperColour = (one) => DATA.palettes[THEME.dark ? "dark" : "light"][PAPER_COLOURS[one.model]];

function paperTrace(one, unit) {
  const text = (x, place) => `the paper’s ${one.title}<br>${plural(x, "block")}: <b>${quantity(one.bytes[place], true)}</b><br>table 4, nvidia-smi`;
  return {
    x: one.blocks, y: one.bytes.map((value) => value / unit[0]), mode: "lines+markers", opacity: 0.4, hoverinfo: "text", hovertext: one.blocks.map(text),
    line: { color: paperColour(one), width: 1 }, marker: { size: 4, color: paperColour(one) },
  };
}

function depthNotes() {
  const metric = METRICS[DEPTH.metric];
  const caption = byId("figure4-caption");
  const numbers = byId("figure4-numbers").lastElementChild;
  byId("with-paper").parentElement.hidden = !metric || !paperLines(metric, chosenLines()).length;
  if (!metric) return caption.replaceChildren();
  const lines = drawnLines(metric);
  const names = namesOf(lines.drawn);
  const entries = lines.drawn.map((place) => {
    const line = LINES[place];
    const fit = line.fits[metric.name];
    const told = [fit ? slopeText(fit) : "", endText(place)].filter(Boolean).join("; ");
    const key = keyOf(line, names.get(place) + (told ? `: ${told}` : ""));
    return fit && fit.shape === "no change measurable" ? { ...key, dash: "" } : key;
  });
  if (DEPTH.paper) for (const one of paperLines(metric, lines.drawn)) entries.push({ colour: keyColour(PAPER_COLOURS[one.model]), symbol: "circle", dash: "solid", pale: true, text: `the paper’s ${one.title}, ${one.dataset} (nvidia-smi)` });
  const words = [linesNote(lines), "Every point is a record; click one to look inside its step. ", metric.bytes ? "" : "Bars: 95 % intervals of medians; filled markers are noisy. ", lines.drawn.some((place) => isPredicted(LINES[place])) ? "Dashed: predicted. " : "", lines.drawn.some((place) => fullOf(place).length) ? "Crosses: out of memory. " : "", lines.drawn.some((place) => CELLS_OF[place].some((cell) => figure(cell, metric) !== null && statusOf(cell) !== "ok")) ? "Crossed circles: cells that did not end well, which are in no slope. " : "", DEPTH.axis === "zero" ? "" : "The axis need not start at 0. ", DEPTH.axis === "log" && lines.drawn.flatMap((place) => CELLS_OF[place]).some((cell) => figure(cell, metric) !== null && figure(cell, metric) <= 0) ? "It is not logarithmic, which has no place for 0." : ""];
  caption.replaceChildren(keys(entries), element("p", { class: "note" }, words.join("")));
  const cells = lines.drawn.flatMap((place) => CELLS_OF[place]);
  makeTable(numbers, {
    name: "Numbers of the figure over depth", rows: cells, size: 10,
    columns: [
      { label: "line", value: (cell) => names.get(CELLS.line[cell]), name: true },
      { label: "blocks", value: (cell) => CELLS.blocks[cell], number: true },
      { label: metric.title, value: (cell) => figure(cell, metric), text: (cell) => (figure(cell, metric) === null ? statusOf(cell) : exactly(cell, metric) + (statusOf(cell) === "ok" ? "" : `, ${statusOf(cell)}`)), number: true },
      { label: "interval", value: (cell) => (figure(cell, metric) === null ? "" : interval(cell, metric)) },
      { label: "record", value: (cell) => CELLS.key[cell] },
    ],
  });
}

// Small multiples: the chosen memory, training and inference; a row for each data set.
function startFigure3() {
  const host = byId("figure3");
  forget(host);
  host.replaceChildren();
  const memory = METRICS[DEPTH.metric] && METRICS[DEPTH.metric].bytes ? DEPTH.metric : "retained";
  const metrics = [memory, "train", "inference"].filter((name) => METRICS[name]).map((name) => METRICS[name]);
  const drawnOf = new Map(metrics.map((metric) => [metric, drawnLines(metric).drawn]));
  const datasets = [...new Set([...drawnOf.values()].flat().map((place) => LINES[place].dataset))].slice(0, 4);
  const drawn = new Set();
  for (const dataset of datasets) {
    const title = LINES.find((line) => line.dataset === dataset).datasetTitle;
    for (const [metric, places] of drawnOf) {
      const own = places.filter((place) => LINES[place].dataset === dataset);
      const node = element("div", { class: "chart" });
      host.append(element("div", { class: "panel" }, element("h4", {}, (datasets.length > 1 ? `${title}: ` : "") + metric.title), node));
      chart(node, () => overDepth(node, metric, own, { fits: false, axis: DEPTH.axis, paper: false }), selectCell);
      for (const place of own) drawn.add(place);
    }
  }
  figure3Notes(drawn);
}

// The key of lines that only the small charts draw, since they lack the quantity above.
function figure3Notes(drawn) {
  const metric = METRICS[DEPTH.metric];
  const above = metric ? drawnLines(metric).drawn : [];
  const others = [...drawn].filter((place) => !above.includes(place)).sort((a, b) => a - b);
  const names = namesOf([...above, ...others]);
  const entries = others.map((place) => keyOf(LINES[place], names.get(place)));
  const words = !drawn.size ? "No cell has a figure: there is nothing to draw." : `Colours and markers as above${others.length ? ", and here also those below" : ""}. Joined are the means over replicates.`;
  byId("figure3-caption").replaceChildren(element("p", { class: "note" }, words), ...(others.length ? [keys(entries)] : []));
}
