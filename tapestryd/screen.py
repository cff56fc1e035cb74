"""The status screen and the tables of `tapestry`: documents of the control API in, text out. Pure.

Names and reasons may come from other peers, so nothing unprintable reaches the terminal. Knows nothing of sockets.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tapestryd.words import REASONS

Doc = Mapping[str, Any]

_INDENT = 11
_GAP = "   "
_WIDE = 100
_STAGES = {"roster": "Not called", "part": "Part lost", "mean": "Not in it", "vote": "No vote"}
_BOLD, _RESET = "\x1b[1m", "\x1b[0m"
_RED, _GREEN, _YELLOW = "\x1b[31m", "\x1b[32m", "\x1b[33m"


def render(status: Doc, *, width: int, colour: bool, rows: int = 10) -> str:
    """One screen for a Status: is it well, what is it doing and for whom, why is it not training. `rows`: of the peer table."""
    sections = [
        ("Why", _why(status)),
        ("Policy", _policy(status["policy"])),
        ("Run", _run(status["run"]) if status["run"] or status["state"] != "stopping" else []),
        ("Trainer", _trainer(status["trainer"])),
        ("Learned", _learned(status["trainer"]["heldout"])),
        ("Isolation", _isolation(status["isolation"])),
        ("Swarm", _swarm(status["network"])),
        ("Averaging", _averaging(status["averaging"])),
        (
            "Traffic",
            [f"sent {size(status['traffic']['sent_bytes'])}", f"received {size(status['traffic']['received_bytes'])}", "since start"],
        ),
        ("Contrib", _contribution(status["contribution"])),
        ("Refused", [f"{count} {reason}" for reason, count in sorted(status["refusals"].items())]),
        ("Declined", [f"{count} {reason}" for reason, count in sorted(status["declined"].items())]),
        ("Banned", [f"{status['bans']} {'peer' if status['bans'] == 1 else 'peers'}: tapestry peers bans"] if status["bans"] else []),
        ("Health", status["health"] or ["ok"]),
    ]
    lines = [_heading(status, width, colour), *labelled(sections, width, colour=colour)]
    if rows and status["peers"]:
        lines += ["", *_peer_lines(status["peers"][:rows], width)]
        if len(status["peers"]) > rows:
            lines.append(f"… and {len(status['peers']) - rows} more: tapestry peers")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def peers(found: Sequence[Doc], *, width: int) -> str:
    """Every peer, with its Member and its addresses beneath."""
    if not found:
        return "No peers are present.\n"
    head, *lines = _peer_lines(found, width, scores=True)
    out = [head]
    for peer, line in zip(found, lines, strict=True):
        member = [f"Member {clean(peer['member'])}"] if peer["member"] else []
        out += [line, *("    " + below for below in (*member, *map(clean, peer["addrs"])))]
    return "\n".join(out) + "\n"


def peer(found: Doc, *, width: int) -> str:
    sections: list[tuple[str, Iterable[str]]] = [
        ("Peer", [found["peer_id"]]),
        ("Name", [found["name"]]),
        ("Member", [found["member"]]),
        ("State", [found["state"], f"seen {duration(found['seen_s'])} ago", f"version {found['version']}"]),
        ("Base", [f"height {found['height']}", found["base_digest"], "ours" if found["same_base"] else "not ours"]),
        ("Way", _way(found)),
        ("Score", [f"{found['score']:.1f}"]),
        ("Addresses", found["addrs"] or ["none: it cannot be dialled"]),
    ]
    return "\n".join(labelled(sections, width)) + "\n"


def _way(found: Doc) -> list[str]:
    rtt, skew = found["rtt_ms"], found["skew_ms"]
    return ["not measured"] if rtt is None else [f"{rtt:.1f} ms there and back", *([f"clock {skew:+d} ms"] if skew is not None else [])]


def netcheck(found: Doc, *, width: int) -> str:
    tried = [f"{address} {'reached' if held else 'not reached'}" for address, held in found["reached"].items()]
    sections: list[tuple[str, Iterable[str]]] = [
        ("Reachable", [found["verdict"], found["says"]]),
        *(("To do" if not number else "", [sentence]) for number, sentence in enumerate(found["fix"])),
        ("Listens", found["listen"]),
        ("Told", tried),
        ("Seen from", found["seen"]),
        ("Tried", [f"{duration(found['asked_s'])} ago"] if found["asked_s"] is not None else []),
    ]
    return "\n".join(labelled(sections, width)) + "\n"


def bans(found: Sequence[Doc], *, width: int) -> str:
    if not found:
        return "Nobody is banned.\n"
    head = ("PEER", "BY", "ENDS IN", "REASON")
    cells = [
        (short(ban["peer_id"]), ban["by"], "-" if ban["left_s"] is None else duration(max(0.0, ban["left_s"])), ban["reason"] or "-")
        for ban in found
    ]
    return "\n".join(table([head, *cells], width)) + "\n"


def rounds(stories: Sequence[Doc], *, width: int) -> str:
    """A line a round. Bytes are left to wide terminals, so that on any the story is told."""
    if not stories:
        return "No rounds yet.\n"
    traffic = ("SENT", "RECEIVED") if width >= _WIDE else ()
    head = ("ROUND", "RESULT", "HEIGHT", "PEERS", "COVER", "TOOK", "LOSS", *traffic, "STORY")
    cells = [
        (
            str(story["round"]),
            story["result"],
            str(story["height"]),
            _of(len(story["members"]), 1 + len(story["present"])) if story["present"] else str(len(story["members"])),
            f"{story['coverage']:.2f}",
            duration(story["took_ms"] / 1000),
            _loss(story["loss"]),
            *((size(story["sent_bytes"]), size(story["received_bytes"])) if traffic else ()),
            "; ".join(_in_short(story)),
        )
        for story in stories
    ]
    return "\n".join(table([head, *cells], width)) + "\n"


def one_round(found: Doc, *, width: int) -> str:
    """One round in full: each story of it, and its certificate."""
    lines: list[str] = []
    for story in found["stories"]:
        lines += [*labelled(_catch_up(story) if story["from_height"] is not None else _round(story), width), ""]
    certificate = found["certificate"]
    if certificate is None:
        return "\n".join(lines[:-1]) + "\n"
    signed = f"by {_of(len(certificate['signed_by']), len(certificate['members']))} of roster {certificate['roster_digest'][:16]}"
    sections: list[tuple[str, Iterable[str]]] = [
        (
            "Certified",
            [f"height {certificate['height']}", f"weight {certificate['weight']}", f"coverage {certificate['coverage']:.2f}", signed],
        ),
        ("Before", [certificate["before"]]),
        ("After", [certificate["after"]]),
        ("Root", [certificate["root"]]),
        ("Signed by", certificate["signed_by"]),
    ]
    return "\n".join([*lines, *labelled(sections, width)]) + "\n"


def duration(seconds: float) -> str:
    """Two units at most: "9.4 s", "3m 20s", "3d 4h"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for name, unit, below_name, below in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit}{name} {rest}{below_name}" if rest else f"{whole // unit}{name}"
    raise AssertionError(seconds)


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float) -> str:
    """Three digits or so: 850, 21.3k, 1.84M."""
    for divisor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= divisor:
            return f"{value / divisor:.3g}{unit}"
    return f"{value:.0f}"


def short(peer_id: str) -> str:
    return peer_id if len(peer_id) <= 9 else f"{peer_id[:4]}…{peer_id[-4:]}"


def clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _heading(status: Doc, width: int, colour: bool) -> str:
    me, state = status["self"], status["state"]
    who = f"{me['name']} ({short(me['peer_id'])})" if me["name"] else short(me["peer_id"])
    left = clean(f"tapestry {status['version']} · {who} · up {duration(status['uptime_s'])}")
    right = f"● {state}"
    room = width - len(right) - 1
    left = _filled(cut(left, room), room)
    if colour:
        well = state in ("training", "averaging", "serving")
        right = f"{_RED if status['health'] else _GREEN if well else _YELLOW}{right}{_RESET}"
    return f"{left} {right}"


def _why(status: Doc) -> list[str]:
    """Each reason in words, and when it ends, where that is known; also what would hold it if nothing else was in the way."""
    meanings = {reason: f"{reason}: {says}" for reason, says in REASONS.items()}
    holds = {hold["reason"]: f"{hold['reason']}: {hold['says']}{_lasts(hold['left_s'])}" for hold in status["policy"]["holds"]}
    waiting = [reason for reason in holds if status["state"] not in ("training", "averaging") and reason not in status["reasons"]]
    said = [(meanings | holds).get(reason, reason) for reason in (*status["reasons"], *waiting)]
    return [*said, "this node trains nothing, as trainer.enabled says"] if status["state"] == "serving" else said


def _policy(policy: Doc) -> list[str]:
    """What is not as it always is."""
    said = [f"mode {policy['mode']}{_lasts(policy['mode_left_s'])}"] if policy["mode"] != "auto" else []
    said += ["finishing: a pause behind this round"] if policy["finishing"] else []
    if not policy["holds"] and policy["changes_in_s"] is not None:
        said.append(f"next change in {duration(policy['changes_in_s'])}")
    return said


def _lasts(left_s: float | None) -> str:
    return "" if left_s is None else f", for another {duration(left_s)}"


def _run(run: Doc | None) -> list[str]:
    if run is None:
        return ["none; join one with: tapestry run join INVITE"]
    if run["phase"] == "fetching":
        return [run["name"], run["id"][:8], "fetching the rules"]
    named = [f"{run['name']} ({run['id'][:8]})", f"round {run['round']}"]
    if of := run.get("fetching"):  # not told by a daemon that is older than this command
        here = f"{size(of['here_bytes'])} of {size(of['bytes'])} of the base of height {of['height']} are here, from {of['donors']} peers"
        return [*named, here]
    left = run["boundary_in_s"]
    when = f"local steps end in {duration(left)}" if left >= 0 else f"{run['phase'] or 'average window'}, {duration(-left)} in"
    return [*named, f"height {run['height']}", f"base {run['base_digest'][:8]}", when]


def _trainer(trainer: Doc) -> list[str]:
    parts = [trainer["state"], " ".join(filter(None, (trainer["device"], trainer["precision"], trainer["optimizer"])))]
    if trainer["steps"]:
        parts += [f"{number(trainer['tokens_per_s'])} tok/s", *([] if trainer["epsilon"] else [f"loss {_loss(trainer['loss'])}"])]
        parts += [f"{number(trainer['steps'])} steps", f"{number(trainer['tokens'])} tokens"]
    if trainer["epsilon"]:
        parts.append(f"epsilon {trainer['epsilon']:.3f} spent")
    if trainer["withheld"]:
        parts.append(f"{trainer['withheld']} withheld")
    if trainer["memory_bytes"]:
        parts.append(size(trainer["memory_bytes"]))
    if trainer["restarts"]:
        parts.append(f"{trainer['restarts']} restarts")
    return parts


def _learned(heldout: Doc | None) -> list[str]:
    """Whether being in the run pays: the loss on this node's own held-out text, first and latest."""
    if heldout is None:
        return []
    change = f"held-out loss {_loss(heldout['first_loss'])} → {_loss(heldout['loss'])}"
    return [change, f"height {heldout['first_height']} → {heldout['height']}", f"on {number(heldout['tokens'])} tokens"]


def _isolation(isolation: Doc) -> list[str]:
    """Data ⟂ network, and what of it does not hold."""
    checks = isolation["checks"]
    count = {verdict: sum(found == verdict for found in checks.values()) for verdict in ("held", "open", "untried")}
    word = "enforced" if isolation["enforced"] else "PARTIAL" if count["open"] else "to be proven when a trainer starts"
    parts = [f"data ⟂ network {word}", f"by {isolation['method']}", f"{count['held']} of {len(checks)} checks held"]
    return parts + [f"open: {', '.join(name for name, found in checks.items() if found == 'open')}"] * bool(count["open"])


def _swarm(network: Doc) -> list[str]:
    parts = [f"{network['present']} {'peer' if network['present'] == 1 else 'peers'} present", f"reachable: {network['reachable']}"]
    return parts if network["clock_offset_ms"] is None else [*parts, f"clock {network['clock_offset_ms']:+d} ms"]


def _averaging(averaging: Doc) -> list[str]:
    last = averaging["last"]
    if last is None:
        return ["no rounds yet"]
    parts = [f"round {last['round']} {last['result']}" + (f": {last['reason']}" if last["reason"] else "")]
    parts += [f"{len(last['members'])} peers", f"coverage {last['coverage']:.2f}", duration(last["took_ms"] / 1000)]
    return [*parts, f"{averaging['committed']} of {averaging['rounds']} rounds committed"]


def _contribution(of: Doc) -> list[str]:
    """Nothing where nothing was committed; all there ever was, and the swarm's, are another command's."""
    counted = [f"{of['rounds']} rounds", f"{number(of['steps'])} steps", f"{number(of['tokens'])} tokens", "since start"]
    return [*counted, "in all: tapestry contrib"] if of["rounds"] else []


def _in_short(story: Doc) -> list[str]:
    """What was not as it should be, the weightiest first."""
    if story["from_height"] is not None:
        return [f"from height {story['from_height']}", *([f"of {story['to_height']}", story["reason"]] if story["reason"] else [])]
    told = [story["reason"]] if story["reason"] else []
    if story["silent"]:
        told.append(f"{_counted(len(story['silent']), 'leader')} silent")
    for stage, words in (("roster", "not in roster"), ("mean", "not in mean"), ("vote", "no vote")):
        count = len([missing for missing in story["missing"] if missing["stage"] == stage])
        told += [f"{count} {words}"] if count else []
    if story["repaired"]:
        told.append(f"{_counted(len(story['repaired']), 'part')} repaired")
    if story["refusals"]:
        told.append(f"{sum(story['refusals'].values())} refused")
    return told


def _round(story: Doc) -> list[tuple[str, Iterable[str]]]:
    members, shares = story["members"], story["shares"]
    attempt = len(story["silent"]) + 1
    leader = [f"led by {short(story['leader'])}" + (f", {_ordinal(attempt)} in order" if attempt > 1 else "")] if story["leader"] else []
    roster = [_of(len(members), 1 + len(story["present"])) + " present" if story["present"] else str(len(members)), *map(short, members)]
    whole = sum(shares.values()) or 1
    local = [f"{number(story['steps'])} steps", f"{number(story['tokens'])} tokens", f"loss {_loss(story['loss'])}"]
    result = story["result"] + (f": {story['reason']}" if story["reason"] else "")
    return [
        ("Round", [f"{story['round']} {result}", f"fragment {story['fragment']}", f"height {story['height']}"]),
        ("Base", [story["base_digest"]]),
        ("Roster", [*leader, *roster] if members else []),
        *(("Silent" if not place else "", [f"{short(who['peer'])}, {_ordinal(place + 1)} in order: {who['why']}"])
          for place, who in enumerate(story["silent"])),
        ("Shares", [f"{short(peer)} {number(share)} ({share / whole:.0%})" for peer, share in shares.items()]),
        ("Coverage", [f"{story['coverage']:.3f}"] if members else []),
        *((_STAGES.get(left["stage"], left["stage"]), [f"{short(left['peer'])}: {left['why']}"]) for left in story["missing"]),
        ("Repaired", [f"part {repaired['part']} from {short(repaired['peer'])}" for repaired in story["repaired"]]),
        ("Votes", [_of(len(story["votes"]), len(members)), f"root {story['root'][:16]}"] if story["votes"] else []),
        ("Local", local if story["steps"] else []),
        ("Bytes", [f"sent {size(story['sent_bytes'])}", f"received {size(story['received_bytes'])}"]),
        ("Took", [duration(story["took_ms"] / 1000), *(f"{stage} {duration(ms / 1000)}" for stage, ms in story["times_ms"].items())]),
        ("Refused", [f"{count} {reason}" for reason, count in sorted(story["refusals"].items())]),
    ]  # fmt: skip


def _catch_up(story: Doc) -> list[tuple[str, Iterable[str]]]:
    return [
        (
            "Round",
            [f"{story['round']} {story['result']}", f"from height {story['from_height']} to {story['height']} of {story['to_height']}"],
        ),
        ("Why", [story["reason"]]),
        ("Base", [story["base_digest"]]),
        ("Donors", map(short, story["donors"])),
        ("Bytes", [f"received {size(story['received_bytes'])}"]),
        ("Took", [duration(story["took_ms"] / 1000)]),
        ("Refused", [f"{count} {reason}" for reason, count in sorted(story["refusals"].items())]),
    ]


def _of(part: int, whole: int) -> str:
    return f"{part}/{whole}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _ordinal(place: int) -> str:
    return f"{place}" + {1: "st", 2: "nd", 3: "rd"}.get(place if place < 20 else place % 10, "th")


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _peer_lines(found: Iterable[Doc], width: int, *, scores: bool = False) -> list[str]:
    """`scores`: for whoever has the room."""
    head = ("PEER", "NAME", "STATE", *(("SCORE",) if scores else ()), "HEIGHT", "BASE", "RTT", "SKEW", "SEEN", "VERSION")
    cells = [
        (
            short(peer["peer_id"]),
            cut(clean(peer["name"]), 14) or "-",
            peer["state"],
            *((str(round(peer["score"])),) if scores else ()),
            "-" if peer["state"] == "banned" else str(peer["height"]),
            "same" if peer["same_base"] else "-" if peer["state"] == "banned" else "other",
            "-" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.0f} ms",
            "-" if peer["skew_ms"] is None else f"{peer['skew_ms']:+d} ms",
            duration(peer["seen_s"]),
            peer["version"],
        )
        for peer in found
    ]
    return table([head, *cells], width)


def table(cells: Sequence[Sequence[str]], width: int) -> list[str]:
    cells = [[clean(cell) for cell in line] for line in cells]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(_filled(cell, room) for cell, room in zip(line, widths, strict=True)) for line in cells]
    return [cut(line.rstrip(), width) for line in lines]


def labelled(sections: Iterable[tuple[str, Iterable[str]]], width: int, *, colour: bool = False) -> list[str]:
    """Sections with a label in the margin; those with nothing to say are left out."""
    lines = []
    for label, parts in sections:
        for number, line in enumerate(_packed(parts, width - _INDENT)):
            head = ("" if number else label).ljust(_INDENT)
            lines.append((f"{_BOLD}{head}{_RESET}" if colour and not number else head) + line)
    return lines


def _packed(parts: Iterable[str], width: int) -> list[str]:
    """Parts side by side, as many on a line as fit; a sentence longer than a line is broken between words."""
    lines: list[str] = []
    for part in filter(None, map(clean, parts)):
        if lines and columns(lines[-1] + _GAP + part) <= width:
            lines[-1] += _GAP + part
            continue
        lines.append("")
        for word in part.split(" "):
            if lines[-1] and columns(lines[-1] + " " + word) > width:
                lines.append("")
            lines[-1] += (" " if lines[-1] else "") + word
    return [cut(line, width) for line in lines]


def columns(text: str) -> int:
    """Columns that a terminal gives to `text`."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, with an ellipsis where something is missing."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - 1:
        text = text[:-1]
    return text + "…" if width > 0 else ""


def _filled(text: str, width: int) -> str:
    return text + " " * (width - columns(text))
