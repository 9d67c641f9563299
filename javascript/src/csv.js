// Files that are made in the page and downloaded.

import { element } from "./dom.js";

const isFormula = (text) => /^\s*[=+\-@]/.test(text) && !/^[+-]?\d+(\.\d*)?(e[+-]?\d+)?$/i.test(text);

export function csvField(value) {
  if (value === null || value === undefined) return "";
  // A record stays one line.
  let text = String(value).replace(/\s*[\r\n\v\f\u0085\u2028\u2029]+\s*/g, " ");
  // A spreadsheet must not take a name for a formula.
  if (typeof value === "string" && isFormula(text)) text = `'${text}`;
  return /[",\t]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

const csv = (rows) => `${rows.map((row) => row.map(csvField).join(",")).join("\r\n")}\r\n`;

export function downloadCsv(name, rows) {
  const link = element("a", { href: URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
