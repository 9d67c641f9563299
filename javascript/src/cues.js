// A cue above each table that is larger than its place: it can be scrolled sideways, or down.

import { element } from "./dom.js";

const CUE = "more columns: scroll sideways →";
const DOWN = "more lines: scroll down ↓";

function follow(scroll) {
  const cue = element("p", { class: "cue", "aria-hidden": "true", hidden: true }, CUE);
  scroll.before(cue);
  const look = () => {
    const wide = scroll.scrollWidth > scroll.clientWidth + 1;
    const high = scroll.scrollHeight > scroll.clientHeight + 1;
    cue.hidden = !(wide || high);
    cue.textContent = [...(wide ? [CUE] : []), ...(high ? [DOWN] : [])].join("; ");
  };
  const sizes = new ResizeObserver(look);
  sizes.observe(scroll);
  if (scroll.firstElementChild) sizes.observe(scroll.firstElementChild);
}

// Tables are made anew while the page is read.
export function startCues() {
  const known = new WeakSet();
  const find = () => {
    for (const scroll of document.querySelectorAll(".scroll")) {
      if (known.has(scroll)) continue;
      known.add(scroll);
      follow(scroll);
    }
  };
  new MutationObserver(find).observe(document.querySelector("main"), { childList: true, subtree: true });
  find();
}
