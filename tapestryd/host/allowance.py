"""Which folders the trainer may read and the daemon may not: drop-ins of their systemd units.

A folder is bound into the trainer's unit (BindReadOnlyPaths) and made inaccessible to the daemon's (InaccessiblePaths) by one drop-in
each, which this keeps alike; one that is not there stops neither, and the trainer then says so. The files are ours: what they list is
the list. Standard library only; changes take effect when the units are restarted, which is not done here.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tapestryd.errors import ConfigFault
from tapestryd.host.files import write

UNITS = Path("/etc/systemd/system")
_SHIPPED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))

_TRAINER = ("tapestry-trainer.service.d/10-data.conf", "BindReadOnlyPaths")
_DAEMON = ("tapestryd.service.d/10-data.conf", "InaccessiblePaths")
_HEAD = "# Written by `tapestry data allow` and `tapestry data forbid`; other settings go to another file in this folder.\n[Service]\n"

_HIDDEN = ("/home", "/root", "/tmp", "/var/tmp")
"""The units hide these and what is below them, whatever a drop-in says."""
_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/cache", "/var/log")


def fault(folder: Path, own: Iterable[Path]) -> str:
    """Why `folder`, absolute and resolved, cannot be a folder of data; "" if it can. `own`: our own state and settings."""
    if not folder.is_dir():
        return f"{folder}: no such folder; name one that holds data"
    if not re.fullmatch(r"[^\s\"'\\:%;]+", str(folder)) or not str(folder).isprintable():
        return f"{str(folder)!r}: spaces, quotes, \\, :, ; and % in its name would mean something else to systemd; rename it"
    for place in own:
        if folder.is_relative_to(place) or place.is_relative_to(folder):
            return f"{folder}: {place} is tapestryd's own; data lies in a folder of its own, such as /srv/tapestry/data"
    for place in map(Path, _HIDDEN):
        if folder.is_relative_to(place) or place.is_relative_to(folder):
            return f"{folder}: the units hide {place} from both sides; move the data, for instance below /srv/tapestry"
    for place in map(Path, _SYSTEM):
        if folder.is_relative_to(place) or place.is_relative_to(folder):
            return f"{folder}: {place} is the system's; data lies in a folder of its own, such as /srv/tapestry/data"
    return ""


def separate(units: Path) -> bool:
    """Whether the trainer is a unit of its own here. If not, data.paths alone says what it reads."""
    return any((folder / "tapestry-trainer.service").exists() for folder in (units, *_SHIPPED))


def allowed(units: Path) -> list[Path]:
    """What the trainer's drop-in lists. Raises ConfigFault if it is not as we write it, OSError."""
    name, setting = _TRAINER
    try:
        lines = (units / name).read_text().removeprefix(_HEAD).splitlines()
    except FileNotFoundError:
        return []
    if wrong := [line for line in lines if not line.startswith(f"{setting}=-/")]:
        raise ConfigFault(f"{units / name}: {wrong[0]!r:.100} is not of `tapestry data`; move it to another file in that folder")
    return [Path(line.partition("=-")[2]) for line in lines]


def allow(units: Path, folder: Path) -> bool:
    """Hide `folder` from the daemon, then show it to the trainer. False: it was so before. Raises ConfigFault, OSError."""
    before = allowed(units)
    after = sorted({*before, folder})
    for drop_in in (_DAEMON, _TRAINER):
        _write(units, drop_in, after)
    return before != after


def forbid(units: Path, folder: Path) -> bool:
    """`allow` reversed, also for a folder that is not there any more: the trainer's sight ends first."""
    before = allowed(units)
    after = [path for path in before if path != folder]
    for drop_in in (_TRAINER, _DAEMON):
        _write(units, drop_in, after)
    return before != after


def _write(units: Path, drop_in: tuple[str, str], folders: Sequence[Path]) -> None:
    name, setting = drop_in
    text = _HEAD + "".join(f"{setting}=-{folder}\n" for folder in folders)
    path = units / name
    if folders:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        write(path, text.encode(), mode=0o644)
    else:
        path.unlink(missing_ok=True)
