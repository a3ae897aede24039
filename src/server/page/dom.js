/* dom.js - elements without HTML text: what a model writes is only ever a text node. */

const byId = (id) => document.getElementById(id);

/* h("a.note", {href: "/"}, "text", child, ...): an element with classes, attributes or on… listeners, and children, which
 * may be lists too. */
function h(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/* A picture from the sheet in page.html; the control that holds it has the name. */
function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: "#i-" + name }));
}

/* A button with a picture; the label is its name and its tooltip. */
function iconButton(name, label, onclick, attributes) {
  return h("button.icon-button", { type: "button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // pages of plain http:// have no clipboard
  }
  const use = button.querySelector("use");
  const before = use.getAttribute("href");
  if (before === "#i-check") return;
  use.setAttribute("href", "#i-check");
  announce("Copied");
  setTimeout(() => use.setAttribute("href", before), 1200);
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const field = h("textarea.sr", { "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  if (focused) focused.focus();
}

/* Says a sentence to screen readers. */
function announce(text) {
  byId("announce").textContent = "";
  setTimeout(() => { byId("announce").textContent = text; }, 50);
}

let toastTimer = 0;

/* A sentence at the bottom for a while, with one action at most: {label, run}. */
function toast(text, action) {
  const box = byId("toast");
  clearTimeout(toastTimer);
  const hide = () => box.replaceChildren();
  const parts = [h("span", {}, text)];
  if (action) parts.push(h("button", { type: "button", onclick: () => { hide(); action.run(); } }, action.label));
  box.replaceChildren(h("div.toast", {}, ...parts));
  toastTimer = setTimeout(hide, action ? 8000 : 5000);
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const pad = (n) => String(n).padStart(2, "0");

/* 1234567 -> "1.23M", 1234 -> "1,234", 12.34 -> "12.3". */
function shortNumber(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1e9) return (value / 1e9).toFixed(2) + "G";
  if (value >= 1e6) return (value / 1e6).toFixed(2) + "M";
  if (value >= 1e5) return Math.round(value / 1e3) + "k";
  if (value >= 1e4) return (value / 1e3).toFixed(1) + "k";
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  return value >= 10 || Number.isInteger(value) ? String(Math.round(value * 10) / 10) : value.toFixed(2);
}

/* Seconds -> "850 µs", "12 ms", "1.5 s". */
function shortTime(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0.001) return Math.round(seconds * 1e6) + " µs";
  if (seconds < 0.01) return (seconds * 1e3).toFixed(1) + " ms";
  if (seconds < 1) return Math.round(seconds * 1e3) + " ms";
  return seconds < 100 ? seconds.toFixed(1) + " s" : Math.round(seconds) + " s";
}
