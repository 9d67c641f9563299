// Memory against time at one depth, as a basis for a choice.

const TRADE = { memory: null, time: null, blocks: null };

function tradeDepths() {
  const found = new Set();
  for (const place of chosenLines()) for (const cell of CELLS_OF[place]) if (statusOf(cell) === "ok") found.add(CELLS.blocks[cell]);
  return [...found].sort((a, b) => a - b);
}

function startTradeoff() {
  const memories = DATA.metrics.filter((metric) => metric.bytes);
  TRADE.memory = (memories.find((metric) => metric.name === "peak") || memories[0] || {}).name;
  TRADE.time = (DATA.metrics.find((metric) => !metric.bytes) || {}).name;
  chart(byId("tradeoff-chart"), buildTradeoff, selectCell);
  tradeoffChanged();
}

function tradeoffChanged(change) {
  Object.assign(TRADE, change || {});
  const depths = tradeDepths();
  if (!depths.includes(TRADE.blocks)) TRADE.blocks = depths[depths.length - 1];
  const controls = byId("tradeoff-controls");
  const focused = document.activeElement && document.activeElement.id;
  controls.replaceChildren();
  if (TRADE.memory && TRADE.time && depths.length) {
    controls.append(
      field("Blocks", depths.map((depth) => [String(depth), String(depth)]), String(TRADE.blocks), (value) => tradeoffChanged({ blocks: Number(value) }), "trade-blocks"),
      field("Memory", metricOptions((metric) => metric.bytes), TRADE.memory, (value) => tradeoffChanged({ memory: value }), "trade-memory"),
      field("Time", metricOptions((metric) => !metric.bytes), TRADE.time, (value) => tradeoffChanged({ time: value }), "trade-time"),
    );
    if (focused && controls.querySelector(`#${CSS.escape(focused)}`)) byId(focused).focus();
  }
  redraw(byId("tradeoff-chart"));
  tradeoffNotes();
}

// The options that decide how much work a step is: only records that agree in them can beat each other.
const workOf = (cell) => JSON.stringify([lineOf(cell).dataset, lineOf(cell).batch_size]);

// The records at this depth that have both figures; no record of the same work beats those on the front.
function tradePoints() {
  const memory = METRICS[TRADE.memory];
  const time = METRICS[TRADE.time];
  if (!memory || !time) return [];
  const cells = chosenLines().flatMap((place) => CELLS_OF[place]).filter((cell) => CELLS.blocks[cell] === TRADE.blocks && isGood(cell, memory) && isGood(cell, time));
  const points = cells.map((cell) => ({ cell, memory: figure(cell, memory), time: figure(cell, time), front: false }));
  const best = new Map();
  for (const point of [...points].sort((a, b) => a.time - b.time || a.memory - b.memory)) {
    const last = best.get(workOf(point.cell));
    // A record that equals the last one in both is beaten by it in neither.
    if (!last || point.memory < last.memory || (point.memory === last.memory && point.time === last.time)) {
      point.front = true;
      best.set(workOf(point.cell), point);
    }
  }
  return points;
}

function buildTradeoff() {
  const points = tradePoints();
  if (!points.length) return { empty: "No chosen cell has both memory and time at one depth." };
  const memory = METRICS[TRADE.memory];
  const time = METRICS[TRADE.time];
  const [across, up] = [unitFor(points.map((point) => point.time), false), unitFor(points.map((point) => point.memory), true)];
  const fronts = new Map();
  for (const point of points.filter((one) => one.front).sort((a, b) => a.time - b.time)) fronts.set(workOf(point.cell), [...(fronts.get(workOf(point.cell)) || []), point]);
  const data = [...fronts.values()].map((front) => ({ x: front.map((point) => point.time / across[0]), y: front.map((point) => point.memory / up[0]), mode: "lines", line: { color: variable("--soft"), width: 1.2, shape: "hv", dash: "dot" }, hoverinfo: "skip" }));
  for (const place of [...new Set(points.map((point) => CELLS.line[point.cell]))]) {
    const own = points.filter((point) => CELLS.line[point.cell] === place);
    const colour = colourOf(LINES[place]);
    data.push({
      x: own.map((point) => point.time / across[0]), y: own.map((point) => point.memory / up[0]), mode: "markers", customdata: own.map((point) => point.cell),
      hovertext: own.map((point) => hoverText(point.cell, [memory, time])), hoverinfo: "text",
      marker: { opacity: 1, symbol: LINES[place].look.symbol, size: own.map((point) => LINES[place].look.size + (point.front ? 4 : 0)), color: own.map((point) => (point.front ? colour : variable("--paper"))), line: { color: colour, width: 1.6 } },
    });
  }
  const layout = {
    xaxis: { title: axisTitle(`${time.title}, ${across[1]} per step`), ...levelRange(points.map((point) => point.time), across) },
    yaxis: { title: axisTitle(`${memory.title}, ${up[1]}`), ...levelRange(points.map((point) => point.memory), up) },
  };
  return { data, layout, label: `${memory.title} against ${time.title} at ${blocksText(TRADE.blocks)}, ${plural(points.length, "record")}; the numbers are in a table below.` };
}

function tradeoffNotes() {
  const points = tradePoints();
  const front = new Set(points.filter((point) => point.front).map((point) => CELLS.line[point.cell]));
  // Records on the front come first, since the choice is among them.
  const places = [...new Set(points.map((point) => CELLS.line[point.cell]))].sort((a, b) => front.has(b) - front.has(a) || a - b);
  const names = namesOf(places);
  const entry = (place) => ({ ...keyOf(LINES[place], names.get(place) + (front.has(place) ? " (on the front)" : "")), dash: null });
  const legend = [keys(places.slice(0, MOST_LINES).map(entry)), moreKeys(places.slice(MOST_LINES), entry)];
  byId("tradeoff-caption").replaceChildren(...(points.length ? [...legend.filter(Boolean), element("p", { class: "note" }, `Filled markers lie on the front, which the dotted line joins: less of one only for more of the other.${new Set(points.map((point) => workOf(point.cell))).size > 1 ? " Each batch size of each data set has a front of its own." : ""}`)] : []));
  const [memory, time] = [METRICS[TRADE.memory], METRICS[TRADE.time]];
  const host = byId("tradeoff-numbers").lastElementChild;
  if (!points.length) return host.replaceChildren();
  makeTable(host, {
    name: "Numbers of the trade-off", rows: points, size: 10,
    columns: [
      { label: "line", value: (point) => names.get(CELLS.line[point.cell]), name: true },
      { label: memory.title, value: (point) => point.memory, text: (point) => exactly(point.cell, memory), number: true },
      { label: time.title, value: (point) => point.time, text: (point) => exactly(point.cell, time), number: true },
      { label: "on the front", value: (point) => (point.front ? "yes" : "no") },
      { label: "record", value: (point) => CELLS.key[point.cell] },
    ],
  });
}
