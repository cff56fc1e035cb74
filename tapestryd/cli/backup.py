"""`tapestry backup`: what cannot be fetched again, in one file: identity, settings, what was agreed and asked for, and the ledger.

    config/tapestryd.toml, trainer/trainer.toml     settings of both sides, and their drop-ins
    state/…                                         of node.state_dir: keys, bans, the run that was joined; no base, no log
    checkpoint/…                                    of checkpoint.dir: what left this machine, with the key that signed it; what of the
                                                    privacy budget is spent; no local progress

It may be made while the node runs: every file is whole or only grows. Whoever has it can be this peer.
"""

import argparse
import grp
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocols.control import SCHEMA
from tapestryd.cli.identity import peer_of, stopped
from tapestryd.cli.packing import FILE_BYTES, Kept, pack, unpack
from tapestryd.cli.sides import Side, network_side, sides, takes_config
from tapestryd.cli.verbs import Verbs, said, show
from tapestryd.client import Client
from tapestryd.config import DaemonConfig, TrainerConfig
from tapestryd.errors import LocalFault, NotAllowed
from tapestryd.host.clock import now_ms
from tapestryd.host.files import write
from tapestryd.layers import Source, load_daemon, load_trainer

_STATE = (
    "identity.key", "schema", "current", "bootstrap", "bans.json", "will.json", "witness.json", "egress/*", "runs/*/rules.json",
    "runs/*/tokenizer.json", "runs/*/epochs.json", "runs/*/rounds.jsonl", "runs/*/proofs/*",
)  # fmt: skip
_CHECKPOINT = ("ledger/key", "ledger/*.ledger", "privacy.json")
_SETTINGS, _DATA_SETTINGS = "config/tapestryd.toml", "trainer/trainer.toml"
_NOBODY = "a node without a key"


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of a backup belong on this machine. `trainer`, `checkpoint` None: nothing is trained there."""

    config: Path
    state: Path
    trainer: Path | None
    checkpoint: Path | None

    def of(self, name: str) -> Path | None:
        top, _, rest = name.partition("/")
        for folder, file, usual in (("config", self.config, "tapestryd.toml"), ("trainer", self.trainer, "trainer.toml")):
            if top == folder and file is not None and rest.startswith(usual):
                return file.parent / (file.name + rest.removeprefix(usual))
        root = {"state": self.state, "checkpoint": self.checkpoint}.get(top)
        return root / rest if root is not None and rest else None


def add(verbs: Verbs) -> None:
    some = verbs.noun(
        "backup", "what cannot be fetched again, in one file", "Identity, settings, and the ledger of what left this machine."
    )
    one = some.add("create", create, "write it; also while the node runs")
    one.add_argument("file", type=Path, metavar="FILE", help="a file that is not there yet, such as tapestry.tar.gz; only you may read it")
    two = some.add("verify", verify, "whether a backup is whole, and whose it is")
    two.add_argument("file", type=Path, metavar="FILE")
    three = some.add("restore", restore, "put it back, where no other node's is; the daemon must be stopped")
    three.add_argument("file", type=Path, metavar="FILE")
    for verb in (one, three):
        takes_config(verb)


def create(options: argparse.Namespace, client: Client) -> int:
    if options.file.exists():
        raise LocalFault(f"{options.file} is there already; name another file.")
    daemon, trainer = sides(options, client)
    kept = dict(_there(daemon, trainer))
    whose = peer_of(kept["state/identity.key"].data) if "state/identity.key" in kept else ""
    write(options.file, pack(whose, now_ms(), kept), mode=0o600)
    text = f"{len(kept)} files of {whose or _NOBODY} are in {options.file}. Whoever has it can be this peer."
    return said(options, {"schema": SCHEMA, "said": text})


def _there(daemon: Side, trainer: Side) -> Iterator[tuple[str, Kept]]:
    """Name in the backup → the file. Raises NotAllowed."""
    config: DaemonConfig = daemon.loaded().config
    found = _settings(_SETTINGS, daemon) + _below("state", config.node.state_dir, _STATE)
    if config.trainer.enabled:
        choices: TrainerConfig = trainer.loaded().config
        # behind the state: its witness must not know of entries that are not in the ledger here
        found += _settings(_DATA_SETTINGS, trainer) + _below("checkpoint", choices.checkpoint.dir, _CHECKPOINT)
    for name, path in found:
        try:
            about = path.stat()
            with path.open("rb") as file:
                data = file.read(FILE_BYTES + 1)
        except PermissionError:
            raise NotAllowed(f"{path}: only root may read both sides' files; use sudo.") from None
        if len(data) > FILE_BYTES:
            raise LocalFault(f"{path}: larger than any file that belongs into a backup.")
        yield name, Kept(data, about.st_mode & 0o777, *_names(about))


def _settings(name: str, side: Side) -> list[tuple[str, Path]]:
    file, *drop_ins = side.loaded().files
    return [(name, file), *((f"{name}.d/{path.name}", path) for path in drop_ins)]


def _below(top: str, folder: Path, patterns: Sequence[str]) -> list[tuple[str, Path]]:
    return [(f"{top}/{path.relative_to(folder)}", path) for pattern in patterns for path in sorted(folder.glob(pattern))]


def _names(about: os.stat_result) -> tuple[str, str]:
    user = group = ""
    with suppress(KeyError):
        user = pwd.getpwuid(about.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(about.st_gid).gr_name
    return user, group


def verify(options: argparse.Namespace, client: Client) -> int:
    found = unpack(options.file)
    document = {"schema": SCHEMA, "peer_id": found.peer_id, "made_ms": found.made_ms, "files": sorted(found.files)}
    return show(options, document, lambda _: f"{options.file} is whole: {len(found.files)} files of {found.peer_id or _NOBODY}.\n")


def restore(options: argparse.Namespace, client: Client) -> int:
    found = unpack(options.file)
    places = _places(options, client, found.files)
    with stopped(places.state):
        key, kept = places.state / "identity.key", found.files.get("state/identity.key")
        if kept is not None and key.exists() and key.read_bytes() != kept.data:
            raise LocalFault(f"{key} is another node's; move it away first, and keep it: it cannot be fetched again.")
        for name in ("ledger/key", "privacy.json"):
            if places.checkpoint is not None and (there := places.checkpoint / name).exists():
                raise LocalFault(f"{there} is there already, and nothing is written over what left; move it away first, and keep it.")
        written = 0
        for name, kept in found.files.items():
            if (path := places.of(name)) is not None:
                _put(path, kept)
                written += 1
    text = f"{written} files of {found.peer_id or _NOBODY} are back. See to it that it runs nowhere else, then start tapestryd."
    return said(options, {"schema": SCHEMA, "said": text})


def _places(options: argparse.Namespace, client: Client, files: Mapping[str, Kept]) -> Places:
    """By the settings that are in the backup, which come first."""
    path = network_side(options, client).path
    if _SETTINGS not in files:
        raise LocalFault("There are no settings in it that say where its files belong.")
    config = load_daemon(_sources(_SETTINGS, path, files), os.environ, {}).config
    trainer = config.trainer.config
    if _DATA_SETTINGS not in files:
        return Places(path, config.node.state_dir, None, None)
    choices = load_trainer(_sources(_DATA_SETTINGS, trainer, files), os.environ, {}).config
    return Places(path, config.node.state_dir, trainer, choices.checkpoint.dir)


def _sources(name: str, path: Path, files: Mapping[str, Kept]) -> list[Source]:
    """A file of settings and its drop-ins, in the order in which they count, as they will be found at `path`."""
    named = sorted(one for one in files if one == name or one.startswith(f"{name}.d/"))
    return [Source(path.parent / (path.name + one.removeprefix(name)), files[one].data) for one in named]


def _put(path: Path, kept: Kept) -> None:
    """Whole, and as it was. It gets the owner that it had; where that is nobody here, its folder's. New folders get the same."""
    made = [folder for folder in (*reversed(path.parents),) if not folder.exists()]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(path, kept.data, mode=kept.mode)
        path.chmod(kept.mode)
        owner = path.parent.stat()
        uid, gid = owner.st_uid, owner.st_gid
        with suppress(KeyError):
            uid = pwd.getpwnam(kept.user).pw_uid
        with suppress(KeyError):
            gid = grp.getgrnam(kept.group).gr_gid
        for one in (path, *made):
            with suppress(PermissionError):
                os.chown(one, uid, gid)
    except PermissionError:
        raise NotAllowed(f"{path}: only root may put both sides' files back; use sudo.") from None
