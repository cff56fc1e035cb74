"""The status screen in every state, held by golden text; and the tables."""

import json
from dataclasses import asdict, replace

import pytest

from protocols.control import (
    Averaging,
    Certificate,
    Contribution,
    Fetching,
    Hold,
    Isolation,
    Missing,
    Network,
    Policy,
    Repaired,
    Run,
    Silent,
    Status,
    Trainer,
)
from tapestryd import screen
from tests.scripted import BANS, IDLE, RUN, STATUS, STORY

JOINING = replace(
    STATUS,
    state="joining",
    reasons=("no_peers: none of the 2 bootstrap addresses answers; check that port 31700 is open between the machines",),
    run=replace(RUN, boundary_in_s=3.0, height=0),
    trainer=Trainer("waiting", "cpu", "fp32", "adamw", withheld=3, epsilon=1.25),
    averaging=Averaging(None, 0, 0),
    contribution=Contribution(),
    network=Network(0, "unknown", None),
    peers=(),
    health=("clock: nobody is there to compare it with",),
)
AVERAGING = replace(
    STATUS,
    state="averaging",
    run=replace(RUN, phase="reducing", boundary_in_s=-4.2),
    refusals={"stale": 3, "bad_signature": 1},
    declined={"banned": 2},
    bans=1,
    isolation=Isolation(False, "none", {"data.sockets": "held", "network.places": "open", "data.memory": "untried"}),
    averaging=replace(STATUS.averaging, last=replace(STORY, result="discarded", reason="coverage 0.40 where 0.50 is needed")),
)
PAUSED = replace(
    STATUS,
    state="paused",
    reasons=("user", "battery"),
    policy=Policy(
        "always", 5400.0, False,
        (Hold("user", "the operator asked for it", 7200.0), Hold("battery", "this machine is on battery at 31%", None)), 3600.0,
    ),
)  # fmt: skip
FINISHING = replace(STATUS, policy=Policy(finishing=True, holds=(Hold("user", "the operator asked for it", None),)))
LATER = replace(STATUS, policy=Policy(changes_in_s=11_000.0))

GOLDEN = {
    "idle": (
        IDLE,
        """\
tapestry 0.1.0 · aspen (12D3…pS2d) · up 3d 4h                             ● idle
Run        none; join one with: tapestry run join INVITE
Trainer    off
Isolation  data ⟂ network enforced   by namespaces   1 of 1 checks held
Swarm      0 peers present   reachable: unknown
Averaging  no rounds yet
Traffic    sent 0 B   received 0 B   since start
Health     ok
""",
    ),
    "joining": (
        JOINING,
        """\
tapestry 0.1.0 · aspen (12D3…pS2d) · up 3d 4h                          ● joining
Why        no_peers: none of the 2 bootstrap addresses answers; check that port
           31700 is open between the machines
Run        tapestry-1b (abababab)   round 41   height 0   base cdcdcdcd
           local steps end in 3.0 s
Trainer    waiting   cpu fp32 adamw   epsilon 1.250 spent   3 withheld
Isolation  data ⟂ network enforced   by namespaces   1 of 1 checks held
Swarm      0 peers present   reachable: unknown
Averaging  no rounds yet
Traffic    sent 114 MiB   received 118 MiB   since start
Health     clock: nobody is there to compare it with
""",
    ),
    "training": (
        STATUS,
        """\
tapestry 0.1.0 · aspen (12D3…pS2d) · up 3d 4h                         ● training
Run        tapestry-1b (abababab)   round 41   height 40   base cdcdcdcd
           local steps end in 12 s
Trainer    training   cuda:0 bf16 adamw8bit   21.3k tok/s   loss 2.914
           5.12k steps   10.5M tokens   20.0 GiB
Learned    held-out loss 3.402 → 2.871   height 1 → 40   on 8.19k tokens
Isolation  data ⟂ network enforced   by namespaces   1 of 1 checks held
Swarm      2 peers present   reachable: yes   clock +12 ms
Averaging  round 40 committed   2 peers   coverage 1.00   9.4 s
           58 of 60 rounds committed
Traffic    sent 114 MiB   received 118 MiB   since start
Contrib    58 rounds   7.4k steps   15.2M tokens   since start
           in all: tapestry contrib
Health     ok

PEER       NAME            STATE     HEIGHT  BASE   RTT    SKEW   SEEN   VERSION
12D3…nQ8b  ornl            training  40      same   31 ms  +4 ms  1.5 s  0.1.0
12D3…wZZa  森の計算機?[3…  syncing   38      other  -      -      4.0 s  0.1.0
""",
    ),
    "averaging": (
        AVERAGING,
        """\
tapestry 0.1.0 · aspen (12D3…pS2d) · up 3d 4h                        ● averaging
Run        tapestry-1b (abababab)   round 41   height 40   base cdcdcdcd
           reducing, 4.2 s in
Trainer    training   cuda:0 bf16 adamw8bit   21.3k tok/s   loss 2.914
           5.12k steps   10.5M tokens   20.0 GiB
Learned    held-out loss 3.402 → 2.871   height 1 → 40   on 8.19k tokens
Isolation  data ⟂ network PARTIAL   by none   1 of 3 checks held
           open: network.places
Swarm      2 peers present   reachable: yes   clock +12 ms
Averaging  round 40 discarded: coverage 0.40 where 0.50 is needed   2 peers
           coverage 1.00   9.4 s   58 of 60 rounds committed
Traffic    sent 114 MiB   received 118 MiB   since start
Contrib    58 rounds   7.4k steps   15.2M tokens   since start
           in all: tapestry contrib
Refused    1 bad_signature   3 stale
Declined   2 banned
Banned     1 peer: tapestry peers bans
Health     ok

PEER       NAME            STATE     HEIGHT  BASE   RTT    SKEW   SEEN   VERSION
12D3…nQ8b  ornl            training  40      same   31 ms  +4 ms  1.5 s  0.1.0
12D3…wZZa  森の計算機?[3…  syncing   38      other  -      -      4.0 s  0.1.0
""",
    ),
    "paused": (
        PAUSED,
        """\
tapestry 0.1.0 · aspen (12D3…pS2d) · up 3d 4h                           ● paused
Why        user: the operator asked for it, for another 2h
           battery: this machine is on battery at 31%
Policy     mode always, for another 1h 30m
Run        tapestry-1b (abababab)   round 41   height 40   base cdcdcdcd
           local steps end in 12 s
Trainer    training   cuda:0 bf16 adamw8bit   21.3k tok/s   loss 2.914
           5.12k steps   10.5M tokens   20.0 GiB
Learned    held-out loss 3.402 → 2.871   height 1 → 40   on 8.19k tokens
Isolation  data ⟂ network enforced   by namespaces   1 of 1 checks held
Swarm      2 peers present   reachable: yes   clock +12 ms
Averaging  round 40 committed   2 peers   coverage 1.00   9.4 s
           58 of 60 rounds committed
Traffic    sent 114 MiB   received 118 MiB   since start
Contrib    58 rounds   7.4k steps   15.2M tokens   since start
           in all: tapestry contrib
Health     ok

PEER       NAME            STATE     HEIGHT  BASE   RTT    SKEW   SEEN   VERSION
12D3…nQ8b  ornl            training  40      same   31 ms  +4 ms  1.5 s  0.1.0
12D3…wZZa  森の計算機?[3…  syncing   38      other  -      -      4.0 s  0.1.0
""",
    ),
}


def test_what_the_policy_is_about_to_do() -> None:
    assert "\nRun " not in screen.render(document(replace(IDLE, state="stopping")), width=80, colour=False)
    assert "\nPolicy     finishing: a pause behind this round\nRun " in screen.render(document(FINISHING), width=80, colour=False)
    assert "\nPolicy     next change in 3h 3m\nRun " in screen.render(document(LATER), width=80, colour=False)
    assert "Policy" not in screen.render(document(STATUS), width=80, colour=False)


def document(status: Status) -> dict[str, object]:
    """As it comes over the socket."""
    made: dict[str, object] = json.loads(json.dumps(status.to_json()))
    return made


@pytest.mark.parametrize("state", GOLDEN)
def test_the_screen(state: str) -> None:
    status, text = GOLDEN[state]
    assert screen.render(document(status), width=80, colour=False) == text
    assert len(text.splitlines()) <= 24


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("state", GOLDEN)
def test_no_line_is_wider_than_the_terminal(state: str, width: int) -> None:
    for line in screen.render(document(GOLDEN[state][0]), width=width, colour=False).splitlines():
        assert screen.columns(line) <= width


@pytest.mark.parametrize("state", GOLDEN)
def test_colour_changes_nothing_but_colour(state: str) -> None:
    status, text = GOLDEN[state]
    coloured = screen.render(document(status), width=80, colour=True)
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"):
        coloured = coloured.replace(code, "")
    assert coloured == text


def test_what_peers_say_cannot_steer_the_terminal() -> None:
    evil = replace(
        STATUS, health=("\x1b]0;owned\x07",), peers=(replace(STATUS.peers[0], name="\x1b[2J\n", version="\u202e1.0", state="\r"),)
    )
    for text in (screen.render(document(evil), width=80, colour=False), screen.peers(document(evil)["peers"], width=80)):  # type: ignore[arg-type]
        assert all(c.isprintable() or c == "\n" for c in text)


def test_many_peers_are_counted_not_listed() -> None:
    crowd = replace(STATUS, peers=STATUS.peers * 10)
    text = screen.render(document(crowd), width=80, colour=False)
    assert text.endswith("… and 10 more: tapestry peers\n")
    assert "PEER" not in screen.render(document(crowd), width=80, colour=False, rows=0)


def test_tables() -> None:
    assert screen.peers([], width=80) == "No peers are present.\n"
    assert screen.rounds([], width=80) == "No rounds yet.\n"
    assert screen.bans([], width=80) == "Nobody is banned.\n"
    banned = replace(
        STATUS.peers[0], name="", state="banned", same_base=False, rtt_ms=None, skew_ms=None, version="", score=-50.0, addrs=()
    )
    assert screen.peers([asdict(STATUS.peers[1]), asdict(banned)], width=100) == (
        "PEER       NAME            STATE    SCORE  HEIGHT  BASE   RTT  SKEW  SEEN   VERSION\n"
        "12D3…wZZa  森の計算機?[3…  syncing  -7     38      other  -    -     4.0 s  0.1.0\n"
        "    Member 12D3KooWAfPDpPRRRBrmqy9is2zjU5srQ4hKuZitiGmh4NTTnQ8b\n"
        "12D3…nQ8b  -               banned   -50    -       -      -    -     1.5 s\n"
    )
    assert screen.bans([asdict(BANS[0]) | {"left_s": None}, asdict(BANS[1]) | {"left_s": 43_100.0}], width=80) == (
        "PEER       BY             ENDS IN  REASON\n"
        "12D3…wZZa  configuration  -        trust.deny\n"
        "12D3…mQ8b  faults         11h 58m  bad_digest ×5, stalled ×1\n"
    )
    assert screen.peers(document(STATUS)["peers"], width=80).splitlines()[1:3] == [  # type: ignore[arg-type]
        "12D3…nQ8b  ornl            training  0      40      same   31 ms  +4 ms  1.5 s …",
        "    /ip4/192.0.2.8/tcp/31700",
    ]


A, B, C, D = (f"12D3KooW{letter * 44}" for letter in "abcd")
CRAZED = replace(
    STORY,
    round=41,
    members=(A, B, C),
    coverage=0.875,
    leader=B,
    silent=(Silent(D, "call: nothing from dddddd (TimeoutError)"),),
    present=(A, B, D),
    missing=(
        Missing(D, "roster", "is not in the leader's roster"),
        Missing(A, "part", "part 0: reduce to aaaaaa: cut off"),
        Missing(C, "mean", "in 1 of 2 parts; it offered us nothing"),
        Missing(C, "vote", "sent no vote"),
    ),
    shares={A: 600_000, B: 200_000},
    repaired=(Repaired(0, B),),
    times_ms={"stopping": 12, "gathering": 5_000, "reducing": 3_100, "settling": 1_200, "committing": 80},
    refusals={"stale": 3, "bad_signature": 1},
    votes=(A, B),
    root="ef" * 32,
)
DISCARDED = replace(STORY, round=42, result="discarded", reason="no_roster", members=(), coverage=0.0, loss=None, silent=CRAZED.silent)
BEHIND = replace(
    STORY, round=43, result="behind", reason="no_donor: entry: nothing from aaaaaa (EOFError)", members=(), coverage=0.0, loss=None,
    height=41, from_height=40, to_height=52, donors=(A, D), steps=0, tokens=0,
)  # fmt: skip
CERTIFICATE = Certificate(41, 120, 0.875, "ab" * 32, (A, B, C), (A, B), ("cd" * 32,), (9,), "ef" * 32, "01" * 32, "23" * 32, (A, B))


def test_a_line_a_round() -> None:
    stories = [json.loads(json.dumps(asdict(story))) for story in (STORY, CRAZED, DISCARDED, BEHIND)]
    assert screen.rounds(stories, width=80) == (
        "ROUND  RESULT     HEIGHT  PEERS  COVER  TOOK   LOSS   STORY\n"
        "40     committed  40      2      1.00   9.4 s  2.914\n"
        "41     committed  40      3/4    0.88   9.4 s  2.914  1 leader silent; 1 not in…\n"
        "42     discarded  40      0      0.00   9.4 s  -      no_roster; 1 leader silent\n"
        "43     behind     41      0      0.00   9.4 s  -      from height 40; of 52; no…\n"
    )
    wide = screen.rounds(stories, width=160).splitlines()
    assert wide[0] == "ROUND  RESULT     HEIGHT  PEERS  COVER  TOOK   LOSS   SENT     RECEIVED  STORY"
    assert wide[2].endswith("2.9 MiB  3.0 MiB   1 leader silent; 1 not in roster; 1 not in mean; 1 no vote; 1 part repaired; 4 refused")
    for width in (40, 80, 100, 200):
        assert all(screen.columns(line) <= width for line in screen.rounds(stories, width=width).splitlines())


def test_a_round_in_full() -> None:
    found = {"stories": [asdict(DISCARDED), asdict(CRAZED)], "certificate": asdict(CERTIFICATE)}
    text = screen.one_round(json.loads(json.dumps(found)), width=80)
    assert (
        text
        == f"""\
Round      42 discarded: no_roster   fragment 0   height 40
Base       {"cd" * 32}
Silent     12D3…dddd, 1st in order: call: nothing from dddddd (TimeoutError)
Local      128 steps   262k tokens   loss -
Bytes      sent 2.9 MiB   received 3.0 MiB
Took       9.4 s

Round      41 committed   fragment 0   height 40
Base       {"cd" * 32}
Roster     led by 12D3…bbbb, 2nd in order   3/4 present   12D3…aaaa   12D3…bbbb
           12D3…cccc
Silent     12D3…dddd, 1st in order: call: nothing from dddddd (TimeoutError)
Shares     12D3…aaaa 600k (75%)   12D3…bbbb 200k (25%)
Coverage   0.875
Not called 12D3…dddd: is not in the leader's roster
Part lost  12D3…aaaa: part 0: reduce to aaaaaa: cut off
Not in it  12D3…cccc: in 1 of 2 parts; it offered us nothing
No vote    12D3…cccc: sent no vote
Repaired   part 0 from 12D3…bbbb
Votes      2/3   root efefefefefefefef
Local      128 steps   262k tokens   loss 2.914
Bytes      sent 2.9 MiB   received 3.0 MiB
Took       9.4 s   stopping 0.0 s   gathering 5.0 s   reducing 3.1 s
           settling 1.2 s   committing 0.1 s
Refused    1 bad_signature   3 stale

Certified  height 41   weight 120   coverage 0.88
           by 2/3 of roster abababababababab
Before     {"01" * 32}
After      {"23" * 32}
Root       {"ef" * 32}
Signed by  {A}
           {B}
"""
    )
    assert (
        screen.one_round({"stories": [asdict(BEHIND)], "certificate": None}, width=80)
        == f"""\
Round      43 behind   from height 40 to 41 of 52
Why        no_donor: entry: nothing from aaaaaa (EOFError)
Base       {"cd" * 32}
Donors     12D3…aaaa   12D3…dddd
Bytes      received 3.0 MiB
Took       9.4 s
"""
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.44, "9.4 s"), (59.9, "60 s"), (60, "1m"), (200, "3m 20s"), (7200, "2h"), (273_600, "3d 4h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert screen.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (498 << 20, "498 MiB"), (5 << 40, "5.0 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert screen.size(count) == text


def test_of_a_run_whose_rules_are_awaited_only_the_id_is_told() -> None:
    """As picture.py has it."""
    run = Run(RUN.id, "", "fetching", 0, 0, "", 0.0, RUN.invite, 0, 0, 0)
    shown = screen.render(replace(JOINING, run=run).to_json(), width=80, colour=False)
    assert "\nRun        abababab   fetching the rules\n" in shown


def test_a_base_on_its_way_is_told_in_bytes() -> None:
    run = replace(RUN, phase="syncing", fetching=Fetching(40, 3 << 28, 2 << 30, 4))
    shown = screen.render(replace(JOINING, run=run).to_json(), width=120, colour=False)
    assert "round 41   768 MiB of 2.0 GiB of the base of height 40 are here, from 4 peers\n" in shown


def test_what_would_hold_it_is_said_before_it_can_train() -> None:
    policy = Policy(holds=(Hold("user", "the operator asked for it", 7200.0),))
    for status, before in ((IDLE, ""), (JOINING, "31700 is open between the machines\n           ")):
        shown = screen.render(replace(status, policy=policy).to_json(), width=80, colour=False)
        assert f"{before or 'Why        '}user: the operator asked for it, for another 2h\n" in shown
    averaging = screen.render(replace(AVERAGING, policy=policy).to_json(), width=80, colour=False)
    assert "the operator asked for it" not in averaging
