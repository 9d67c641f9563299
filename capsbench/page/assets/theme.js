// Dark and light: the reader's choice, or the system's.

const THEME = { dark: false, changed: [] };

function setTheme(dark) {
  THEME.dark = dark;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  for (const tell of THEME.changed) tell();
}

function startTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("capsbench-theme");
  } catch {
    // A page opened from a disk may have no storage.
  }
  setTheme(chosen ? chosen === "dark" : system.matches);
  system.addEventListener("change", (event) => chosen || setTheme(event.matches));
  byId("theme").addEventListener("click", () => {
    chosen = THEME.dark ? "light" : "dark";
    try {
      localStorage.setItem("capsbench-theme", chosen);
    } catch {
      // No storage, as in `stored`.
    }
    setTheme(chosen === "dark");
  });
  // Paper is light.
  let before = false;
  addEventListener("beforeprint", () => {
    before = THEME.dark;
    PAPER.on = true;
    setTheme(false);
    drawAll();
  });
  addEventListener("afterprint", () => {
    PAPER.on = false;
    setTheme(before);
  });
}

// Colours of keys, which follow the theme, and of charts, which are drawn anew.
const keyColour = (place) => `var(--c${place})`;
const keyOf = (line, text) => ({ ...line.look, colour: keyColour(line.look.colour), text });
const colourOf = (line) => DATA.palettes[THEME.dark ? "dark" : "light"][line.look.colour];
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
