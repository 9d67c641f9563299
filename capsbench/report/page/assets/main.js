// Everything is there: begin.

startTheme();
startFilters();
startDepth();
startTradeoff();
startStep();
startTables();
startRuns();
listeners.push(() => depthChanged({}), () => tradeoffChanged());
THEME.changed.push(() => {
  for (const node of CHARTS.keys()) redraw(node);
  depthNotes();
  tradeoffNotes();
  if (byId("history-caption") && HISTORY.metric) historyNotes();
});
const readyAfter = performance.now();
document.documentElement.dataset.ready = "yes";
