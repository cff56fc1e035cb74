// The dashboard: hears what happens from /v1/events, asks for the rest, and hands all that is known to the sections.

import { at, fill, sentence, show, text } from "./dom.js";
import { lately } from "./lately.js";
import * as node from "./node.js";
import * as swarm from "./swarm.js";

const ROUNDS = 60;
const GONE_S = 8; // a status comes every 2 s
const AGAIN_MS = 3000;
const LOOK_MS = 10000;

const main = document.getElementById("main");
const known = { status: null, heard: 0, health: [], rounds: [], peers: [], bans: [], egress: null, history: null };
let range = "1h";
let token = sessionStorage.getItem("token");

/** What this daemon can be asked, as it says itself: a button or section without an answer stays away. */
let paths = new Set();

// Asking.

async function ask(method, path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (token && method !== "GET") headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.detail), { status: answer.status });
  return found;
}

const ASKED = {
  health: () => ask("GET", "v1/health").then(({ health }) => health),
  rounds: () => ask("GET", `v1/rounds?limit=${ROUNDS}`).then(({ rounds }) => rounds),
  peers: () => ask("GET", "v1/peers").then(({ peers }) => peers),
  bans: () => ask("GET", "v1/bans").then(({ bans }) => bans),
  egress: () => ask("GET", `v1/egress?since=${new Date().setHours(0, 0, 0, 0)}`),
  history: () => ask("GET", `v1/history?range=${range}`),
};

/** Ask for some of it, and draw; what cannot be had this time stays as it was. */
async function learn(...names) {
  const there = names.filter((name) => paths.has(`v1/${name}`));
  await Promise.all(there.map(async (name) => {
    known[name] = await ASKED[name]().catch(() => known[name]);
  }));
  draw();
}

// Drawing.

/** What changes by the second. */
function drawNow() {
  if (!known.status) return;
  const now = Date.now(), late = (now - known.heard) / 1000, gone = late > GONE_S;
  node.top(known, gone);
  if (document.hidden) return;
  main.classList.toggle("stale", gone);
  node.banner(known, gone);
  node.health(known, now);
  node.machine(known, late);
  node.about(known);
}

function draw() {
  if (!known.status || document.hidden) return;
  drawNow();
  node.left(known);
  node.isolation(known);
  swarm.swarm(known);
  swarm.rounds(known);
  swarm.peers(known);
  swarm.bans(known, Date.now());
  lately(known);
}

// Hearing.

async function everything() {
  await learn(...Object.keys(ASKED));
  main.classList.toggle("waiting", !known.status);
}

function listen() {
  const stream = new EventSource("v1/events?status");
  const on = (kind, then) => stream.addEventListener(kind, ({ data }) => then(data && JSON.parse(data)));
  on("open", everything);
  on("lost", everything);
  on("status", heard);
  on("state", () => learn("peers", "bans"));
  on("health", () => learn("health"));
  on("story", (story) => {
    known.rounds = [...known.rounds, story].slice(-ROUNDS);
    learn("egress", "history");
  });
  stream.addEventListener("error", () => {
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS); // it was refused, and does not come back by itself
  });
}

function heard(status) {
  const before = known.status;
  if (before && before.version !== status.version) location.reload(); // this page belongs to another daemon
  known.status = status;
  known.heard = Date.now();
  if (before?.run?.id !== status.run?.id || main.classList.contains("waiting")) everything();
  else drawNow();
}

// Changing.

/** A link's code, good once, becomes a token, which this tab keeps until it is closed. */
async function redeem() {
  const code = location.hash.slice(1);
  if (!code) return;
  history.replaceState(null, "", location.pathname);
  try {
    ({ token } = await ask("POST", "v1/token", { code }));
    sessionStorage.setItem("token", token);
  } catch (error) {
    fill(at("said"), sentence(error.message));
  }
}

function permit() {
  show(at("buttons"), Boolean(token));
  show(at("may"), !token && paths.has("v1/pause"));
  for (const button of at("buttons").children) show(button, paths.has(`v1/${button.dataset.do}`));
}

async function change(what, body) {
  try {
    const { said } = await ask("POST", `v1/${what}`, body);
    fill(at("said"), sentence(said));
  } catch (error) {
    fill(at("said"), sentence(error.message));
    if (error.status !== 403) return;
    token = null;
    sessionStorage.removeItem("token");
    permit();
  }
}

// Beginning.

async function begin() {
  try {
    const document = await ask("GET", "v1/openapi.json");
    paths = new Set(Object.keys(document.paths).map((path) => path.slice(1)));
  } catch {
    text(at("link"), "no answer; trying again");
    setTimeout(begin, AGAIN_MS);
    return;
  }
  await redeem();
  permit();
  listen();
}

at("buttons").addEventListener("click", ({ target }) => {
  if (target.dataset.do) change(target.dataset.do, JSON.parse(target.dataset.body));
});
at("range").addEventListener("click", ({ target }) => {
  if (!target.dataset.range) return;
  range = target.dataset.range;
  for (const button of at("range").children) button.setAttribute("aria-pressed", String(button === target));
  learn("history");
});
window.addEventListener("hashchange", () => redeem().then(permit)); // a link that was opened in this very tab
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && paths.size) everything();
});
setInterval(drawNow, 1000);
setInterval(() => {
  if (!document.hidden) learn("peers", "history", "bans");
}, LOOK_MS);

swarm.heads(draw);
begin();
