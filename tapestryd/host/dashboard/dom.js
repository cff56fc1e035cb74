// Putting what is known into the page, touching only what differs, so that selections, focus and screen readers are left in peace.

import { duration, since, stamp } from "./format.js";

/** The element that index.html names so. */
export const at = (name) => document.querySelector(`[data-at="${name}"]`);

/** A new element. Children are elements or text, never markup: names come from other peers. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** Replace the children, unless they look the same already. */
export function fill(element, children) {
  const box = document.createElement("div");
  box.append(...children);
  if (box.innerHTML !== element.innerHTML) element.replaceChildren(...box.childNodes);
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** A description list: [term, value or element, title] each; those without a value are left out. */
export function describe(element, pairs) {
  const said = pairs.filter(([, value]) => value);
  fill(element, said.map(([term, value, title]) => make("div", { title }, make("dt", {}, term), make("dd", {}, value))));
}

/** A row of a table; a cell in a list is a number. */
export function row(cells) {
  return make("tr", {}, ...cells.map((cell) => (Array.isArray(cell) ? make("td", { class: "n" }, ...cell) : make("td", {}, cell))));
}

/** A small table, the first column of words and the others of numbers. */
export function table(caption, head, rows) {
  const heads = head.map((name, place) => make("th", { scope: "col", class: place ? "n" : null }, name));
  const lines = rows.map(([first, ...numbers]) => row([first, ...numbers.map((number) => [number])]));
  const parts = [make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines)];
  return make("table", {}, make("caption", { class: "unseen" }, caption), ...parts);
}

/** Words of the daemon, with what stands between backticks as code. */
export const prose = (words) => words.split("`").map((part, place) => (place % 2 ? make("code", {}, part) : part));

/** The same, begun as a sentence, unless a setting's name begins it: "data.paths names …". */
export const sentence = (words) => prose(/^\w+[._]/.test(words) ? words : words.slice(0, 1).toUpperCase() + words.slice(1));

const time = (ms, words) => make("time", { datetime: new Date(ms).toISOString(), title: stamp(ms) }, words);

/** How long ago that was; the moment itself when it is pointed at. */
export const ago = (ms, now) => time(ms, since(ms, now));

/** How long until then. */
export const until = (ms, now) => time(ms, `for another ${duration(Math.max(0, (ms - now) / 1000))}`);
