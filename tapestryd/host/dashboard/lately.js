// What went on lately, as four charts: of /v1/history, and of the latest rounds.

import { Chart, columns, span } from "./charts.js";
import { number, size } from "./format.js";
import { STAGES } from "./words.js";

const figures = [...document.querySelectorAll("[data-chart]")];
const charts = Object.fromEntries(figures.map((figure) => [figure.dataset.chart, new Chart(figure)]));
const LEAST = 12; // rounds that the axis has room for, also when there are fewer
const LABELS = 6;

export function lately({ history, rounds }) {
  if (history) {
    loss(history);
    speed(history);
    traffic(history);
  }
  stages(rounds.filter((story) => story.from_height === null && story.result !== "replayed" && story.took_ms > 0));
}

function loss(history) {
  charts.loss.draw({
    ...span(history),
    keys: [{ name: "local", style: "a" }, { name: "held-out (Shared Base)", style: "b" }],
    columns: columns(history, ["loss", "heldout_loss"]),
    format: (value, step) => value.toFixed(step ? Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) : 3),
    empty: "No loss was measured in this time.",
  });
}

function speed(history) {
  charts.speed.draw({
    ...span(history),
    keys: [{ name: "tokens", style: "a" }],
    columns: columns(history, ["tokens_per_s"]),
    zero: true,
    format: (value) => number(value),
    empty: "Nothing was trained in this time.",
  });
}

function traffic(history) {
  charts.traffic.draw({
    ...span(history),
    keys: [{ name: "sent", style: "a" }, { name: "received", style: "b" }],
    columns: columns(history, ["sent_bytes_per_s", "received_bytes_per_s"]),
    zero: true,
    binary: true,
    format: (value, step) => size(value) + (step ? "" : "/s"),
    empty: "Nothing was sent or received in this time.",
  });
}

function stages(lived) {
  const to = Math.max(lived.length, LEAST), every = Math.ceil(to / LABELS);
  charts.rounds.draw({
    from: 0,
    to,
    keys: STAGES.map((name, place) => ({ name, style: "abcd"[place] })),
    bars: true,
    zero: true,
    columns: lived.map((story, x) => ({
      x,
      label: `Round ${story.round}, ${story.result}`,
      values: STAGES.map((stage) => (story.times_ms[stage] ?? 0) / 1000),
      mark: story.result === "discarded" ? "×" : "",
    })),
    ticks: lived.map((story, x) => [x + 0.5, String(story.round)]).filter((_, x) => x % every === 0),
    format: (value) => `${Number(value.toPrecision(3))} s`,
    empty: "No round was lived through yet.",
  });
}
