// Elements, numbers as people read them, what screen readers are told, what browsers keep.

const SVG = "http://www.w3.org/2000/svg";

/** The element of this id, which the page has. */
export const $ = (id) => document.getElementById(id);

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== false && child != null));
  return element;
}

export const h = (tag, props, ...children) => filled(document.createElement(tag), props, children);
export const button = (label, onclick, props) => h("button", { type: "button", onclick, ...props }, label);
export const svg = (tag, props, ...children) => filled(document.createElementNS(SVG, tag), props, children);

/** Whether the conversations are in front of all else, where a narrow screen hides them. */
export function drawer(open) {
  $("drawer").setAttribute("aria-expanded", open);
  return document.body.classList.toggle("drawn", open);
}

/** Tell a screen reader. */
export function say(text) {
  $("said").textContent = text;
}

/** Where the browser refuses that, the like of it until the page is left. */
export function storage(name) {
  try {
    return globalThis[name];
  } catch {
    const kept = new Map();
    return { getItem: (key) => kept.get(key) ?? null, setItem: (key, text) => kept.set(key, text), removeItem: (key) => kept.delete(key) };
  }
}

export function count(n) {
  return Math.round(n).toLocaleString("en").replaceAll(",", "\u202f");
}

export function rate(n) {
  return n >= 100 ? count(n) : n.toFixed(n >= 10 ? 1 : 2);
}

export function bytes(n) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  for (; n >= 1000 && unit < units.length - 1; n /= 1000) unit++;
  return `${unit && n < 100 ? n.toFixed(1) : Math.round(n)}\u202f${units[unit]}`;
}

export function span(seconds) {
  if (seconds < 1) return `${seconds < 0.01 ? (1000 * seconds).toFixed(1) : Math.round(1000 * seconds)}\u202fms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)}\u202fs`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}\u202fmin ${Math.round(seconds % 60)}\u202fs`;
  return `${Math.floor(minutes / 60)}\u202fh ${minutes % 60}\u202fmin`;
}

/** A bar of parts [name, amount, class], of a whole; what its parts are stands beside it, for everybody. */
export function bar(parts, whole, label) {
  const element = h("div", { class: "track", role: "img", "aria-label": label });
  for (const [name, amount, kind] of parts) {
    if (!(amount > 0)) continue;
    const part = h("i", { class: kind, title: `${name}: ${count(amount)}` });
    part.style.width = `${Math.min(100, (100 * amount) / Math.max(whole, 1))}%`;
    element.append(part);
  }
  return element;
}
