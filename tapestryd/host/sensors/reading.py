"""Small files of /proc and /sys, which may be missing, forbidden, or gone between two looks: None, then."""

from pathlib import Path

_BYTES = 1 << 16


def text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_BYTES).decode(errors="replace").strip()
    except OSError:
        return None


def whole(path: Path) -> int | None:
    """A file that holds one whole number."""
    found = text(path)
    try:
        return int(found) if found else None
    except ValueError:
        return None


def children(folder: Path) -> list[Path] | None:
    """What lies in a folder, by name; None: it is not there, or not for us to see."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return None
