"""Seeded chaos for a swarm of real daemons, each on a machine of its own; then peace, and one base for all. Prints what it came to.

    TAPESTRY_CHAOS_S=3600 pytest -m 'slow and root' -s -k roster tests/chaos/test_chaos.py
TAPESTRY_CHAOS_SEED chooses another plan. What a failed run leaves is under --basetemp: state, log and copies, machine by machine.
"""

import heapq
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, assert_never

import pytest

from protocols.rules import RunRules
from tapestryd.host.clock import now_ms
from tests.chaos.machine import Machine, compile_clock
from tests.chaos.namespaces import Lan
from tests.chaos.plan import Fault, Kind, plan
from tests.chaos.told import Done, Told, forks
from tests.living import corpora, found

SECONDS = float(os.environ.get("TAPESTRY_CHAOS_S", "180"))
SEED = int(os.environ.get("TAPESTRY_CHAOS_SEED", "1"))
REGIONS = ("swahili", "ukrainian", "armenian", "basque", "latvian", "wolof")
TRAIN_S, AVERAGE_S = 4, 4
PERIOD_S = TRAIN_S + AVERAGE_S
RATE = "1mbit"
RESTART_S = 5.0
"""What systemd would wait before it starts again a daemon that ended by itself."""
ORPHAN_S = 60.0
"""For a trainer whose daemon was killed to write its checkpoint and go, even if it was still reading its libraries."""
UP_S = 180.0
"""For a daemon and its trainer to be up and training after a start, on two cores that others may be using, too."""
PEACE_ROUNDS = 6
"""From the time that everybody is up again until everybody has committed one base together."""

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(int(SECONDS) + 900)]


@pytest.fixture
def lan() -> Iterator[Lan]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lan(len(REGIONS), 12) as lan:
        yield lan


@pytest.fixture
def machines(lan: Lan, tmp_path: Path) -> Iterator[list[Machine]]:
    text = corpora()
    if text is None:
        pytest.skip("the six regions' text is not beside this checkout (set TAPESTRY_CORPORA)")
    if shutil.which("cc") is None:
        pytest.skip("a wrong clock needs a C compiler")
    clock = compile_clock(tmp_path)
    with ExitStack() as stack:
        made = []
        for number, region in enumerate(REGIONS, start=1):
            made.append(Machine(number, tmp_path / region, text / region, lan, clock))
            stack.callback(made[-1].end)
        yield made


class Chaos:
    """Does a plan's faults and undoes them. `done`: what was done; `wrong`: what a swarm must never do, in sentences."""

    def __init__(self, machines: Sequence[Machine], lan: Lan, copies: Path) -> None:
        self.machines = {machine.number: machine for machine in machines}
        self.lan = lan
        self.done: list[Done] = []
        self.wrong: list[str] = []
        self._copies = copies
        self._began = time.monotonic()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._down: set[int] = set()

    def run(self, faults: Sequence[Fault], seconds: float) -> None:
        self._began = time.monotonic()
        for fault in faults:
            self._at(fault.at_s, lambda fault=fault: self._begin(fault))  # type: ignore[misc]
            if fault.kind is Kind.OLD_STATE:
                self._at(fault.at_s - fault.age_s, lambda fault=fault: self._back_up(fault))  # type: ignore[misc]
        while (now := time.monotonic() - self._began) < seconds:
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            self.look()
            time.sleep(0.1)
        while self._due:  # what is not over yet ends now
            heapq.heappop(self._due)[2]()

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), act))

    def _say(self, words: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {words}", flush=True)

    def _back_up(self, fault: Fault) -> None:
        self.machines[fault.machines[0]].back_up(self._copy(fault))

    def _copy(self, fault: Fault) -> Path:
        return self._copies / f"{fault.machines[0]}-{fault.at_s:.0f}"

    def _begin(self, fault: Fault) -> None:
        self._say(str(fault))
        begun_ms = now_ms()
        self._do(fault)

        def end() -> None:
            self._say(f"over: {fault}")
            self._undo(fault)
            self.done.append(Done(fault, begun_ms, now_ms()))

        self._at(fault.at_s + fault.lasts_s, end)

    def _do(self, fault: Fault) -> None:
        one = self.machines[fault.machines[0]]
        match fault.kind:
            case Kind.KILL | Kind.OLD_STATE:
                self._down.add(one.number)
                one.kill()
            case Kind.STOP_DAEMON | Kind.STOP_TRAINER:
                one.freeze(trainer=fault.kind is Kind.STOP_TRAINER)
            case Kind.PARTITION:
                self.lan.cut(fault.machines, self._others(fault))
                self.lan.cut(self._others(fault), fault.machines)
            case Kind.ONE_WAY:
                self.lan.cut(fault.machines, self._others(fault))
            case Kind.SLOW_LINK:
                self.lan.slow(one.number, RATE)
            case Kind.FULL_DISK:
                one.fill()
            case Kind.WRONG_CLOCK:
                one.shift(fault.shift_ms)
            case _:
                assert_never(fault.kind)

    def _undo(self, fault: Fault) -> None:
        one = self.machines[fault.machines[0]]
        match fault.kind:
            case Kind.KILL | Kind.OLD_STATE:
                if not one.gone(ORPHAN_S):
                    self.wrong.append(
                        f"{one.folder.name} was killed, and {ORPHAN_S:.0f} s later there is still {_described(one.processes())}"
                    )
                if fault.kind is Kind.OLD_STATE:
                    one.put_back(self._copy(fault))
                self._down.discard(one.number)
                one.start()
            case Kind.STOP_DAEMON | Kind.STOP_TRAINER:
                one.thaw()
            case Kind.PARTITION:
                self.lan.mend(fault.machines, self._others(fault))
                self.lan.mend(self._others(fault), fault.machines)
            case Kind.ONE_WAY:
                self.lan.mend(fault.machines, self._others(fault))
            case Kind.SLOW_LINK:
                self.lan.fast(one.number)
            case Kind.FULL_DISK:
                one.clear()
            case Kind.WRONG_CLOCK:
                one.shift(0)
            case _:
                assert_never(fault.kind)

    def _others(self, fault: Fault) -> list[int]:
        return sorted(self.machines.keys() - set(fault.machines))

    def look(self) -> None:
        """Notice who ended by itself; it comes back as under systemd."""
        for machine in self.machines.values():
            if machine.number in self._down or (status := machine.ended()) is None:
                continue
            self.wrong.append(f"{machine.folder.name} ended by itself with {status} after {time.monotonic() - self._began:.0f} s")
            self._say(self.wrong[-1])
            self._down.add(machine.number)

            def start(machine: Machine = machine) -> None:
                self._down.discard(machine.number)
                machine.start()

            self._at(time.monotonic() - self._began + RESTART_S, start)


def _described(processes: Sequence[int]) -> str:
    return "; ".join(
        f"{process}: {Path(f'/proc/{process}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}" for process in processes
    )


def until(machines: Sequence[Machine], what: str, good: Callable[[list[dict[str, Any]]], bool], timeout_s: float) -> list[dict[str, Any]]:
    """Everybody's status, once all answer and it is good."""
    deadline = time.monotonic() + timeout_s
    found: dict[str, dict[str, Any] | str] = {}
    while time.monotonic() < deadline:
        for machine in machines:
            try:
                found[machine.folder.name] = machine.status()
            except Exception as error:
                found[machine.folder.name] = f"no answer: {error!r}"
        statuses = [status for status in found.values() if isinstance(status, dict) and status["run"]]
        if len(statuses) == len(machines) and good(statuses):
            return statuses
        time.sleep(0.3)
    seen = "\n".join(f"    {name}: {status if isinstance(status, str) else _short(status)}" for name, status in found.items())
    raise AssertionError(f"not {what} within {timeout_s:.0f} s:\n{seen}")


def up(statuses: list[dict[str, Any]]) -> bool:
    return all(status["state"] in ("training", "averaging") for status in statuses)


def one_base(statuses: list[dict[str, Any]], after_round: int = -1) -> bool:
    """Everybody's latest round is one, after `after_round`, that all committed together, to one base."""
    latest = [status["averaging"]["last"] for status in statuses]
    committed = [story for story in latest if story and story["result"] == "committed" and story["round"] > after_round]
    together = [story for story in committed if len(story["members"]) == len(statuses)]
    return len(together) == len(statuses) and len({status["run"]["base_digest"] for status in statuses}) == 1


def _short(status: dict[str, Any]) -> str:
    run, network = status["run"], status["network"]
    words = [status["state"], *status["reasons"], f"round {run['round']}", f"height {run['height']}", run["base_digest"][:12]]
    return " ".join([*words, f"present {network['present']}", f"clock {network['clock_offset_ms']}", *status["health"]])


@pytest.mark.parametrize("mode", ["open", "roster"])
def test_chaos_then_one_base(machines: list[Machine], lan: Lan, tmp_path: Path, mode: str) -> None:
    """In roster mode each machine is the one node of a Member, and no cut may ever make two branches."""
    times = ("--train", str(TRAIN_S), "--average", str(AVERAGE_S), "--decay-rounds", str(int(SECONDS / PERIOD_S) + 40))
    members = [machine.member() for machine in machines] if mode == "roster" else []
    toml = found(tmp_path / "founder", *times, *(word for member in members for word in ("--member", member)))
    rules = RunRules.from_toml(toml.read_text())
    if members:
        for machine in machines:
            machine.delegate(toml)
    machines[0].start(str(toml))
    invite = machines[0].invite()
    for machine in machines[1:]:
        machine.start(invite)
    until(machines, "up", up, UP_S)
    until(machines, "one base", one_base, PEACE_ROUNDS * PERIOD_S)
    print(
        f"\n{mode}, seed {SEED}: {len(machines)} machines, {rules.layout().elements:,} parameters, rounds of {PERIOD_S} s, {SECONDS:.0f} s"
    )

    chaos = Chaos(machines, lan, tmp_path / "copies")
    begun_ms = now_ms()
    chaos.run(plan(SEED, len(machines), SECONDS, PERIOD_S), SECONDS)
    ended_ms = now_ms()

    wrong = chaos.wrong
    try:
        until(machines, "up again", up, UP_S)
        began, last_round = time.monotonic(), rules.schedule.round_at(ended_ms)
        run = until(machines, "one base again", lambda s: one_base(s, last_round), PEACE_ROUNDS * PERIOD_S)[0]["run"]
        peace, agreed = f"height {run['height']}, {time.monotonic() - began:.1f} s after all were up", {run["height"]: run["base_digest"]}
    except AssertionError as error:
        peace, agreed = "no", {}
        wrong.append(str(error))
    chaos.look()
    wrong += [f"{m.folder.name} ended with {status} on SIGTERM" for m in machines if m.ended() is None and (status := m.term())]
    wrong += [f"of {m.folder.name} there stayed {_described(m.processes())}" for m in machines if not m.gone()]
    wrong += [f"in {name} there stayed {_described(left)}" for name in lan.leftovers() if (left := lan.processes(name))]

    told = Told(rules.schedule, machines, chaos.done, begun_ms, ended_ms)
    print("\n".join(["", *told.lines(), f"{'one base again':38}{peace}"]), flush=True)
    bases = told.by_height()
    wrong += [f"two branches at heights {heights}" for heights in [forks(told.lives.values())] if heights and mode == "roster"]
    wrong += [f"height {height} has {len(several)} bases" for height, several in bases.items() if len(several) > 1]
    wrong += [f"height {height} is not {base[:12]} in the logs" for height, base in agreed.items() if base not in bases[height]]
    wrong += [f"{m.folder.name}: {m.log().count('Traceback')} tracebacks in its log" for m in machines if "Traceback" in m.log()]
    proofs = {m.folder.name: m.lineage() for m in machines}
    print("\n".join(f"{name:38}{_proof(proof)}" for name, proof in proofs.items()), flush=True)
    wrong += [f"{name}: its lineage is not proved" for name, proof in proofs.items() if not proof["proved"]]
    assert not wrong, "\n".join(wrong)


def _proof(proof: dict[str, Any]) -> str:
    if not proof["proved"]:
        return f"not proved: {proof['fault']}"
    return f"proved from height {proof['from']['height']} to {proof['height']}, {proof['base_digest'][:12]}, {proof['entries']} entries"
