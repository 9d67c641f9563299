// The chosen slopes as text for a document.

import { DATA } from "./data.js";
import { isFitted } from "./words.js";

const HEADS = ["line", "data set", "quantity", "cost", "times ResCapsNet's"];

// A row as texts: a slope with its unit, or that there is none.
function textsOf({ line, metric, fit }) {
  const slope = isFitted(fit) && fit.shape !== "line" ? fit.text : `${fit.text} per ${fit.per}`;
  const cost = fit.shape === "not a line" ? fit.shape : slope;
  return [line.short, line.datasetTitle, metric.title, cost, fit.ratioText || "-"];
}

const inMarkdown = (text) => text.replace(/[\\`*_[\]<>|#]/g, "\\$&");

export function asMarkdown(rows) {
  const row = (texts) => `| ${texts.join(" | ")} |`;
  return [row(HEADS), row(HEADS.map(() => "---")), ...rows.map((one) => row(textsOf(one).map(inMarkdown)))].join("\n");
}

const inLatex = (text) => Array.from(text, (sign) => DATA.latexSigns[sign] ?? sign).join("");

export function asLatex(rows) {
  const row = (texts) => `${texts.map(inLatex).join(" & ")} \\\\`;
  const lines = [row(HEADS), "\\midrule", ...rows.map((one) => row(textsOf(one)))];
  return ["% \\usepackage{booktabs}", "\\begin{tabular}{lllrr}", "\\toprule", ...lines, "\\bottomrule", "\\end{tabular}"].join(
    "\n",
  );
}
