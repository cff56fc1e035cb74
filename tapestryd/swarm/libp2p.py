"""p2pd, the libp2p daemon from hivemind's wheel, as a child of ours.

hivemind can start p2pd itself, but then its control sockets lie in /tmp where any local user may drive them, it
inherits our whole environment, and it outlives a killed parent by half a minute, holding the port. So we start it:
sockets in a private folder, an empty environment, and death with its parent (decisions/0003).
"""

import asyncio
import logging
import shutil
import signal
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.resources import as_file, files
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import DaemonConnector
from hivemind.utils.multiaddr import Multiaddr

from protocols import limits
from tapestryd.child import die_with_parent
from tapestryd.errors import Unavailable
from tapestryd.swarm.line import Line
from tapestryd.swarm.meter import Meter

log = logging.getLogger(__name__)

_START_S = 20.0
_LAST_WORDS_BYTES = 4096

_CALLS_A_PEER = 8
"""Calls of the DHT by one peer that are answered at once; an honest one makes one or two at a time."""

_TOLD_BYTES = 8 * limits.MIB
_TOLD_BYTES_PER_S = 512 * limits.KIB
"""What one peer is told of the DHT in one go, and then a second: twice all that there may be, and all of it every eight seconds. A question
is a few bytes."""


class Libp2p:
    """A running p2pd and a handle on it in our event loop. `p2p.peer_id` is the identity's. `meter` counts hivemind's calls, and
    whatever else is moved by way of it; `line` says how fast."""

    def __init__(
        self, process: asyncio.subprocess.Process, p2p: P2P, meter: Meter, line: Line, folder: Path, reader: "asyncio.Task[None]"
    ) -> None:  # fmt: skip
        self.process = process
        self.p2p = p2p
        self.meter = meter
        self.line = line
        self._folder = folder
        self._reader = reader

    @classmethod
    async def start(
        cls, identity: Path, listen: Sequence[str], announce: Sequence[str], meter: Meter, line: Line, shut: Callable[[str], bool]
    ) -> "Libp2p":  # fmt: skip
        """Knows nobody yet: with bootstrap peers on its command line, p2pd ends if none of them answers. Calls of the DHT by whoever is
        `shut` are not answered. Raises Unavailable with p2pd's own words if it does not come up (a port in use, say)."""
        folder = _folder(identity)

        class Here(_Metered):
            _UNIX_SOCKET_PREFIX = f"/unix{folder}/"
            _meter, _line, _callers = meter, line, Callers(shut)

        control = f"/unix{folder}/control.sock"
        with as_file(files("hivemind.hivemind_cli") / "p2pd") as binary:
            arguments = [
                str(binary), f"-listen={control}", f"-id={identity}", "-dhtServer=1", "-tls=1", "-connManager=1",
                "-autonat=1", "-relay=1", "-natPortMap=0", "-idleTimeout=60s", f"-hostAddrs={','.join(listen)}",
            ]  # fmt: skip
            if announce:
                arguments.append(f"-announceAddrs={','.join(announce)}")
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={"HOME": str(folder), "GOLOG_LOG_LEVEL": "error"},
                preexec_fn=die_with_parent(signal.SIGKILL),
                start_new_session=True,
            )
        assert process.stdout is not None
        said = b""
        try:
            async with asyncio.timeout(_START_S):
                while not said.startswith(b"Peer ID:"):
                    heard = await process.stdout.readline()
                    if not heard:
                        raise Unavailable(_why(said, listen))
                    said = heard
            p2p = await Here.replicate(Multiaddr(control))
            p2p._client.control.daemon_connector = _Connector(Multiaddr(control))
        except BaseException as error:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, TimeoutError):
                raise Unavailable(f"p2pd did not start within {_START_S:.0f} s on {', '.join(listen)}") from None
            raise
        return cls(process, p2p, meter, line, folder, asyncio.create_task(_drain(process.stdout)))

    async def addresses(self) -> list[str]:
        """Where others may dial us, without the peer id, `widest` first; loopback only if there is nothing else."""
        _, found = await self.p2p._client.identify()
        addresses = widest({str(address) for address in found})
        outside = [address for address in addresses if not address.startswith(("/ip4/127.", "/ip6/::1/"))]
        return outside or addresses

    async def connections(self) -> dict[tuple[str, int], str]:
        """IP address and TCP port of the other end → peer, of the connections that p2pd has; those through relays left out."""
        found = {}
        for peer in await self.p2p.list_peers():
            for address in peer.addrs:
                with suppress(ValueError, LookupError):  # of a transport that hivemind's multiaddr has never heard of
                    match str(address).split("/"):
                        case ["", "ip4" | "ip6", host, "tcp", port]:
                            found[host, int(port)] = peer.peer_id.to_base58()
        return found

    async def stop(self) -> None:
        self._reader.cancel()
        await self.p2p.shutdown()
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(3):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Connector(DaemonConnector):  # type: ignore[misc]
    """Whose connections end when nobody has them any more. hivemind leaves open what p2pd refuses, and what is given up while p2pd
    works on it; where Python does not close that either (before 3.11.5), each is a descriptor less for p2pd and for us."""

    async def open_connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await super().open_connection()
        weakref.finalize(writer, writer.transport.close).atexit = False
        return reader, writer


class _Metered(P2P):  # type: ignore[misc]
    """Counts, paces and bounds the messages of hivemind's calls: the DHT's. Our own streams do so themselves."""

    _meter: Meter
    _line: Line
    _callers: "Callers"

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, input: Any, output_protobuf_type: Any) -> Any:
        verb, peer = name.rpartition(".")[2], peer_id.to_base58()
        await self._line.up(input.ByteSize(), peer)
        self._meter.sends(input.ByteSize(), verb, peer, asks=True)
        answer = await super().call_protobuf_handler(peer_id, name, input, output_protobuf_type)
        self._meter.receives(answer.ByteSize(), verb, peer, asks=True)
        await self._line.down(answer.ByteSize(), peer)
        return answer

    async def add_protobuf_handler(self, name: str, handler: Any, input_protobuf_type: Any, **options: Any) -> None:
        verb = name.rpartition(".")[2]

        async def counted(request: Any, context: P2PContext) -> Any:
            peer = context.remote_id.to_base58()
            self._meter.receives(request.ByteSize(), verb, peer, asks=False)
            with self._callers.one(peer):
                await self._line.down(request.ByteSize(), peer)
                answer = await handler(request, context)
                self._callers.told(peer, answer.ByteSize())
                await self._line.up(answer.ByteSize(), peer)
            self._meter.sends(answer.ByteSize(), verb, peer, asks=False)
            return answer

        await super().add_protobuf_handler(name, counted, input_protobuf_type, **options)


class Callers:
    """Who calls our DHT node at once, and what each was told of late: a bucket that leaks. Who is `shut` does not call."""

    def __init__(self, shut: Callable[[str], bool], now: Callable[[], float] = time.monotonic) -> None:
        self._shut = shut
        self._now = now
        self._calls: Counter[str] = Counter()
        self._told: dict[str, tuple[float, float]] = {}

    @contextmanager
    def one(self, peer: str) -> Iterator[None]:
        """For as long as a call is answered. Raises PermissionError if it is not to be."""
        if self._shut(peer) or self._calls[peer] >= _CALLS_A_PEER or self._late(peer) >= _TOLD_BYTES:
            raise PermissionError("not now")
        self._calls[peer] += 1
        try:
            yield
        finally:
            self._calls[peer] -= 1
            self._calls += Counter()  # forgets zeros

    def told(self, peer: str, size: int) -> None:
        self._told[peer] = (self._late(peer) + size, self._now())
        if len(self._told) > 2 * limits.RECORDS:
            self._told = {peer: told for peer, told in self._told.items() if self._late(peer)}

    def _late(self, peer: str) -> float:
        size, since = self._told.get(peer, (0.0, 0.0))
        return max(0.0, size - _TOLD_BYTES_PER_S * (self._now() - since))


def widest(addresses: Iterable[str]) -> list[str]:
    """First those that most others can dial: names and global addresses, then private ones, then those of one link or machine. What is
    cut off at the end is a bridge of this machine's own rather than its place in the world."""

    def reach(address: str) -> tuple[int, str]:
        match address.split("/"):
            case ["", "ip4" | "ip6", host, *_]:
                ip = ip_address(host)
                return 0 if ip.is_global else 2 if ip.is_loopback or ip.is_link_local else 1, address
        return 0 if address.startswith("/dns") else 2, address

    return sorted(addresses, key=reach)


def _folder(identity: Path) -> Path:
    """A new private folder for the control sockets, short because unix socket paths end at 107 bytes. What a killed
    daemon of this identity left behind goes: whoever starts p2pd holds the state directory's lock."""
    prefix = f"tapestry-p2p-{sha256(bytes(identity.resolve())).hexdigest()[:12]}-"
    for leftover in Path(tempfile.gettempdir()).glob(prefix + "*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix))


def _why(said: bytes, listen: Sequence[str]) -> str:
    words = said.decode(errors="replace").strip()[-300:]
    if "address already in use" in words or "failed to listen" in words:
        return f"network.listen = {', '.join(listen)}: the port is in use by another process; stop it or choose another port ({words})"
    return f"p2pd ended at start: {words or 'it said nothing'}"


async def _drain(output: asyncio.StreamReader) -> None:
    """Until it ends by itself: then what it said last, as in a panic, is why."""
    said = b""
    while heard := await output.read(65536):
        said = (said + heard)[-_LAST_WORDS_BYTES:]
    log.error("p2pd ended by itself: %s", said.decode(errors="replace").strip() or "it said nothing")
