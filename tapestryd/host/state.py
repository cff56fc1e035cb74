"""The state directory: one daemon's files. Written temp, fsync, rename; a newer schema is refused, never guessed at.

state_dir/
├── lock                    one daemon at a time
├── schema                  "1"
├── identity.key            0400
├── current                 the joined run, as an invite
├── bootstrap               peers to look for it at, which the operator named
├── witness.json            where the trainer's ledger was, by witness.py
├── bans.json               peers banned for a time, by their faults or by the operator
├── egress/                 what was sent and received (host/tallies.py)
├── will.json               what the operator asked for: a pause, a finish, a mode
├── founded/                a founder's folder on its way in, by inbox.py
└── runs/<run_id>/          what is kept of each run, by store.py
"""

import fcntl
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from protocols import limits
from protocols.canonical import take
from protocols.control import Ban
from protocols.records import is_address
from protocols.refusal import Refused
from tapestryd.errors import StateFault
from tapestryd.host.files import set_aside, write
from tapestryd.host.store import RunStore
from tapestryd.host.will import Will

log = logging.getLogger(__name__)

SCHEMA = "1"


class StateDir:
    """Holds the lock until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock: IO[str] = (path / "lock").open("a+")
        except OSError as error:
            raise StateFault(f"node.state_dir = {path}: {error.strerror}; choose a folder that the daemon's user may write") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StateFault(f"node.state_dir = {path}: another tapestryd runs on it; stop that one or choose another folder") from None
        schema = path / "schema"
        found = schema.read_text(errors="replace").strip() if schema.exists() else SCHEMA
        if found != SCHEMA:
            self._lock.close()
            raise StateFault(
                f"{schema}: schema {found!r}, this version knows {SCHEMA!r}; upgrade tapestryd, or move {path} away to start anew"
            )
        if not schema.exists():
            write(schema, SCHEMA.encode())

    def close(self) -> None:
        self._lock.close()

    @property
    def current(self) -> str:
        """The joined run as an invite, or ""."""
        path = self.path / "current"
        return path.read_text(errors="replace").strip() if path.exists() else ""

    @current.setter
    def current(self, invite: str) -> None:
        if invite == self.current:  # nothing to write: who goes on with its run starts on a full disk, too
            return
        if invite:
            write(self.path / "current", invite.encode())
        else:
            (self.path / "current").unlink(missing_ok=True)

    @property
    def bootstrap(self) -> list[str]:
        """Peers to look for the run at, which the operator named: multiaddrs, one a line."""
        path = self.path / "bootstrap"
        lines = path.read_text(errors="replace").split("\n") if path.exists() else []
        return [line for line in lines if is_address(line.partition("/p2p/")[0])][: limits.ADDRESSES]

    @bootstrap.setter
    def bootstrap(self, addresses: Sequence[str]) -> None:
        if addresses:
            write(self.path / "bootstrap", "\n".join(addresses).encode())
        else:
            (self.path / "bootstrap").unlink(missing_ok=True)

    def bans(self) -> tuple[Ban, ...]:
        """As they were kept; a damaged file is set aside, and nobody is banned."""
        path = self.path / "bans.json"
        if not path.exists():
            return ()
        try:
            listed = json.loads(path.read_bytes())
            for raw in listed:
                take(raw, {"peer_id": str, "by": str, "reason": str, "until_ms": int})
                if not 0 <= raw["until_ms"] <= limits.INTEGER:
                    raise ValueError(f"until_ms = {raw['until_ms']}")
            return tuple(Ban(**raw) for raw in listed)
        except (ValueError, TypeError, RecursionError, Refused) as error:
            set_aside(path, str(error))
            return ()

    def keep_bans(self, bans: Sequence[Ban]) -> None:
        write(self.path / "bans.json", json.dumps([asdict(ban) for ban in bans], indent=1).encode())

    def will(self) -> Will:
        """As it was kept; a damaged file is set aside, and nothing was asked for."""
        path = self.path / "will.json"
        try:
            return Will.from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return Will()
        except (ValueError, RecursionError) as error:
            set_aside(path, str(error))
            return Will()

    def keep_will(self, will: Will) -> None:
        write(self.path / "will.json", json.dumps(will.to_json()).encode())

    def run(self, run_id: str) -> "RunStore":
        return RunStore(self.path / "runs" / run_id, run_id)
