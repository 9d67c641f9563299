// Starts the page, and draws each part of it when the state that it shows has changed.

import { drawCells, drawSlopes, startCells, startSlopes } from "./cells.js";
import { drawRest, redrawAll, whenWider } from "./charts.js";
import { drawComparison, startComparison } from "./comparison.js";
import { startCues } from "./cues.js";
import { drawDepth, startDepth } from "./depth.js";
import { byId } from "./dom.js";
import { clearHeadings, startFilters } from "./filters.js";
import { drawFits, startFits } from "./fits.js";
import { drawHistory, startHistory } from "./history.js";
import { remember, startLinks } from "./links.js";
import { startMachines, startReports } from "./machines.js";
import { drawWith, state } from "./state.js";
import { drawStep, showCell, startStep } from "./step.js";
import { drawRows } from "./tables.js";
import { drawLook, startTheme } from "./theme.js";
import { drawTradeoff, startTradeoff } from "./tradeoff.js";

export { CHARTS, drawAll, redraw } from "./charts.js";
// Exported for whoever looks into a page from the browser's console, as `capsbench`.
export { csvField } from "./csv.js";
export { CELLS, COUNT, commandOf, DATA, LINES, lineOf, timelineCommandOf } from "./data.js";
export { againText } from "./record.js";
export { change, state } from "./state.js";
export { selectCell } from "./step.js";
export { tradePoints } from "./tradeoff.js";

// What is drawn, and the parts of the state that it is drawn from.
const VIEWS = [
  [drawLook, [state.look]],
  [drawDepth, [state.filters, state.depth]],
  [drawTradeoff, [state.filters, state.tradeoff]],
  [drawFits, [state.filters]],
  [drawStep, [state.step]],
  [drawCells, [state.filters, state.cells]],
  [drawSlopes, [state.filters]],
  [drawHistory, [state.filters, state.history]],
  [drawComparison, [state.comparison]],
  ...Object.entries(state.tables).map(([id, table]) => [() => drawRows(id), [table]]),
];

function draw(part) {
  for (const [view, parts] of VIEWS) if (parts.includes(part)) view();
  remember(part);
}

function start() {
  drawWith(draw);
  startTheme();
  startFilters();
  clearHeadings();
  startDepth();
  startTradeoff();
  startFits();
  startCells();
  startSlopes();
  startReports();
  startMachines();
  if (byId("runs")) startHistory();
  if (byId("runs")) startComparison();
  drawDepth();
  drawTradeoff();
  drawFits();
  startStep();
  drawHistory();
  drawComparison();
  startCues();
  startLinks(showCell);
  addEventListener("resize", clearHeadings);
  addEventListener("resize", whenWider(redrawAll));
  addEventListener("load", () => setTimeout(drawRest));
  document.documentElement.dataset.ready = "yes";
}

start();
export const readyAfter = performance.now();
