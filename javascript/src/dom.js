// Elements of the page. Texts of records are set as text, never as markup.

export const byId = (id) => document.getElementById(id);

function setProperty(node, name, value) {
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "class") node.className = value;
  else if (value === true) node.setAttribute(name, "");
  else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
}

const isThere = (child) => child !== null && child !== undefined;

export function element(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) setProperty(node, name, value);
  node.append(...children.filter(isThere));
  return node;
}

export const note = (text) => element("p", { class: "note" }, text);
export const details = (summary, ...children) => element("details", {}, element("summary", {}, summary), ...children);
export const badge = (text, kind) => element("span", { class: `verdict ${kind}` }, text);
export const bullets = (texts) => element("ul", { class: "findings" }, ...texts.map((text) => element("li", {}, text)));
export const button = (text, onclick) => element("button", { type: "button", onclick }, text);

// A button that copies a text; where a browser does not allow it, `instead` shows the text.
export function copyButton(label, text, instead) {
  const copy = button(label, async () => {
    try {
      await navigator.clipboard.writeText(text());
      copy.textContent = "Copied";
      setTimeout(() => {
        copy.textContent = label;
      }, 2000);
    } catch {
      instead(text());
    }
  });
  return copy;
}

export function scrolled(name, node) {
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, node);
}

export function factList(facts) {
  const pairs = facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]);
  return element("dl", { class: "facts" }, ...pairs);
}

export const shortened = (text, length) => (text.length <= length ? text : `${text.slice(0, length - 1)}…`);

export function field(label, options, value, changed, id) {
  const select = element("select", { id, onchange: () => changed(select.value) });
  for (const [key, text] of options) select.append(element("option", { value: key, title: text }, shortened(text, 60)));
  select.value = value;
  return element("label", { class: "field" }, label, select);
}

export function tick(label, value, changed, id) {
  const box = element("input", { type: "checkbox", id, onchange: () => changed(box.checked) });
  box.checked = value;
  return element("label", { class: "tick" }, box, label);
}

export const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
