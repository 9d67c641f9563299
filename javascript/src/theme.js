// Dark and light: the reader's choice, or the system's. Paper is light.

import { drawAll, redrawAll } from "./charts.js";
import { byId } from "./dom.js";
import { change, state } from "./state.js";

const STORED = "capsbench-theme";

export function drawLook() {
  document.documentElement.dataset.theme = state.look.dark ? "dark" : "light";
  redrawAll();
}

function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null; // A page opened from a disk may have no storage.
  }
}

function store(theme) {
  try {
    localStorage.setItem(STORED, theme);
  } catch {
    // There is no storage, as in `stored`.
  }
}

export function startTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = stored();
  change(state.look, { dark: chosen ? chosen === "dark" : system.matches });
  system.addEventListener("change", (event) => chosen || change(state.look, { dark: event.matches }));
  byId("theme").addEventListener("click", () => {
    chosen = state.look.dark ? "light" : "dark";
    store(chosen);
    change(state.look, { dark: chosen === "dark" });
  });
  followPrinter();
}

function followPrinter() {
  let dark = false;
  addEventListener("beforeprint", () => {
    dark = state.look.dark;
    change(state.look, { dark: false, printed: true });
    drawAll();
  });
  addEventListener("afterprint", () => change(state.look, { dark, printed: false }));
}
