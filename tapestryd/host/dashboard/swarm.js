// The others: how many are there, what became of the rounds with them, and who they are.

import { clean, count, duration, short, size, whole } from "./format.js";
import { at, describe, fill, make, row, show, text, until } from "./dom.js";
import { MISSING, REACHABLE, spaced } from "./words.js";

const ROWS = 20;
const signed = (value, plus = "") => `${value < 0 ? "−" : value > 0 ? plus : ""}${Math.abs(value)}`;

export function swarm({ status, peers }) {
  const { run, network } = status, offset = network.clock_offset_ms;
  const there = peers.filter((peer) => peer.state !== "banned"), same = there.filter((peer) => peer.same_base).length;
  describe(at("swarm"), [
    ["Present", run && count(network.present, "peer") + (there.length ? `, ${whole(same)} on this node's base` : "")],
    ["Reachable", run && REACHABLE[network.reachable]],
    ["Clock", offset !== null && `${signed(offset, "+")} ms, the others' median minus ours`],
    ["Refused of others", counted(status.refusals)],
    ["Declined by others", counted(status.declined)],
    ["Run", !run && "none is joined"],
  ]);
}

function counted(reasons) {
  return Object.entries(reasons).sort().map(([reason, times]) => `${whole(times)} ${spaced(reason)}`).join(", ");
}

export function rounds({ rounds, peers }) {
  const lived = rounds.filter((story) => story.from_height === null);
  const good = lived.filter((story) => story.result !== "discarded").length;
  const bad = lived.findLast((story) => story.result === "discarded");
  show(at("recent"), rounds.length > 0);
  const last = bad ? `; the last one discarded was round ${whole(bad.round)}: ${spaced(bad.reason)}` : "";
  text(at("tally"), `${whole(good)} of the last ${count(lived.length, "round")} committed${last}`);
  fill(at("ticks"), lived.map((story) => make("span", { class: `tick ${story.result}`, title: tick(story) })));
  const names = new Map(peers.map((peer) => [peer.peer_id, clean(peer.name)]));
  const who = (peer) => names.get(peer) || short(peer);
  fill(at("rounds").tBodies[0], rounds.slice(-ROWS).reverse().map((story) => lines(story, who)));
}

function tick({ round, result, reason, members, took_ms }) {
  return `round ${round} ${result}${reason && `: ${spaced(reason)}`}, ${count(members.length, "peer")}, ${duration(took_ms / 1000)}`;
}

function lines(story, who) {
  const { members, present, reason } = story;
  const wrong = [
    story.from_height === null ? "" : `from height ${whole(story.from_height)} towards ${whole(story.to_height)}`,
    ...story.silent.map(({ peer }) => `${who(peer)} was to lead and was silent`),
    ...story.missing.map(({ peer, stage }) => `${who(peer)}: ${MISSING[stage] ?? stage}`),
    story.repaired.length ? `${count(story.repaired.length, "part")} repaired` : "",
  ];
  return row([
    [whole(story.round)],
    `${story.result}${reason && `: ${spaced(reason)}`}`,
    [whole(story.height)],
    [members.length ? `${members.length}${present.length ? ` of ${present.length + 1}` : ""}` : "–"],
    [members.length ? story.coverage.toFixed(2) : "–"],
    [duration(story.took_ms / 1000)],
    [size(story.sent_bytes)],
    [size(story.received_bytes)],
    wrong.filter(Boolean).join("; "),
  ]);
}

/** The columns of the peer table: heading, what is shown (in a list: a number), what is sorted by. */
const COLUMNS = [
  ["Peer", (peer) => label(peer), (peer) => peer.name || peer.peer_id],
  ["State", (peer) => peer.state, (peer) => peer.state],
  ["Height", (peer) => [peer.banned || peer.height === null ? "–" : whole(peer.height)], (peer) => peer.height],
  ["Base", (peer) => (peer.own || peer.banned ? "–" : peer.same_base ? "same" : "other"), (peer) => Number(peer.same_base)],
  ["Round trip", (peer) => [peer.rtt_ms === null ? "–" : `${peer.rtt_ms.toFixed(0)} ms`], (peer) => peer.rtt_ms ?? Infinity],
  ["Clock", (peer) => [peer.skew_ms === null ? "–" : `${signed(peer.skew_ms, "+")} ms`], (peer) => peer.skew_ms ?? Infinity],
  ["Score", (peer) => [peer.own ? "–" : signed(Math.round(peer.score) || 0)], (peer) => peer.score],
  ["Seen", (peer) => [peer.own ? "–" : `${duration(peer.seen_s)} ago`], (peer) => peer.seen_s],
  ["Version", (peer) => clean(peer.version), (peer) => peer.version],
  ["Address", (peer) => address(peer.addrs), (peer) => peer.addrs[0] ?? ""],
];
const MOST = 200;
const order = { column: 0, down: false };

function label({ peer_id, name, own }) {
  const words = [make("bdi", {}, clean(name)), name ? " " : "", make("code", {}, short(peer_id)), own ? " (this node)" : ""];
  return make("span", { title: peer_id }, ...words);
}

function address([first, ...others]) {
  return first ? clean(first) + (others.length ? ` and ${others.length} more` : "") : "–";
}

/** The heads of the peer table; `again` is called when they change its order. */
export function heads(again) {
  const probe = { own: true, addrs: [], name: "", peer_id: "", version: "", height: null, rtt_ms: null, skew_ms: null };
  const cells = COLUMNS.map(([name, shown], place) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      order.down = order.column === place && !order.down;
      order.column = place;
      const sorted = order.down ? "descending" : "ascending";
      cells.forEach((cell, other) => cell.setAttribute("aria-sort", other === place ? sorted : "none"));
      again();
    });
    const kind = Array.isArray(shown(probe)) ? "n" : null;
    return make("th", { scope: "col", class: kind, "aria-sort": place ? "none" : "ascending" }, button);
  });
  at("peers").tHead.rows[0].replaceChildren(...cells);
}

export function peers({ status, peers }) {
  const { self, run, state, version } = status, key = COLUMNS[order.column][2];
  const own = { own: true, ...self, state, version, height: run?.height ?? null, rtt_ms: null, skew_ms: null };
  const sorted = peers.map((peer) => ({ ...peer, banned: peer.state === "banned" }));
  sorted.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (order.down ? -1 : 1));
  const shown = [own, ...sorted.slice(0, MOST)];
  fill(at("peers").tBodies[0], shown.map((peer) => row(COLUMNS.map(([, cell]) => cell(peer)))));
  const more = sorted.length - MOST;
  text(at("more"), more > 0 ? `${whole(more)} more are present: tapestry peers` : sorted.length ? "" : "No other peer is present.");
}

export function bans({ bans }, now) {
  show(at("bans"), bans.length > 0);
  fill(at("banned"), bans.map(({ peer_id, by, reason, until_ms }) => {
    const why = ` by ${by}${reason && `: ${clean(reason)}`}; `;
    return make("li", {}, make("code", { title: peer_id }, short(peer_id)), why, until_ms === null ? "for good" : until(until_ms, now));
  }));
}
