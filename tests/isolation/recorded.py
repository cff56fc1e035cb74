"""tapestryd, with all that its network side sends written down before it is encrypted: `python -m tests.isolation.recorded …`.

Written down, to the file that TAPESTRY_RECORD names: what is handed to libp2p (our streams and hivemind's calls, DHT values among them),
what the control API answers, and what crosses the trainer channel, vectors included. The product knows nothing of this.
"""

import asyncio
import os
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary

_HEAD = struct.Struct("<8sII")

LIBP2P, API, ORDERS, REPORTS, DELTAS = "libp2p", "api", "orders", "reports", "deltas"


class Recorder:
    """Each piece with its kind and the number of the stream that it went to, so that what was written in pieces can be put together."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def note(self, kind: str, stream: Any, data: Any) -> None:
        view = bytes(data)
        number = self._numbers.setdefault(stream, len(self._numbers) + 1) if stream is not None else 0
        self._file.write(_HEAD.pack(kind.encode(), number, len(view)) + view)


def recorded(path: Path) -> Iterator[tuple[str, bytes]]:
    """(kind, all bytes of one stream), of a record."""
    streams: dict[tuple[str, int], bytearray] = defaultdict(bytearray)
    data, at = path.read_bytes(), 0
    while at + _HEAD.size <= len(data):
        kind, number, size = _HEAD.unpack_from(data, at)
        streams[kind.rstrip(b"\0").decode(), number] += data[at + _HEAD.size : at + _HEAD.size + size]
        at += _HEAD.size + size
    for (kind, _), stream in streams.items():
        yield kind, bytes(stream)


def record(path: Path) -> None:
    from aiohttp import http_writer

    from protocols.trainer import pack
    from tapestryd.host.trainer import Trainer
    from tapestryd.supervisor import Supervisor

    recorder = Recorder(path.open("ab", buffering=0))

    def before(owner: type, name: str, kind: str) -> None:
        """Each call of a method that is handed bytes, or a list of them."""
        original = getattr(owner, name)

        def noted(self: Any, data: Any, *rest: Any, **options: Any) -> Any:
            recorder.note(kind, self, data if isinstance(data, bytes | bytearray | memoryview) else b"".join(data))
            return original(self, data, *rest, **options)

        setattr(owner, name, noted)

    for name in ("write", "writelines"):
        before(asyncio.StreamWriter, name, LIBP2P)
    for name in ("_write", "_writelines"):
        before(http_writer.StreamWriter, name, API)
    send, checked, take = Trainer.send, Trainer._checked, Supervisor.take

    def sent(self: Trainer, order: Any) -> None:
        recorder.note(ORDERS, None, pack(order))
        send(self, order)

    def reported(self: Trainer, packet: bytes) -> Any:
        recorder.note(REPORTS, None, packet)
        return checked(self, packet)

    async def taken(self: Supervisor, here: slice) -> Any:
        found = await take(self, here)
        recorder.note(DELTAS, None, b"" if found is None else found.numpy().tobytes())
        return found

    Trainer.send, Trainer._checked, Supervisor.take = sent, reported, taken  # type: ignore[method-assign]


def main() -> int:
    from tapestryd import __main__, warden

    if "--inside" in sys.argv:
        record(Path(os.environ["TAPESTRY_RECORD"]))
    started = warden.main

    def replaced(config: Any, command: Any, file: Any) -> int:
        """The network side is to be this program, too."""
        return started(config, [__spec__.name if word == "tapestryd" else word for word in command], file)

    warden.main = replaced
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main())
