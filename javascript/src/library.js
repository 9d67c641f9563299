// The charting library. It is unpacked synchronously, as a page that is printed waits for nothing.

import { strFromU8, strToU8, unzlibSync } from "fflate";
import { byId, element } from "./dom.js";

const IS_LATIN = true;

export function plotly() {
  if (!window.Plotly) {
    const packed = strToU8(atob(byId("library").textContent.trim()), IS_LATIN);
    const script = element("script", {}, strFromU8(unzlibSync(packed)));
    document.head.append(script);
    script.remove();
  }
  return window.Plotly;
}
