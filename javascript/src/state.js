// All that a reader of the page has chosen, in one object. It is changed by `change` alone, which draws the parts that show it.

import { DATA, METRICS } from "./data.js";

export const ALL = "*";
export const MOST_LINES = 12;

const times = DATA.metrics.filter((metric) => !metric.bytes);
const unsorted = () => ({ by: -1, down: false, page: 0, words: "" });

export const state = {
  filters: Object.fromEntries(DATA.options.filters.map(({ name }) => [name, ALL])),
  depth: { metric: (METRICS.retained ?? DATA.metrics[0])?.name, axis: "close", paper: true },
  // A memory that is not chosen is the one that differs most.
  tradeoff: { memory: null, time: times[0]?.name, place: null },
  // A cell that was chosen is kept in the address; one that was jumped to has a way back.
  step: { cell: null, timeline: null, chosen: false, jumped: false },
  history: { metric: null },
  comparison: { index: 0 },
  cells: { status: ALL },
  look: { dark: false, printed: false },
  tables: {
    "cells-table": unsorted(),
    "slopes-table": unsorted(),
    "figure4-numbers": unsorted(),
    "tradeoff-numbers": unsorted(),
    "fits-table": unsorted(),
    "history-table": unsorted(),
    "compare-table": unsorted(),
  },
};

let draw = () => {};

// Sets the function that draws what depends on a part of the state.
export function drawWith(drawing) {
  draw = drawing;
}

// Changes values of one part of the state, such as `state.depth`.
export function change(part, values) {
  Object.assign(part, values);
  draw(part);
}

// Sorts a table by no column, and shows its first page.
export function resetTable(id) {
  Object.assign(state.tables[id], unsorted());
  return state.tables[id];
}
