"""Who took part in a run, added up from certificates: rounds, local steps, weight. For credit and curiosity, and never for weights.

Everything counted is under the votes of an entry: the roster, who was in it, what each claimed. So whoever has the rules
and the heads of the entries comes to the same numbers, and a number that was changed has no certificate. Specified in
accounts.md. Knows nothing of files.
"""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from protocols import limits
from protocols.canonical import Verify, digest
from protocols.lineage import MAGIC as ENTRY
from protocols.lineage import Entry, Tip, follow
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules

MAGIC = b"TAPCOUNT"
_FRAME = struct.Struct("<8sI")
WHOLE = 1_000_000
"""Parts of one voice."""


@dataclass(frozen=True, slots=True)
class Share:
    """One node's. `member`: for whom it spoke in its latest round; "" in an open run. `rounds`: committed ones whose roster it was in.
    `steps`: local steps that it claimed behind its deltas; `tokens`: of as many batches of the rules' size. `weight_ppm`: what it
    weighed, added up: WHOLE a round for each owner, shared by its nodes."""

    peer: str
    member: str = ""
    rounds: int = 0
    steps: int = 0
    tokens: int = 0
    weight_ppm: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """Of the heights `first` to `last`, from genesis on if `first` is 1. `coverage_ppm`: of all rounds, on average: who was in a
    roster may have sent nothing, and this is how much did come. `shares`: greatest weight first."""

    run: str
    first: int
    last: int
    first_round: int
    last_round: int
    coverage_ppm: int
    shares: tuple[Share, ...]


class Accounting:
    """Fed the heads of a run's entries, one height after the other."""

    def __init__(self, rules: RunRules, verify: Verify) -> None:
        self.rules = rules
        self._verify = verify
        self._first: Entry | None = None
        self._last: Entry | None = None
        self._coverage_ppm = 0
        self._shares: dict[str, Share] = {}

    def add(self, head: bytes) -> None:
        """Refused unless it is certified and goes on from the one before; height 1 from genesis, the first one of others from any base."""
        entry, end = Entry.parse(head, self.rules, self._verify)
        if end != len(head):
            raise Refused(Reason.MALFORMED, f"bytes behind the head of entry {entry.vote.height}")
        vote, last = entry.vote, self._last
        if last is not None:
            tip = last.tip
        elif vote.height == 1:
            tip = Tip(0, 0, self.rules.model.genesis)
        else:
            tip = Tip(vote.height - 1, vote.weight - len(entry.roster.members), vote.before)
        follow(tip, entry, self.rules.averaging, last_round=last.vote.round if last else -1)
        self._first, self._last = self._first or entry, entry
        self._coverage_ppm += vote.coverage_ppm
        owners = entry.roster.owners
        nodes, batch = Counter(owners), self.rules.inner.sequences * self.rules.inner.tokens
        for peer, owner, claim in zip(entry.roster.members, owners, entry.roster.claims, strict=True):
            old = self._shares.get(peer, Share(peer))
            self._shares[peer] = replace(
                old, member=claim.delegation.member if claim.delegation else "", rounds=old.rounds + 1, steps=old.steps + claim.steps,
                tokens=old.tokens + claim.steps * batch, weight_ppm=old.weight_ppm + WHOLE // nodes[owner],
            )  # fmt: skip

    def account(self) -> Account | None:
        """None before anything was added."""
        if self._first is None or self._last is None:
            return None
        first, last = self._first.vote, self._last.vote
        shares = sorted(self._shares.values(), key=lambda share: (-share.weight_ppm, share.peer))
        coverage = self._coverage_ppm // (last.height - first.height + 1)
        return Account(self.rules.run_id, first.height, last.height, first.round, last.round, coverage, tuple(shares))


Take = Callable[[int], bytes]
"""The next so many bytes; fewer, or none, at the end."""


def opening(rules: RunRules) -> bytes:
    """What evidence begins with; the heads follow, as they are in the log."""
    data = rules.canonical()
    return _FRAME.pack(MAGIC, len(data)) + data


def read(take: Take, run: str, verify: Verify) -> tuple[RunRules, Account]:
    """Evidence, all of it checked. `run`: the id that the rules must have; "": whatever they have. Refused at the first thing that is
    wrong."""
    data = _frame(take, MAGIC, limits.RULES_BYTES)[_FRAME.size :]
    counting = Accounting(RunRules.from_canonical(data, run or digest(data)), verify)
    while found := head(take):
        counting.add(found)
    account = counting.account()
    if account is None:
        raise Refused(Reason.MALFORMED, "there is no certificate in it")
    return counting.rules, account


def head(take: Take) -> bytes:
    """The next head of an entry; b"" at the end."""
    return _frame(take, ENTRY, limits.FRAME_BYTES)


def _frame(take: Take, magic: bytes, bound: int) -> bytes:
    start = take(_FRAME.size)
    if not start:
        return b""
    found, length = _FRAME.unpack(start) if len(start) == _FRAME.size else (start, 0)
    if found != magic or length > bound:
        raise Refused(Reason.MALFORMED, f"{found!r} with {length} bytes where {magic.decode()} belongs")
    body = take(length)
    if len(body) < length:
        raise Refused(Reason.MALFORMED, "it ends in the middle")
    return start + body
