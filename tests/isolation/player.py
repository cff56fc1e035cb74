"""A program in the place of one of the two sides: it can be looked into, and attacks when it is told to.

    python -P -m tests.isolation.player data|network [shut]

Listens, as the sides do, at the socket that it was handed, for lines of JSON: {"do": "tell"} is answered with where its secret lies,
{"do": "attack", …} with what came of every attack. With "shut" it first does to itself what both sides do before anything else.
"""

import ctypes
import errno
import json
import os
import socket
import sys
from typing import Any

from tests.isolation import attacks

SECRET = b"a private row of the data"


def outcome(attack: attacks.Attack, brief: attacks.Brief) -> tuple[bool, str]:
    """Whether it came through, and how far."""
    try:
        got = attack(brief)
    except OSError as error:
        return False, errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    return bool(got), got or "nothing there"


def asked(channel: socket.socket, question: Any) -> Any:
    """A question, and the answer to it: a line each."""
    channel.sendall(json.dumps(question).encode() + b"\n")
    return heard(channel)


def heard(channel: socket.socket) -> Any:
    """The next line; None when there is none."""
    line = b""
    while not line.endswith(b"\n"):
        if not (more := channel.recv(1 << 20)):
            return None
        line += more
    return json.loads(line)


def main() -> None:
    side = sys.argv[1]
    if sys.argv[2:]:
        from tapestryd.host import box, seccomp

        box.shut(seccomp.NETWORK if side == "network" else ())
    secret = ctypes.create_string_buffer(SECRET)
    listening = socket.socket(fileno=3)
    if where := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"READY=1", where)
    print(f"printed by the {side} side", flush=True)
    known = attacks.DATA if side == "data" else attacks.NETWORK
    while True:
        channel, _ = listening.accept()
        with channel:
            while brief := heard(channel):
                if brief["do"] == "tell":
                    answer: object = {"pid": os.getpid(), "address": ctypes.addressof(secret), "secret": SECRET.decode()}
                else:
                    brief["channel"] = [3, channel.fileno()]
                    wanted = brief["attacks"] or known
                    answer = {name: outcome(attack, brief) for name, attack in known.items() if name in wanted}
                channel.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
