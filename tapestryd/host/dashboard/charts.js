// Charts in SVG: a few lines over time, or stacked bars. Read with a pointer, or with the arrow keys.

import { make, text } from "./dom.js";
import { clock, count, stamp } from "./format.js";

const HEIGHT = 190, LEFT = 58, RIGHT = 10, TOP = 10, BOTTOM = 24;
const FLOOR = HEIGHT - BOTTOM;

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A few round numbers that cover low … high: of 1, 2 or 5 times a power of ten times `unit`. */
function steps(low, high, unit) {
  const rough = (high - low) / 4 / unit, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power * unit;
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
}

/**
 * One figure, drawn as often as there is news. The data:
 *   keys: [{ name, style }], and columns: [{ x, label, values: [number or null for each key], mark }], x between `from` and `to`
 *   ticks: [[x, text], …], format: (value, step) => text; step: of the axis, 0 for a value by itself
 *   bars: stacked, of width 1, with `mark` above; else lines, broken where nothing is known for longer than `bridge`
 *   zero: the axis begins there, and a chart of nothing but zeros is none; binary: it counts in KiB, MiB …
 *   empty: what is said when there is nothing to draw
 */
export class Chart {
  constructor(figure) {
    this.figure = figure;
    this.title = figure.querySelector("figcaption").textContent;
    this.legend = make("p", { class: "legend" });
    this.plot = svg("svg", { class: "plot", tabindex: "0", role: "img" });
    this.none = make("p", { class: "none" });
    this.readout = make("p", { class: "readout" });
    this.chosen = null;
    figure.append(this.legend, this.plot, this.none, this.readout);
    this.plot.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    this.plot.addEventListener("blur", () => this.choose(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.redraw()).observe(figure);
  }

  draw(data) {
    this.data = data;
    this.redraw();
  }

  redraw() {
    const { data, figure } = this, width = figure.clientWidth;
    if (!data || !width) return;
    const any = data.columns.some(({ values }) => values.some((value) => (data.zero ? value : value !== null)));
    this.columns = any ? data.columns.filter(({ values }) => values.some((value) => value !== null)) : [];
    this.plot.toggleAttribute("hidden", !any);
    this.none.hidden = any;
    text(this.none, data.empty);
    const box = data.bars ? "box" : "key", keys = any && data.keys.length > 1 ? data.keys : [];
    this.legend.replaceChildren(...keys.map(({ name, style }) => make("span", {}, make("span", { class: `${box} ${style}` }), name)));
    if (any) this.paint(width);
    this.choose(this.chosen);
  }

  paint(width) {
    const { data, columns } = this, right = width - RIGHT, rows = this.rows();
    const low = rows[0], high = rows.at(-1);
    this.x = (x) => LEFT + ((x - data.from) / (data.to - data.from)) * (right - LEFT);
    this.y = (y) => FLOOR - ((y - low) / (high - low)) * (FLOOR - TOP);
    this.cursor = svg("g", { class: "cursor" });
    const range = `${count(columns.length, "value")} from ${columns[0].label} to ${columns.at(-1).label}`;
    const label = `${this.title}. ${range}; ${this.say(columns.at(-1))}. Arrow keys go through them.`;
    for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-label": label })) {
      this.plot.setAttribute(name, value);
    }
    const lines = rows.map((row) => svg("line", { class: "grid", x1: LEFT, x2: right, y1: this.y(row), y2: this.y(row) }));
    const sides = rows.map((row) =>
      svg("text", { class: "label", x: LEFT - 6, y: this.y(row) + 4, "text-anchor": "end" }, data.format(row, rows[1] - rows[0])));
    const ticks = data.ticks.filter(([x]) => this.x(x) >= LEFT && this.x(x) <= right);
    const feet = ticks.map(([x, words]) =>
      svg("text", { class: "label", x: Math.min(this.x(x), width - 18), y: HEIGHT - 6, "text-anchor": "middle" }, words));
    const drawn = data.bars ? columns.flatMap((column) => this.bar(column)) : data.keys.map((key, place) => this.line(key, place));
    this.plot.replaceChildren(...lines, ...sides, ...feet, ...drawn, this.cursor);
  }

  /** The values at which the axis is marked; all that is drawn lies between the first and the last. */
  rows() {
    const { zero, bars, binary } = this.data;
    const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
    const all = this.columns.flatMap(({ values }) => (bars ? [sum(values)] : values.filter((value) => value !== null)));
    const low = zero ? 0 : Math.min(...all), high = Math.max(...all);
    const unit = binary ? 1024 ** Math.floor(Math.log(high) / Math.log(1024)) : 1;
    return steps(low, high > low ? high : low + (Math.abs(low) / 10 || 1), unit);
  }

  line({ style }, place) {
    let path = "", last = -Infinity;
    for (const { x, values } of this.columns) {
      if (values[place] === null) continue;
      const alone = x - last > this.data.bridge, to = `${this.x(x).toFixed(1)} ${this.y(values[place]).toFixed(1)}`;
      path += alone ? `M${to}h0.1` : `L${to}`;
      last = x;
    }
    return svg("path", { class: `line ${style}`, d: path || "M0 0" });
  }

  bar({ x, values, mark }) {
    const room = this.x(x + 1) - this.x(x), parts = [];
    let below = 0;
    values.forEach((value, place) => {
      const bottom = this.y(below), top = this.y((below += value ?? 0)), { style } = this.data.keys[place];
      const size = { x: this.x(x) + room * 0.1, y: top, width: Math.max(1, room * 0.8), height: bottom - top };
      if (value) parts.push(svg("rect", { class: `bar ${style}`, ...size }));
    });
    if (mark) parts.push(svg("text", { class: "mark", x: this.x(x + 0.5), y: this.y(below) - 3, "text-anchor": "middle" }, mark));
    return parts;
  }

  say({ values }) {
    const { keys, format } = this.data;
    const said = keys.map(({ name }, place) => values[place] !== null && `${keys.length > 1 ? `${name} ` : ""}${format(values[place], 0)}`);
    return said.filter(Boolean).join(", ");
  }

  middle({ x }) {
    return this.x(this.data.bars ? x + 0.5 : x);
  }

  point(offset) {
    const far = this.columns.map((column) => Math.abs(this.middle(column) - offset));
    this.choose(far.indexOf(Math.min(...far)));
  }

  key(event) {
    const last = this.columns.length - 1, now = this.chosen ?? last;
    const next = { ArrowLeft: Math.max(0, now - 1), ArrowRight: Math.min(last, now + 1), Home: 0, End: last, Escape: null }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.choose(next);
  }

  /** Tell of one column; of the latest, without being heard, when none is chosen. */
  choose(place) {
    this.chosen = place;
    this.readout.setAttribute("aria-live", place === null ? "off" : "polite");
    const column = this.columns.at(place === null ? -1 : Math.min(place, this.columns.length - 1));
    text(this.readout, column ? `${place === null ? "Latest" : column.label}: ${this.say(column)}` : "");
    if (!column) return;
    const x = this.middle(column), line = svg("line", { x1: x, x2: x, y1: TOP, y2: FLOOR });
    this.cursor.replaceChildren(...(place === null ? [] : [line]));
  }
}

/** Marks of an axis of time: whole minutes or hours, in this browser's zone. */
function times(from, to) {
  const minutes = [2, 5, 10, 15, 30, 60, 120, 180, 240, 360].find((step) => (to - from) / (step * 60000) <= 6) ?? 720;
  const step = minutes * 60000, zone = new Date(from).getTimezoneOffset() * 60000, found = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) found.push([at, clock(at)]);
  return found;
}

/** The axis that the series of /v1/history share: from the first sample on, so that a young daemon's ten minutes fill it. */
export function span({ from_ms, step_s, series }) {
  const all = Object.values(series), step = step_s * 1000, to = from_ms + all[0].length * step;
  const first = Math.max(0, all[0].findIndex((_, place) => all.some((values) => values[place] !== null)));
  const from = Math.max(from_ms, Math.min(from_ms + first * step, to - 600000));
  return { from, to, ticks: times(from, to), bridge: Math.max(180000, 2.5 * step) };
}

/** The columns of /v1/history for some of its series. */
export function columns({ from_ms, step_s, series }, names) {
  return series[names[0]].map((_, place) => {
    const x = from_ms + (place + 0.5) * step_s * 1000;
    return { x, label: stamp(x).slice(0, step_s < 60 ? 19 : 16), values: names.map((name) => series[name][place]) };
  });
}
