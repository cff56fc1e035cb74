"""A demo in text: one screen of it, one line an event, and the words at its end. Pure; see screen.py for the operator's.

Names come from folders and reasons from daemons, so nothing unprintable reaches the terminal.
"""

from pathlib import Path

from tapestryd.demo import report
from tapestryd.demo.progress import Event, Peer, Progress, Round
from tapestryd.screen import clean, columns, cut, duration, number, size, table

_BOLD, _RESET = "\x1b[1m", "\x1b[0m"
_RED, _GREEN, _YELLOW = "\x1b[31m", "\x1b[32m", "\x1b[33m"
_BARS = "▁▂▃▄▅▆▇█"
_LABEL = 9


def render(progress: Progress, *, where: str, doing: str, width: int, rows: int, colour: bool) -> str:
    """One screen of at most `rows` lines, none wider than `width`. `doing`: what the demo waits for, in a word or two."""
    peers = list(progress.peers.values())
    heading = f"tapestryd demo · {len(peers)} peers on this machine · {duration(progress.now_s)}"
    lines = [_heading(heading, doing, width, _colour_of(progress) if colour else "")]
    pages = "   ".join(f"{peer.name} {peer.page}" for peer in peers if peer.page) or "none yet"
    about = (("Run", _run(progress)), ("Base", _base(progress)), ("Learned", _learned(progress)), ("Pages", pages), ("Files", where))
    for label, text in about:
        line = cut(clean(label.ljust(_LABEL) + text), width)
        lines.append(f"{_BOLD}{line[:_LABEL]}{_RESET}{line[_LABEL:]}" if colour else line)
    lines += ["", *table([("PEER", "STATE", "LOSS", "TOK/S", "STEPS", "SENT", "SHARED BASE, HELD-OUT LOSS"), *map(_peer, peers)], width)]
    told = [progress.rounds[at] for at in sorted(progress.rounds) if progress.rounds[at].told]
    room = rows - len(lines) - 3
    if told and room > 0:
        lines += ["", *table([("ROUND", "RESULT", "HEIGHT", "BYTES", "BASE", "TOOK PART"), *map(_round, told[-room:])], width)]
    lines += [cut(clean(f"{peer.name}: {sentence}"), width) for peer in peers for sentence in peer.health]
    return "\n".join(line.rstrip() for line in lines[:rows]) + "\n"


def line(event: Event) -> str:
    """One event as a line, after the time; "" for those of the end, which `closing` words."""
    e = event
    match e["event"]:
        case "started":
            text = f"{len(e['peers'])} peers, each with its own text: {', '.join(e['peers'])}; kept in {e['dir']}"
        case "founded":
            text = f"run {e['run'][:8]}: a model of {number(e['elements'])} elements in {e['fragments']} fragments"
        case "peer_up":
            text = f"{e['peer']} is up: {e['peer_id']}" + (f", its page: {e['page']}" if e["page"] else "")
        case "joined":
            text = f"{e['peer']} holds the base {e['base_digest'][:12]} at height {e['height']}"
        case "evaluated":
            text = f"{e['peer']}: the Shared Base at height {e['height']} has held-out loss {e['loss']:.3f}"
        case "round_committed":
            text = f"round {e['round']} committed by {', '.join(e['members'])}: height {e['height']}, base {e['base_digest'][:12]}"
        case "round_discarded":
            text = f"round {e['round']} discarded: {e['reason'] or 'no reason given'}"
        case "stopping":
            text = f"stopping: {e['reason']}"
        case _:
            return ""
    return clean(f"{e['s']:7.1f} s  {text}")


def closing(progress: Progress, summary: Event, where: Path) -> str:
    """What was reached, in sentences. `where`: the demo's folder."""
    peers, same = summary["peers"], summary["base_digest"]
    holding = f"all hold base {same[:12]}" if same else "not all were seen on the same base"
    lines = [f"{_count(summary['rounds_committed'], 'round')} committed by {peers} peers in {duration(summary['seconds'])}; {holding}."]
    known = [f"{name} {_change(*pair)}" for name, pair in progress.heldout().items() if pair[1] is not None]
    if known:
        mean = progress.mean()
        lines.append(f"Held-out loss of the Shared Base: {', '.join(known)}" + (f"; mean {_change(*mean)}." if mean else "."))
    lines += [f"{size(summary['bytes_sent'])} of vectors were sent.", f"Report: {where / report.NAME}"]
    return "\n".join(map(clean, lines)) + "\n"


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")


def _change(first: float | None, last: float | None) -> str:
    return f"{_loss(first)} → {_loss(last)}"


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _run(progress: Progress) -> str:
    run = progress.run
    if run is None:
        return "not founded yet"
    left = run["boundary_in_s"]
    when = f", averaging in {duration(left)}" if left >= 0 else ", averaging"
    return f"{run['id'][:8]}   {number(run['elements'])} elements in {run['fragments']} fragments   round {run['round']}{when}"


def _base(progress: Progress) -> str:
    if progress.same:
        digest = next(iter(progress.peers.values())).digest
        return f"height {progress.height} of {progress.target}   {digest[:12]}   the same on all {len(progress.peers)} peers"
    having = sum(bool(peer.digest) for peer in progress.peers.values())
    return f"height {progress.height} of {progress.target}   {having} of {len(progress.peers)} peers hold a base"


def _learned(progress: Progress) -> str:
    mean = progress.mean()
    return f"held-out loss of the Shared Base, mean of all regions {_change(*mean)}" if mean else "nothing measured yet"


def _peer(peer: Peer) -> list[str]:
    rate = number(peer.tokens_per_s) if peer.tokens_per_s else "-"
    return [peer.name, peer.state, _loss(peer.loss), rate, str(peer.steps), size(peer.sent_bytes), _curve(peer)]


def _curve(peer: Peer) -> str:
    """ "5.381 █▆▃▂ 1.790": first, a bar for each of the last twelve, latest."""
    losses = [peer.heldout[height] for height in sorted(peer.heldout)]
    if len(losses) < 2:
        return "".join(map(_loss, losses)) or "-"
    low, high = min(losses), max(losses)
    bars = (_BARS[round((loss - low) / ((high - low) or 1.0) * (len(_BARS) - 1))] for loss in losses[-12:])
    return f"{losses[0]:.3f} {''.join(bars)} {losses[-1]:.3f}"


def _round(lived: Round) -> list[str]:
    if lived.height is None:
        return [str(lived.number), "discarded", "-", size(lived.sent_bytes), "-", lived.reasons]
    return [str(lived.number), "committed", str(lived.height), size(lived.sent_bytes), lived.digest[:12], " ".join(lived.members)]


def _colour_of(progress: Progress) -> str:
    return _RED if any(peer.health for peer in progress.peers.values()) else _GREEN if progress.height else _YELLOW


def _heading(left: str, doing: str, width: int, colour: str) -> str:
    right = cut(f"● {doing}", width)
    room = max(0, width - columns(right) - 1)
    left = cut(left, room)
    gap = " " * (width - columns(left) - columns(right))
    return f"{left}{gap}{colour}{right}{_RESET if colour else ''}"
