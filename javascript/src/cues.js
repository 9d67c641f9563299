// A cue above each table that is wider than its place: it can be scrolled sideways.

import { element } from "./dom.js";

const CUE = "more columns: scroll sideways →";

function follow(scroll) {
  const cue = element("p", { class: "cue", "aria-hidden": "true", hidden: true }, CUE);
  scroll.before(cue);
  const look = () => {
    cue.hidden = scroll.scrollWidth <= scroll.clientWidth + 1;
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
