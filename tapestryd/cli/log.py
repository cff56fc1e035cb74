"""`tapestry log`, `events`, `metrics`: what the daemon says, as it says it."""

import argparse
import json
import time
from collections.abc import Iterable
from datetime import datetime
from urllib.parse import quote

from protocols.control import SCHEMA, Exit
from tapestryd import screen
from tapestryd.cli.verbs import Verbs, said, show
from tapestryd.client import Client, Doc
from tapestryd.errors import NotRunning

_POLL_S = 0.5


def add(verbs: Verbs) -> None:
    some = verbs.below(verbs.add("log", latest, "the daemon's latest log lines; more of them, or fewer"))
    some.add("follow", follow, "the latest log lines, and all that come")
    one = some.add("level", level, "which lines are logged; another level until the next start")
    one.add_argument("level", nargs="?", metavar="[SUBSYSTEM=]LEVEL", help="error, warning, info or debug; as in swarm=debug")
    one = verbs.add("events", events, "what happens: states, health, rounds")
    one.add_argument("--since", default="", metavar="ID", help="what happened behind this event, too")
    verbs.add("metrics", metrics, "the metrics, as Prometheus reads them")


def latest(options: argparse.Namespace, client: Client) -> int:
    return show(options, client.ask("GET", "/v1/log"), lambda found: "".join(map(_text, found["lines"])))


def follow(options: argparse.Namespace, client: Client) -> int:
    """Until interrupted, also over a restart of the daemon, which counts its lines anew."""
    last, away = 0, False
    while True:
        try:
            lines = client.ask("GET", f"/v1/log?since={0 if away else last}")["lines"]
            away = False
        except NotRunning:
            if not last:
                raise
            lines, away = [], True
        for line in lines:
            print(json.dumps({"schema": SCHEMA, **line}, ensure_ascii=False) + "\n" if options.json else _text(line), end="", flush=True)
            last = line["number"]
        time.sleep(_POLL_S)


def _text(line: Doc) -> str:
    first, *more = line["message"].split("\n")
    head = f"{_time(line['at_ms'])} {line['level']} {line['subsystem']}: {first}"
    return "".join(f"{screen.clean(text)}\n" for text in (head, *(f"    {text}" for text in more)))


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000).astimezone():%Y-%m-%d %H:%M:%S}"


def level(options: argparse.Namespace, client: Client) -> int:
    if options.level is None:
        levels = client.ask("GET", "/v1/log")["levels"]
        text = "".join(f"{name or 'everything'}: {word}\n" for name, word in levels.items())
        return show(options, {"schema": SCHEMA, "levels": levels}, lambda _: text)
    subsystem, _, word = options.level.rpartition("=")
    return said(options, client.ask("PUT", "/v1/log/level", {"level": word, "subsystem": subsystem}))


def events(options: argparse.Namespace, client: Client) -> int:
    for kind, id, data in _events(client.lines("GET", f"/v1/events?since={quote(options.since)}")):
        told = json.loads(data)
        print(json.dumps({"event": kind, "id": id, **told}, ensure_ascii=False) if options.json else _event(kind, told), flush=True)
    raise NotRunning("The daemon has ended, or tells us no more.")


def _event(kind: str, told: Doc) -> str:
    match kind:
        case "state":
            reasons = f" ({', '.join(told['reasons'])})" if told["reasons"] else ""
            state = told["phase"] if told["state"] == "averaging" else told["state"]
            what = f"{state}{reasons}" + (f", round {told['round']}" if told["round"] is not None else "")
        case "health":
            what = "health: " + ("; ".join(told["health"]) or "ok")
        case "story":
            reason = f": {told['reason']}" if told["reason"] else ""
            what = f"round {told['round']} {told['result']}{reason}, {len(told['members'])} peers, height {told['height']}"
        case _:
            what = "some events were missed" if kind == "lost" else kind
    return screen.clean(f"{_time(told['at_ms'])} {what}" if "at_ms" in told else what)


def _events(lines: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """(kind, id, data) of server-sent events."""
    fields = dict[str, str]()
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield fields.get("event", ""), fields.get("id", ""), fields["data"]
            fields = {}


def metrics(options: argparse.Namespace, client: Client) -> int:
    for line in client.lines("GET", "/metrics"):
        print(line)
    return Exit.OK
