"""Names of the programs that run, from /proc/*/comm (proc(5)): the first 15 bytes of each."""

from pathlib import Path

from tapestryd.host.sensors.reading import children, text

NAME_BYTES = 15


def known_as(name: str) -> str:
    """As /proc has it."""
    return name.encode()[:NAME_BYTES].decode(errors="replace")


def running(root: Path) -> frozenset[str] | None:
    """None where the processes of others are hidden (hidepid, ProtectProc=): whoever runs could not be seen then."""
    if text(root / "proc/1/comm") is None:
        return None
    found = (text(entry / "comm") for entry in children(root / "proc") or () if entry.name.isdigit())
    return frozenset(name for name in found if name)
