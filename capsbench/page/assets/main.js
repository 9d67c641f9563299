// Starts the page, once everything is loaded.

startTheme();
startFilters();
clearHeadings();
addEventListener("resize", clearHeadings);
addEventListener("resize", whenWider(() => CHARTS.forEach((_, node) => redraw(node))));
startDepth();
startTradeoff();
startStep();
startTables();
startRuns();
listeners.push(() => depthChanged({}), () => tradeoffChanged());
THEME.changed.push(() => {
  for (const node of CHARTS.keys()) redraw(node);
});
addEventListener("load", () => setTimeout(drawRest));
const readyAfter = performance.now();
document.documentElement.dataset.ready = "yes";
