"""A program in the place of one of the two sides: it can be looked into, and attacks when it is told to.

Listens, as the sides do, at the socket that it was handed, which talks JSON here: {"do": "tell"} is answered with where its secret lies,
{"do": "attack", …} with what came of every attack.
"""

import ctypes
import errno
import json
import os
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import attacks

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


def main() -> None:
    side = sys.argv[1]
    secret = ctypes.create_string_buffer(SECRET)
    listening = socket.socket(fileno=3)
    print(f"printed by the {side} side", flush=True)
    while True:
        channel, _ = listening.accept()
        with channel:
            while asked := channel.recv(1 << 20):
                brief = json.loads(asked)
                if brief["do"] == "tell":
                    answer: object = {"pid": os.getpid(), "address": ctypes.addressof(secret), "secret": SECRET.decode()}
                else:
                    brief["channel"] = [3, channel.fileno()]
                    known = attacks.DATA if side == "data" else attacks.NETWORK
                    answer = {
                        name: outcome(attack, brief) for name, attack in known.items() if name in brief["attacks"] or not brief["attacks"]
                    }
                channel.send(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
