"""`tapestry identity`: who this node is, its key in a file of your own, and another key in its place. Works on files.

Whoever has the key is this peer. Two nodes with one key vote twice in one round, which is proof against both.
"""

import argparse
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocols.control import SCHEMA
from protocols.identity import peer_id, seed_of
from protocols.refusal import Refused
from tapestryd.cli.sides import network_side, takes_config
from tapestryd.cli.verbs import Verbs, said, show
from tapestryd.client import Client
from tapestryd.config import DaemonConfig
from tapestryd.errors import LocalFault, NotAllowed, NotRunning
from tapestryd.host.files import write

_KEY_BYTES = 68


def add(verbs: Verbs) -> None:
    some = verbs.noun("identity", "who this node is", "The key by which others know this node.")
    one = some.add("show", shown, "its peer id")
    two = some.add("export", export, "copy its key, which is all that is needed to be this peer, to a file of yours")
    two.add_argument("file", type=Path, metavar="FILE", help="a file that is not there yet; it will be readable by you alone")
    three = some.add("import", take, "be the peer of this key from the next start on; the old key is put aside")
    three.add_argument("file", type=Path, metavar="FILE", help="as export wrote it, or identity.key of a backup")
    four = some.add("rotate", rotate, "be a new peer from the next start on; the old key is put aside")
    for verb in (one, two, three, four):
        takes_config(verb)


def shown(options: argparse.Namespace, client: Client) -> int:
    """Of the daemon that answers, if no other's settings are named: whoever may ask it need not be able to read its key."""
    who = ""
    if options.config is None:
        with suppress(NotRunning):
            who = client.ask("GET", "/v1/status")["self"]["peer_id"]
    if not who:
        path = _key(options, client)
        who = _peer(_read(path), path)
    return show(options, {"schema": SCHEMA, "peer_id": who}, lambda _: f"{who}\n")


def export(options: argparse.Namespace, client: Client) -> int:
    path = _key(options, client)
    data = _read(path)
    who = _peer(data, path)
    if options.file.exists():
        raise LocalFault(f"{options.file} is there already, and nothing is written over a key; name another file.")
    write(options.file, data, mode=0o400)
    text = f"The key of {who} is in {options.file}. Keep it as you keep a password, and never run two nodes with it."
    return said(options, {"schema": SCHEMA, "said": text})


def take(options: argparse.Namespace, client: Client) -> int:
    data = _read(options.file)
    who = _peer(data, options.file)
    path = _key(options, client)
    with stopped(path.parent):
        aside = _put_aside(path)
        _write(path, data)
    text = f"This node is {who} from its next start on{aside}. See to it that no other node runs with this key."
    return said(options, {"schema": SCHEMA, "said": text})


def rotate(options: argparse.Namespace, client: Client) -> int:
    path = _key(options, client)
    with stopped(path.parent):
        if not path.exists():
            raise LocalFault(f"{path} is not there: this node gets its first key at its next start.")
        aside = _put_aside(path)
    text = f"This node gets a new key at its next start{aside}. In a run of named Members it has to be delegated anew."
    return said(options, {"schema": SCHEMA, "said": text})


def _key(options: argparse.Namespace, client: Client) -> Path:
    config: DaemonConfig = network_side(options, client).loaded().config
    return config.node.state_dir / "identity.key"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_BYTES + 1)
    except PermissionError:
        raise NotAllowed(f"{path}: only root and the service's own user may read it; use sudo.") from None
    except OSError as error:
        raise LocalFault(f"{path}: {error.strerror}.") from None


def _peer(data: bytes, path: Path) -> str:
    try:
        return peer_of(data)
    except Refused as refused:
        raise LocalFault(f"{path}: {refused.detail}; it is no key of a node.") from None


def peer_of(key: bytes) -> str:
    """The peer id of an identity file. Raises Refused if it is none."""
    seed_of(key)
    return peer_id(key[36:])


@contextmanager
def stopped(state: Path) -> Iterator[None]:
    """Its daemon cannot start meanwhile. Raises LocalFault if it runs."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (state / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _belongs_there(state / "lock")
            yield
    except BlockingIOError:
        raise LocalFault(f"A daemon runs on {state}; stop it first: systemctl stop tapestryd, or tapestry shutdown.") from None
    except PermissionError as error:
        raise NotAllowed(f"{error.filename}: only root and the service's own user may change it; use sudo.") from None


def _put_aside(path: Path) -> str:
    """The sentence's part about it; "" if there was none."""
    if not path.exists():
        return ""
    aside = path.with_name(f"{path.name}.{_peer(_read(path), path)[-8:]}")
    path.rename(aside)
    return f"; the old key is kept as {aside}"


def _write(path: Path, data: bytes) -> None:
    write(path, data, mode=0o400)
    _belongs_there(path)


def _belongs_there(path: Path) -> None:
    """To whoever its folder belongs: root writes for the service's user."""
    owner = path.parent.stat()
    with suppress(PermissionError):
        os.chown(path, owner.st_uid, owner.st_gid)
