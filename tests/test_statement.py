"""What `tapestry audit` tells people of a document, held by golden text."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from protocols.egress import Egress, Moved
from tapestryd import statement
from tests.scripted import EGRESS, OTHERS

NOW_MS = 10_000_000
VECTOR = {
    "entry": 2, "time_ms": NOW_MS - 90_000, "run": "ab" * 32, "round": 7, "fragment": 3, "steps": 128, "tokens": 1 << 17, "examples": 900,
    "batches": 128, "bytes": 1 << 20, "sha256": "cd" * 32, "norm": 12.4321987, "clip": 0.4021, "noise_std": 0.00125, "epsilon": 2.5,
}  # fmt: skip
KEPT = {
    "entry": 3, "time_ms": NOW_MS - 5000, "run": "ab" * 32, "round": 8, "fragment": 0xFFFF, "reason": "few_steps", "steps": 5,
    "examples": 37, "unwritten": 1,
}  # fmt: skip
TOTALS = {"released": 1, "bytes": 1 << 20, "epsilon": 2.5, "withheld": {"few_steps": 1}, "unwritten": 1}


def told(egress: Egress | None, **changed: Any) -> list[str]:
    document = {
        "ledger": "/var/lib/tapestry-train/ledger", "key": "12D3KooW", "first": 1, "last": 4, "since_ms": NOW_MS - 3_600_000,
        "opened": [], "released": [VECTOR], "withheld": [KEPT], "recovered": [{"entry": 4, "bytes": 17}], "torn": 3,
        "totals": TOTALS, "in_all": {**TOTALS, "released": 400}, "verified": True, "witness": "agrees",
        "egress": json.loads(json.dumps(asdict(egress))) if egress else None, "egress_unknown": "" if egress else "no daemon",
    }  # fmt: skip
    return statement.shown({**document, **changed}, now_ms=NOW_MS, width=130).splitlines()


def test_the_whole_of_it() -> None:
    assert told(replace(EGRESS, since_ms=NOW_MS - 3_600_000)) == [
        "Ledger     /var/lib/tapestry-train/ledger   entries 1 to 4   key 12D3KooW",
        "Released   1 vector in 1h   1.0 MiB   epsilon 2.5",
        "           400 vectors in all   1.0 MiB   epsilon 2.5",
        "Withheld   2 in 1h   1 few_steps   1 only counted",
        "Sent       1000 B in 1h   delta 1000 B",
        f"To         {OTHERS[0][:4]}…{OTHERS[0][-4:]} 1000 B",
        "Uncounted  10 s before a daemon was killed",
        "Kernel     1020 B by eth0 in 2h 46m   payload 88.24%   libp2p 4.90%   headers 6.47%   resent 0.00%   rest 0.39%",
        "Recovered  entry 4: a crash left a line of 17 bytes unfinished",
        "Unfinished 3 bytes behind the last line: it is being written, or a crash tore it",
        "Verified   every entry is signed, and follows the one before it",
        "Witness    agrees",
        "",
        "ENTRY  AGO     RUN       ROUND  FRAGMENT  RESULT               STEPS  EXAMPLES  NORM   CLIP   NOISE    BYTES    SHA-256",
        "2      1m 30s  abababab  7      3         released             128    900       12.43  0.402  0.00125  1.0 MiB  cdcdcdcdcdcdcdcd",
        "3      5.0 s   abababab  8      all       withheld: few_steps  5      37        -      -      -        -        -",
    ]


@pytest.mark.parametrize(
    ("egress", "line"),
    [
        (None, "Sent       not known: no daemon"),
        (replace(EGRESS, reconciliation=None, unreconciled="no netlink"), "Kernel     not compared: no netlink"),
        (
            replace(EGRESS, by_peer={f"peer{i}": {"delta": Moved(i, 0)} for i in range(12)}),
            "To         " + "   ".join(f"peer{i} {i} B" for i in range(11, 3, -1)) + "   and 4 more",
        ),
    ],
    ids=["no daemon", "no kernel", "many peers"],
)
def test_what_else_there_may_be(egress: Egress | None, line: str) -> None:
    assert line in told(egress)


def test_a_name_from_elsewhere_cannot_steer_the_terminal() -> None:
    lines = told(replace(EGRESS, by_peer={"\x1b[31mpeer": {"delta": Moved(1, 0)}}), released=[], withheld=[])
    assert "To         ?[31mpeer 1 B" in lines
