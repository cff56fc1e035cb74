"""Whoever speaks at one end of the trainer channel as it likes: what it says, and what it tries with what it is given.

    python -m tests.fuzz.channel --config …      in the data side's place: `imposed` has the warden start it instead of a steward

Everything is drawn from a seed. Knows the channel's structs, so that most of what it says is well-formed, and nothing of what it means.
"""

import fcntl
import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from random import Random
from threading import Thread
from typing import get_args

from protocols.refusal import Refused
from protocols.trainer import ABI, SIZE, Beat, Checks, Evaluated, Fault, Hello, Message, Ready, Report, Sight, pack, unpack
from tests.fuzz.mutation import mutated

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
FINAL = SEALS | fcntl.F_SEAL_WRITE
NUMBERS = (0, 1, 2, 255, 65535, 2**31, 2**53 - 1, 2**53, 2**64 - 1)
FLOATS = (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"))


def well_formed(chance: Random, kinds: type | object) -> bytes:
    """A message of any of `kinds` that its reader takes for one: any numbers that the struct allows."""
    while True:
        kind = chance.choice(get_args(kinds))
        sizes = {"Q": 64, "I": 32, "i": 31, "H": 16, "B": 8}
        values: list[object] = []
        for field, form in zip(fields(kind), kind.FORMAT[1:].replace("32s", "s"), strict=True):
            if form == "s":
                values.append(chance.randbytes(32))
            elif form == "?":
                values.append(chance.random() < 0.5)
            elif form == "d":
                values.append(chance.choice(FLOATS) if chance.random() < 0.3 else chance.uniform(-10, 10))
            elif field.name == "abi":
                values.append(ABI)
            else:
                most = 2 ** sizes[form] - 1
                values.append(min(most, chance.choice(NUMBERS)) if chance.random() < 0.5 else chance.randrange(min(most, 20)))
        packet = pack(kind(*values))
        with suppress(Refused):
            unpack(packet)
            return packet


def malformed(chance: Random) -> bytes:
    """What nobody may take for a message, unless by accident."""
    packet = well_formed(chance, Message)
    match chance.randrange(4):
        case 0:
            return chance.randbytes(SIZE)
        case 1:
            return chance.randbytes(chance.choice((1, SIZE - 1, SIZE + 1, 4096, 65536)))
        case 2:
            return mutated(packet, chance, SIZE)
        case _:
            at = chance.randrange(SIZE)
            return packet[:at] + bytes([packet[at] ^ 1 << chance.randrange(8)]) + packet[at + 1 :]


def descriptors(chance: Random, size: int, folder: Path) -> list[int]:
    """One of everything that can be sent instead of a sealed memfd of `size` bytes."""
    reading, writing = os.pipe()
    one, two = socket.socketpair()
    file = folder / "bystander"
    file.write_bytes(b"nobody writes here")
    made = [reading, writing, one.detach(), two.detach(), os.open(file, os.O_RDWR), os.open(folder, os.O_RDONLY)]
    made += [os.open(name, os.O_RDWR) for name in ("/dev/null", "/dev/zero")] + [os.open(file, os.O_PATH)]
    for seals, length in ((0, size), (SEALS, size + 4), (SEALS, 0), (FINAL, size), (FINAL, 1 << 40), (fcntl.F_SEAL_SEAL, size)):
        made.append(memory(length, seals))
    chance.shuffle(made)
    return made


def memory(content: int | bytes, seals: int) -> int:
    """A memfd of so many zeros, or of these bytes."""
    made = os.memfd_create("x", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    if isinstance(content, int):
        os.ftruncate(made, content)
    else:
        os.write(made, content)
    if seals:
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    return made


class Impostor:
    """The data side's end of one channel after another. `broken`: what it could do with what it was given, and must not be able to."""

    def __init__(self, chance: Random) -> None:
        self.broken: set[str] = set()
        self.channels = self.sent = 0
        self._chance = chance

    def serve(self, channel: socket.socket, flood_s: float) -> None:
        """Until the daemon closes it, or it has had enough. `flood_s`: what is well-formed for that long, as fast as it goes."""
        self.channels += 1
        channel.settimeout(5)
        with channel, suppress(OSError):
            packet, given, _, _ = socket.recv_fds(channel, SIZE + 1, 8)
            try:
                self._try(given)
                hello = unpack(packet)
                if isinstance(hello, Hello) and self._chance.random() < 0.8:
                    self._say(channel, pack(Ready(ABI, hello.elements, 0, 0, 0)))
                kinds = self._chance.choice((Report, Beat | Evaluated | Checks | Fault)) if isinstance(hello, Hello) else Sight
                made = [well_formed(self._chance, kinds) for _ in range(200 if flood_s else 20)]
                made = [packet for packet in made if not isinstance(unpack(packet), Ready)]  # of another vector it would be the end
                until = time.monotonic() + flood_s
                while time.monotonic() < until or self._chance.random() < 0.9:
                    self._say(channel, self._chance.choice(made))
                if self._chance.random() < 0.8:
                    socket.send_fds(channel, [malformed(self._chance)], given[: self._chance.randrange(len(given) + 1)])
                    channel.settimeout(0.5)  # that it may be well-formed after all is not worth more
                    while channel.recv(SIZE):
                        pass
            finally:
                for descriptor in given:
                    os.close(descriptor)

    def _say(self, channel: socket.socket, packet: bytes) -> None:
        channel.send(packet)
        self.sent += 1

    def _try(self, given: list[int]) -> None:
        """What was given is params, delta, rules, tokenizer: only delta is ours to write, and none may change its size."""
        for name, descriptor in zip(("params", "delta", "rules", "tokenizer"), given, strict=False):
            size = os.fstat(descriptor).st_size
            for length in (0, size + 4096):
                with suppress(OSError):
                    os.ftruncate(descriptor, length)
                if os.fstat(descriptor).st_size != size:
                    self.broken.add(f"{name}: resized")
            with suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
                self.broken.add(f"{name}: sealed")
            if name == "delta":
                os.pwrite(descriptor, struct.pack("<f", float("nan")) + self._chance.randbytes(min(size, 4096) - 4), 0)
                continue
            for opened in (descriptor, *again(descriptor)):
                with suppress(OSError):
                    os.pwrite(opened, b"\0", 0)
                    self.broken.add(f"{name}: written")
                if size:
                    with suppress(OSError):
                        mmap.mmap(opened, size, prot=mmap.PROT_WRITE).close()
                        self.broken.add(f"{name}: mapped for writing")
                if opened != descriptor:
                    os.close(opened)


def again(descriptor: int) -> Iterator[int]:
    """The same file, opened anew for writing: seals hold for it, too; modes do not."""
    with suppress(OSError):
        yield os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)


def main() -> None:
    from tapestryd.host.inherited import inherited

    listening = inherited(os.environ, os.getpid())["trainer"]
    listening.setblocking(True)
    impostor = Impostor(Random(os.environ["TAPESTRY_TRAINER_SEED"]))

    def serve(channel: socket.socket) -> None:
        impostor.serve(channel, flood_s=4)
        print(f"impostor: channels={impostor.channels} sent={impostor.sent} broken={sorted(impostor.broken)}", file=sys.stderr, flush=True)

    while True:
        Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
