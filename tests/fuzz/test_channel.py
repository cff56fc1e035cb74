"""Both ends of the trainer channel, in real processes, with a stranger at the other end: nobody crashes, hangs, grows or is read.

pytest tests/fuzz/test_channel.py                                    some seconds each
TAPESTRY_FUZZ_S=600 pytest -s tests/fuzz/test_channel.py             ten minutes each; TAPESTRY_FUZZ_SEED repeats one
"""

import contextlib
import fcntl
import json
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from protocols.trainer import (
    ALL_FRAGMENTS,
    SIZE,
    Base,
    Beat,
    Checks,
    Delta,
    Ended,
    Evaluated,
    Order,
    Quit,
    Ready,
    Report,
    Rest,
    Stop,
    Train,
    Withheld,
    pack,
    unpack,
)  # fmt: skip
from tests.fuzz.channel import FINAL, SEALS, Impostor, descriptors, malformed, memory, well_formed
from tests.fuzz.mutation import mutated
from tests.fuzz.reader import resident_bytes
from tests.host.home import Home
from tests.living import Peer, found
from tests.training.tiny import genesis, write_text

SECONDS = float(os.environ.get("TAPESTRY_FUZZ_S", "5"))
LATE_S = 5.0
"""However busy the machine: a loop that is this late was held."""


@pytest.fixture
def seed() -> int:
    made = int(os.environ.get("TAPESTRY_FUZZ_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
    print(f"TAPESTRY_FUZZ_SEED={made}")
    return made


def test_a_reader_of_reports_believes_nobody(tmp_path: Path, seed: int) -> None:
    impostor = Impostor(Random(seed))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(1)
        command = [sys.executable, "-m", "tests.fuzz.reader", str(tmp_path / "s"), str(SECONDS)]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while reader.poll() is None:
            with contextlib.suppress(TimeoutError):
                impostor.serve(listening.accept()[0], flood_s=impostor.channels % 50 == 1)
        said, complaints = reader.communicate()
    assert (reader.returncode, complaints) == (0, "")
    seen = json.loads(said)
    print(f"{seen} sent={impostor.sent}")
    assert impostor.broken == set()
    assert seen["channels"] >= SECONDS
    assert seen["reports"] > 100 * SECONDS
    assert seen["late_s"] < LATE_S
    assert seen["descriptors"] == 0
    assert seen["grown_bytes"] < 32 << 20


def network_side(peer: Peer) -> int:
    (found,) = [pid for pid in peer.processes() if b"--inside" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


@pytest.mark.timeout(300 + 4 * SECONDS)
def test_a_daemon_lives_with_an_impostor_for_its_data_side(tmp_path: Path, seed: int) -> None:
    data = write_text(tmp_path / "data", 5000)
    environment = {"TAPESTRY_TRAINER_SEED": str(seed), "PYTHONPATH": str(Path(__file__).parents[2])}
    peer = Peer(tmp_path / "peer", [data], environment=environment, program="tests.fuzz.imposed")
    with contextlib.ExitStack() as held:
        held.callback(peer.end)
        peer.start(str(found(tmp_path / "founder", "--train", "2", "--average", "2")), "sandbox.method=none")
        peer.wait("a report", lambda s: s["trainer"] and s["trainer"]["tokens"], 60)
        pid = network_side(peer)
        began, most, latest = resident_bytes(pid), 0, 0.0
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            asked = time.monotonic()
            peer.status()
            latest, most = max(latest, time.monotonic() - asked), max(most, resident_bytes(pid))
            time.sleep(0.1)
        assert peer.term() == 0
    log = peer.log()
    print(f"late_s={latest:.2f} grown={(most - began) >> 20} MiB log={len(log)} {log.rpartition('impostor: ')[2].splitlines()[0]}")
    assert "Traceback" not in log
    assert "broken=[]" in log
    assert latest < LATE_S
    assert most - began < 64 << 20
    assert len(log) < 200_000 + 2000 * SECONDS


class Trainers:
    """Real stewards, one after the other, and what became of them and of their trainers."""

    def __init__(self, root: Path, chance: Random) -> None:
        self.home = Home(root / "home")
        self.root, self.chance = root, chance
        self.ends = Counter[int]()
        """Exit statuses of trainers, as their stewards tell them, and of stewards."""
        self.said = Counter[str]()
        """Reports of each kind."""
        self._steward: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")

    def connect(self) -> socket.socket:
        deadline = time.monotonic() + 60
        while True:
            if self._steward is None or self._steward.poll() is not None:
                self._start()
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            channel.settimeout(60)
            try:
                channel.connect(str(self.home.socket))
                return channel
            except OSError:  # not there yet, or not any more
                channel.close()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def _start(self) -> None:
        if self._steward is not None:
            self.ends[self._steward.returncode] += 1
        command = [sys.executable, "-m", "tapestryd.host.steward", "--config", str(self.home.config), "--listen", str(self.home.socket)]
        with (self.root / "log").open("ab") as log:
            self._steward = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def close(self) -> None:
        if self._steward is not None:
            self._steward.terminate()
            self.ends[self._steward.wait(60)] += 1

    def wrong_from_the_start(self) -> None:
        """A first packet, or descriptors with it, that are no HELLO."""
        chance, size = self.chance, 4 * self.home.layout.elements
        strange = descriptors(chance, size, self.root)
        right = [memory(size, SEALS), memory(size, SEALS), memory(self.home.rules.canonical(), FINAL), memory(b"", FINAL)]
        packet, given = pack(self.home.hello()), right[:]
        match chance.randrange(5):
            case 0:
                packet = malformed(chance)
            case 1:
                packet = well_formed(chance, Order)
            case 2:
                given[chance.randrange(4)] = strange[0]
            case 3:
                given = strange[: chance.randrange(9)]
            case _:
                given = [*right[:2], memory(mutated(self.home.rules.canonical(), chance, 1 << 16), FINAL), right[3]]
        with self.connect() as channel, contextlib.suppress(ConnectionError):
            socket.send_fds(channel, [packet], given)
            channel.shutdown(socket.SHUT_WR)  # what happened to be right is answered, and then over
            while self.heard(channel):
                pass
        for descriptor in {*strange, *right, *given}:
            os.close(descriptor)
        assert (self.root / "bystander").read_bytes() == b"nobody writes here"

    @contextlib.contextmanager
    def session(self) -> Iterator[tuple[socket.socket, memoryview]]:
        """A trainer that is READY, and its params. A steward that is ending, behind one that failed, is given up for the next."""
        size = 4 * self.home.layout.elements
        for _ in range(5):
            with self.connect() as channel, contextlib.suppress(ConnectionError):
                given = [memory(size, 0), memory(size, SEALS), memory(self.home.rules.canonical(), FINAL), memory(b"", FINAL)]
                params = memoryview(mmap.mmap(given[0], size))
                params[:] = genesis().numpy().tobytes()
                fcntl.fcntl(given[0], fcntl.F_ADD_SEALS, SEALS)
                try:
                    socket.send_fds(channel, [pack(self.home.hello())], given)
                finally:
                    for descriptor in given:
                        os.close(descriptor)
                while not isinstance(report := self.heard(channel), Ready):
                    assert isinstance(report, Checks), report
                channel.send(pack(Base(0, ALL_FRAGMENTS, False)))
                yield channel, params
                return
        raise AssertionError(f"no trainer was READY:\n{self.log[-2000:]}")

    def wild_orders(self) -> None:
        """A trainer at work, and orders in any order, some of which are none, while its base changes under it."""
        chance, right = self.chance, genesis().numpy().tobytes()
        with self.session() as (channel, params):
            stops = answers = 0
            with contextlib.suppress(ConnectionError, TimeoutError):
                for _ in range(chance.choice((5, 50, 500))):
                    order = well_formed(chance, Base | Train | Stop | Rest)
                    channel.send(order)
                    stops += isinstance(unpack(order), Stop)
                    if chance.random() < 0.3:
                        at = chance.randrange(len(params) - 64)
                        params[at : at + 64] = chance.randbytes(64) if chance.random() < 0.1 else right[at : at + 64]
                    if select.select([channel], [], [], 0.02)[0]:
                        answers += isinstance(self.heard(channel), Delta | Withheld)
                channel.send(malformed(chance) if chance.random() < 0.5 else pack(Quit()))
            with contextlib.suppress(ConnectionError):
                while report := self.heard(channel):
                    answers += isinstance(report, Delta | Withheld)
            assert answers <= stops

    def deaf(self) -> None:
        """Orders that are answered, and nobody who reads the answers."""
        with self.session() as (channel, _):
            channel.settimeout(20)
            with contextlib.suppress(TimeoutError, ConnectionError):
                for round in range(3000):
                    channel.send(pack(Stop(round, 0)))

    def honest(self) -> None:
        """As if nothing had been."""
        with self.session() as (channel, _):
            channel.send(pack(Train(1, 1)))
            while not isinstance(self.heard(channel), Beat):
                pass
            channel.send(pack(Stop(1, 1)))
            while not isinstance(report := self.heard(channel), Delta):
                assert isinstance(report, Beat | Evaluated)
            channel.send(pack(Quit()))
            assert self.heard(channel) == Ended(0)

    def heard(self, channel: socket.socket) -> Report | None:
        """What is said next; None at the end. Fails for what is no report, and where nothing comes."""
        if not (packet := channel.recv(SIZE + 1)):
            return None
        message = unpack(packet)
        assert isinstance(message, Report), message
        self.said[type(message).__name__] += 1
        if isinstance(message, Ended):
            self.ends[message.status] += 1
        return message


@pytest.fixture
def trainers(tmp_path: Path, seed: int) -> Iterator[Trainers]:
    made = Trainers(tmp_path, Random(seed))
    yield made
    made.close()


@pytest.mark.timeout(300 + 4 * SECONDS)
def test_a_trainer_does_nothing_for_a_stranger(trainers: Trainers) -> None:
    over, sessions = time.monotonic() + SECONDS, 0
    trainers.deaf()
    while time.monotonic() < over or not sessions:
        if trainers.chance.random() < 0.8:
            trainers.wrong_from_the_start()
        else:
            sessions += 1
            trainers.wild_orders()
    trainers.honest()
    trainers.close()
    print(dict(trainers.ends), dict(trainers.said))
    assert set(trainers.ends) <= {0, 78}
    assert "Traceback" not in trainers.log
    assert "INTERNAL" not in trainers.log
