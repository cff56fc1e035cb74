// This node: how it is, what it is doing, and what left it. `known` is what page.js has heard and asked for.

import { clean, count, duration, loss, moment, number, short, size, stamp, whole } from "./format.js";
import { ago, at, describe, fill, make, prose, sentence, show, table, text } from "./dom.js";
import { CHECKS, GLYPHS, KINDS, LEADS, REASONS, TONES, VERDICTS, spaced } from "./words.js";

/** `gone`: the latest status, heard at `heard`, is so old that the daemon does not seem to be there. */
export function top({ status, heard }, gone) {
  const { name, peer_id } = status.self, label = clean(name) || short(peer_id);
  text(at("who"), name ? `${clean(name)} · ${short(peer_id)}` : short(peer_id));
  at("who").title = peer_id;
  text(at("link"), gone ? `last word ${stamp(heard)}; trying again` : "live");
  document.title = `${gone ? "? no answer" : `${GLYPHS[status.state] ?? "○"} ${status.state}`} · ${label} · tapestry`;
}

export function banner({ status, heard }, gone) {
  const { state, reasons, health } = status;
  const run = status.run ? clean(status.run.name) || short(status.run.id) : "";
  const silent = `the daemon has said nothing since ${stamp(heard).slice(11, 19)}; below is what it said last`;
  at("banner").dataset.tone = gone || health.length ? "bad" : (TONES[state] ?? "quiet");
  text(at("glyph"), gone ? "?" : (GLYPHS[state] ?? "○"));
  text(at("state"), gone ? "no answer" : state);
  fill(at("lead"), sentence(gone ? silent : (LEADS[state]?.(run) ?? "")));
  const held = state === "training" || state === "averaging" ? [] : status.policy.holds.map(({ reason }) => reason);
  const all = gone ? [] : [...new Set([...reasons, ...held])];
  fill(at("reasons"), all.map((reason) => make("li", {}, ...prose(why(reason, status, heard)))));
  const { mode, finishing } = status.policy, paused = reasons.includes("user");
  const useful = { pause: !paused, finish: !paused && !finishing, resume: paused || finishing || mode === "never" };
  for (const button of at("buttons").children) button.classList.toggle("idle", !status.run || !useful[button.dataset.do]);
}

function why(reason, { policy, run }, heard) {
  const hold = policy.holds.find((hold) => hold.reason === reason);
  return hold ? clean(hold.says) + lasts(hold.left_s, heard) : (REASONS[reason]?.(run) ?? clean(spaced(reason)));
}

/** A moment to come, not a countdown, which a screen reader would say again and again. */
const lasts = (left_s, heard) => (left_s === null ? "" : `, until ${moment(heard + left_s * 1000, heard)}`);

function policy({ mode, mode_left_s, finishing, holds, changes_in_s }, heard) {
  const said = [
    mode === "auto" ? "whenever the configuration allows it" : `${mode}, as you chose${lasts(mode_left_s, heard)}`,
    finishing && "it pauses behind the round at hand",
    !holds.length && changes_in_s !== null && `that changes in ${duration(changes_in_s)}`,
  ];
  return said.filter(Boolean).join("; ");
}

export function health({ health }, now) {
  show(at("health"), health.length > 0);
  const line = ({ says, since_ms }) => make("li", {}, ...sentence(clean(says)), " ", ago(since_ms, now));
  fill(at("troubles"), health.map(line));
}

/** `late`: how old the status is, in seconds. */
export function machine({ status, heard }, late) {
  const { run, trainer, disk } = status, { heldout } = trainer;
  fill(at("figures"), [
    figure(trainer.state === "off" ? "–" : loss(trainer.loss), "local loss, nats per token"),
    figure(number(trainer.tokens_per_s), "tokens per second"),
    figure(run ? whole(run.round) : "–", "round by the swarm's clock"),
    figure(run ? whole(run.height) : "–", "commits, since genesis"),
  ]);
  const by = [trainer.state, trainer.device, trainer.precision, trainer.optimizer].filter(Boolean).join(", ");
  const learned = heldout && [
    `held-out loss ${loss(heldout.first_loss)} → ${loss(heldout.loss)}`,
    `height ${whole(heldout.first_height)} → ${whole(heldout.height)}`,
    `on ${number(heldout.tokens)} tokens of its own`,
  ];
  describe(at("machine"), [
    ["Run", run && `${clean(run.name)} (${run.id.slice(0, 8)})`, run?.id],
    ["Now", run && phase(run, late)],
    ["Trains", policy(status.policy, heard)],
    ["Trainer", by],
    ["Taken", trainer.steps > 0 && `${number(trainer.steps)} steps, ${number(trainer.tokens)} tokens`],
    ["Learned", learned?.join(", ")],
    ["Model", run?.elements > 0 && `${number(run.elements)} parameters in ${count(run.fragments, "fragment")}`],
    ["Base", run?.base_digest && make("code", {}, run.base_digest.slice(0, 12)), run?.base_digest],
    ["Memory", trainer.memory_bytes > 0 && `${size(trainer.memory_bytes)} of the trainer's device`],
    ["Disk", disk && `${size(disk.free_bytes)} free; no round is begun below ${size(disk.min_free_bytes)}`],
    ["Restarts", trainer.restarts > 0 && `${whole(trainer.restarts)} of the trainer`],
  ]);
}

function phase({ phase, boundary_in_s, fetching }, late) {
  const left = boundary_in_s - late;
  if (phase === "fetching") return "fetching the rules";
  if (fetching) return `${size(fetching.here_bytes)} of ${size(fetching.bytes)} of the base are here`;
  return left >= 0 ? `local steps end in ${duration(left)}` : `${phase}, ${duration(-left)} into the average window`;
}

function figure(value, name) {
  return make("div", {}, make("span", { class: "value" }, value), make("span", { class: "name" }, name));
}

export function left({ status, rounds, egress }) {
  const { withheld } = status.trainer, last = rounds.findLast((story) => story.result === "committed");
  const gave = last && `round ${whole(last.round)}: ${size(last.sent_bytes)} sent, after ${count(last.steps, "local step")}`;
  describe(at("left"), [
    ["Today", egress && `${size(egress.sum.sent)} sent, ${size(egress.sum.received)} received`],
    ["Last contribution", gave ?? "none yet"],
    ["Withheld", withheld > 0 && `${count(withheld, "delta")}, by this machine's rules of release`],
    ["By the kernel", egress && kernel(egress)],
    ["Not counted", egress?.gaps.length > 0 && `up to a minute, ${count(egress.gaps.length, "time")}: the daemon was killed`],
  ]);
  const kinds = Object.entries(egress?.by_kind ?? {}).sort(([, a], [, b]) => b.sent - a.sent);
  const rows = kinds.map(([kind, { sent, received }]) => [KINDS[kind] ?? clean(kind), size(sent), size(received)]);
  fill(at("kinds"), rows.length ? [table("Bytes of today by what they were", ["What", "Sent", "Received"], rows)] : []);
}

/** What the sockets carried, beside what we say that we handed over. */
function kernel({ reconciliation, unreconciled }) {
  if (!reconciliation) return clean(unreconciled);
  const { payload, libp2p, resent } = reconciliation.sent;
  const again = resent ? `; ${size(resent)} of it sent again` : "";
  return `its sockets sent ${size(payload + libp2p)} in this run: ${size(payload)} by our own count, the rest libp2p's${again}`;
}

export function isolation({ status }) {
  const { enforced, method, checks } = status.isolation, found = Object.entries(checks);
  const [held, open] = ["held", "open"].map((word) => found.filter(([, verdict]) => verdict === word).length);
  at("badge").dataset.tone = enforced ? "good" : open ? "bad" : "wait";
  text(at("badge"), enforced ? "✓ isolation enforced" : open ? "✗ isolation open" : "? isolation not proven");
  text(at("method"), `Boxes by ${clean(method)}; ${held} of ${count(found.length, "check")} held when last tried.`);
  const line = ([name, verdict]) => {
    const words = `${VERDICTS[verdict] ?? verdict} ${CHECKS[name] ?? clean(name)}`;
    return make("li", { "data-verdict": verdict, title: `${name}: ${verdict}` }, words);
  };
  fill(at("checks"), found.map(line));
}

export function about({ status }) {
  const { version, uptime_s } = status;
  text(at("about"), `tapestryd ${clean(version)} · up ${duration(uptime_s)}`);
}
