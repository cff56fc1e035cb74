"""What goes by an interface, as tcpdump would see it: raw frames of a packet socket. Needs root."""

import socket
import struct
from collections import defaultdict
from threading import Thread
from types import TracebackType

_EVERYTHING = 3  # ETH_P_ALL
_SOL_PACKET, _STATISTICS = 263, 6
_BUFFER_FORCED, _BUFFER = 33, 256 << 20
_FRAME = 1 << 17
"""More than a frame can have: the kernel hands several segments over as one."""
_TCP, _UDP = 6, 17


class Wire:
    """All frames on `interface`, both ways, while it is open."""

    def __init__(self, interface: str) -> None:
        self.frames: list[bytes] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _BUFFER_FORCED, _BUFFER)
        self._socket.bind((interface, _EVERYTHING))
        self._socket.settimeout(0.5)
        self._open = True
        self._reader = Thread(target=self._read)

    def __enter__(self) -> "Wire":
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Fails if the kernel could not hand everything over."""
        self._open = False
        self._reader.join()
        _, dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        self._socket.close()
        assert dropped == 0, f"{dropped} frames went by unseen"

    def _read(self) -> None:
        while True:
            try:
                self.frames.append(self._socket.recv(_FRAME))
            except TimeoutError:
                if not self._open:
                    return

    def streams(self) -> list[bytes]:
        """What was carried from one port to another, without headers: each pair's, joined. IPv4; what is sent twice is there twice."""
        found: defaultdict[bytes, bytearray] = defaultdict(bytearray)
        for frame in self.frames:
            if frame[12:14] != b"\x08\x00":
                continue
            packet = frame[14:]
            inner = packet[(packet[0] & 15) * 4 :]
            if packet[9] == _TCP:
                found[packet[12:20] + inner[:4]] += inner[(inner[12] >> 4) * 4 :]
            elif packet[9] == _UDP:
                found[packet[12:20] + inner[:4]] += inner[8:]
        return [bytes(stream) for stream in found.values()]
