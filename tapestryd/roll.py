"""Whom this node takes for a part of its run, and who it is itself: the rules' Members, the epochs seen, our delegation.

The decisions are in protocols/membership.py; here is what they need to remember, and the file of our own delegation.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from protocols import limits
from protocols.canonical import Verify
from protocols.grouping import Claim, Roster, seated
from protocols.membership import Delegation, Epochs, from_file, owner
from protocols.refusal import Refused
from protocols.rules import RunRules
from tapestryd.errors import DiskFull
from tapestryd.host.store import RunStore
from tapestryd.swarm.doubts import Doubts

_SPREADS = 8, 512
"""First, and at most: for how many rounds an epoch that we have seen is news that whoever leads may not have. More: a revoked node
is longer in rosters of those who have not heard of it. Fewer: a Member that shows its epochs to some only costs more rounds."""


class Roll:
    """`own`: our delegation, none in an open run. `trouble`: why we may not take part and what to do, or empty.
    `file`: where our delegation is, or will be; empty: nowhere."""

    def __init__(self, rules: RunRules, store: RunStore, me: str, file: str, verify: Verify) -> None:
        self.own: Delegation | None = None
        self.trouble = ""
        self.epochs: Epochs = store.load_epochs()
        self._kept = self.epochs
        """As they are on disk."""
        self._news = Doubts(*_SPREADS)
        """Members by the rounds for which their latest epoch is."""
        self._rules = rules
        self._run = rules.run_id
        self._store = store
        self._me = me
        self._file = file
        self._verify = verify
        self._read: tuple[bytes, list[Delegation]] = b"", []

    def admit(self, node: str, delegation: Delegation | None, at_ms: int) -> str:
        """Whose voice `node` has at `at_ms`; Refused if it has none. What it shows of its Member's epoch is remembered."""
        found = owner(delegation, run=self._run, members=self._rules.members, node=node, at_ms=at_ms)
        if delegation is not None:
            self._learn(delegation, self._rules.schedule.round_at(at_ms))
            self.epochs.check(delegation)
        return found

    def admit_caller(self, peer: str, claim: Claim, round: int) -> None:
        self.admit(peer, claim.delegation, self._rules.schedule.boundary(round))

    def admit_roster(self, roster: Roster) -> None:
        """Whom its leader let in may be of a smaller epoch than we have seen, while that is news."""
        roster.check(self._rules)
        for delegation in roster.delegations(roster.members):
            self._learn(delegation, roster.round)
            if not self._news.holds(delegation.member, roster.round):
                self.epochs.check(delegation)

    def seated(self, claims: Mapping[str, Claim]) -> list[str]:
        """Of callers in this order, those whom a roster has places for."""
        return seated(list(claims), list(claims.values()), len(self._rules.members))

    def heard(self, roster: Roster) -> None:
        """Of a log entry that others committed, and which was checked: what they admitted stands, and teaches epochs."""
        for delegation in roster.delegations(roster.members):
            self._learn(delegation, roster.round)

    def _learn(self, delegation: Delegation, round: int) -> None:
        epochs = self.epochs.seen(delegation)
        if epochs is not self.epochs:
            self.epochs = epochs
            self._news.add(delegation.member, round)

    def look(self, at_ms: int) -> None:
        """Read our own delegation anew, for its file may have been replaced; it has to hold at `at_ms`. Epochs that were seen since the
        last look are written, if they can be: not as they come, or a Member with many of them would keep us waiting for the disk."""
        if self._kept is not self.epochs:
            with suppress(DiskFull):
                self._store.keep_epochs(self.epochs)
                self._kept = self.epochs
        own = None if not self._rules.members else self._look()
        trouble = own if isinstance(own, str) else ""
        self.own = own if isinstance(own, Delegation) else None
        try:
            if not trouble:
                self.admit(self._me, self.own, at_ms)
        except Refused as refused:
            trouble, self.own = refused.detail, None
        self.trouble = trouble and (
            f"{trouble}; a Member has to delegate this node: tapestry member delegate --key KEY --run {self._run} --node {self._me} "
            "-o delegation.json, and run.delegation has to name that file"
        )

    def _look(self) -> Delegation | str:
        """What the file holds for us, or what is wrong with it."""
        if not self._file:
            return "run.delegation names no file, and only delegated nodes take part in this run"
        try:
            with Path(self._file).open("rb") as file:
                data = file.read(limits.DELEGATIONS_BYTES + 1)
            if data != self._read[0]:
                self._read = data, from_file(data, self._verify)
        except OSError as error:
            return f"run.delegation = {self._file}: {error.strerror}"
        except Refused as refused:
            return f"run.delegation = {self._file}: {refused.detail}"
        ours = [delegation for delegation in self._read[1] if (delegation.run, delegation.node) == (self._run, self._me)]
        return ours[0] if ours else f"run.delegation = {self._file}: nothing in it is for this node in this run"
