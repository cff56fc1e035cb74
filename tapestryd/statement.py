"""What `tapestry audit` tells people: its document in, text out. Pure.

Names may come from other peers, so nothing unprintable reaches the terminal (screen.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from protocols.trainer import ALL_FRAGMENTS
from tapestryd.screen import duration, labelled, short, size, table

Doc = Mapping[str, Any]

_PEERS = 8
"""Peers that are named, those that were sent most."""


def shown(doc: Doc, *, now_ms: int, width: int) -> str:
    """The document as text."""
    window = f"in {duration(max(0, now_ms - doc['since_ms']) / 1000)}"
    sections = [
        ("Ledger", [doc["ledger"], f"entries {doc['first']} to {doc['last']}", f"key {doc['key']}"]),
        ("Released", _left(doc["totals"], window)),
        ("", _left(doc["in_all"], "in all")),
        ("Withheld", _kept(doc["totals"], window)),
        *_sent(doc["egress"], doc["egress_unknown"], now_ms),
        ("Recovered", [f"entry {one['entry']}: a crash left a line of {one['bytes']} bytes unfinished" for one in doc["recovered"]]),
        ("Unfinished", [f"{doc['torn']} bytes behind the last line: it is being written, or a crash tore it"] if doc["torn"] else []),
        ("Verified", ["every entry is signed, and follows the one before it"] if doc["verified"] else []),
        ("Witness", [doc["witness"]] if doc["witness"] else []),
    ]
    lines = labelled(sections, width)
    listed = sorted(doc["released"] + doc["withheld"], key=lambda one: int(one["entry"]))
    if listed:
        head = ("ENTRY", "AGO", "RUN", "ROUND", "FRAGMENT", "RESULT", "STEPS", "EXAMPLES", "NORM", "CLIP", "NOISE", "BYTES", "SHA-256")
        lines += ["", *table([head, *(_row(one, now_ms) for one in listed)], width)]
    return "\n".join(lines) + "\n"


def _left(totals: Doc, when: str) -> Iterator[str]:
    yield f"{totals['released']} {'vector' if totals['released'] == 1 else 'vectors'} {when}"
    yield size(totals["bytes"])
    if totals["epsilon"]:
        yield f"epsilon {totals['epsilon']:.3g}"


def _kept(totals: Doc, when: str) -> Iterator[str]:
    yield f"{sum(totals['withheld'].values()) + totals['unwritten']} {when}"
    yield from (f"{count} {reason}" for reason, count in sorted(totals["withheld"].items()))
    if totals["unwritten"]:
        yield f"{totals['unwritten']} only counted"


def _row(one: Doc, now_ms: int) -> tuple[str, ...]:
    kept = one.get("reason")
    noise = f"{one['noise_std']:.3g}" if one.get("noise_std") else "-"
    return (
        str(one["entry"]), duration(max(0, now_ms - one["time_ms"]) / 1000), one["run"][:8], str(one["round"]),
        "all" if one["fragment"] == ALL_FRAGMENTS else str(one["fragment"]), f"withheld: {kept}" if kept else "released",
        str(one["steps"]), str(one["examples"]),
        *(("-",) * 5 if kept else (f"{one['norm']:.4g}", f"{one['clip']:.3g}", noise, size(one["bytes"]), one["sha256"][:16])),
    )  # fmt: skip


def _sent(egress: Doc | None, unknown: str, now_ms: int) -> Iterator[tuple[str, list[str]]]:
    """What the network side says of the bytes that it sent, and the kernel of those."""
    if egress is None:
        yield "Sent", [f"not known: {unknown}"]
        return
    kinds = sorted(egress["by_kind"].items(), key=lambda one: -int(one[1]["sent"]))
    since = f"in {duration(max(0, now_ms - egress['since_ms']) / 1000)}"
    yield "Sent", [f"{size(egress['sum']['sent'])} {since}", *(f"{kind} {size(moved['sent'])}" for kind, moved in kinds if moved["sent"])]
    peers = sorted(((sum(moved["sent"] for moved in by.values()), peer) for peer, by in egress["by_peer"].items()), reverse=True)
    named = [f"{short(peer)} {size(sent)}" for sent, peer in peers[:_PEERS] if sent]
    yield "To", [*named, *([f"and {len(peers) - _PEERS} more"] if len(peers) > _PEERS else [])]
    yield "Uncounted", [f"{duration((gap['until_ms'] - gap['from_ms']) / 1000)} before a daemon was killed" for gap in egress["gaps"]]
    books = egress["reconciliation"]
    if books is None:
        yield "Kernel", [f"not compared: {egress['unreconciled']}"]
        return
    whole = books["sent"]["interfaces"]
    parts = [f"{name} {books['sent'][name] / max(1, whole):.2%}" for name in ("payload", "libp2p", "headers", "resent", "rest")]
    yield "Kernel", [f"{size(whole)} by {', '.join(books['interfaces'])} in {duration(max(0, now_ms - books['since_ms']) / 1000)}", *parts]
