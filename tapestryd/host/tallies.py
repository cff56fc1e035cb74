"""What was sent and received, by kind and peer, kept by the hour and then by the day, over restarts.

    state_dir/egress/
    ├── 2026-07-01T18.json      an hour (UTC), as it was last written
    └── 2026-06-28.json         a day, once all of its hours are older than HOURS

Each is written whole (temp, fsync, rename). A daemon that is killed loses what it counted since it last wrote: the next one
finds an hour that nobody closed, and keeps from when until when the counts are gone. Knows nothing of what moves.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from protocols.control import stored
from protocols.egress import Gap, Moved
from tapestryd.host.files import set_aside, write

HOURS = 48
DAYS = 400
PEERS = 64
"""Of one kind in one file, those that moved most; the others are one. So a file takes at most some 60 KB, and all of them 30 MB."""
GAPS = 64
"""In one file; of more, the oldest become one, and what lay between them with them."""

OTHERS = "others"

_HOUR = "%Y-%m-%dT%H.json"
_DAY = "%Y-%m-%d.json"


class Tally:
    """`moved`: kind → peer → bytes."""

    def __init__(self) -> None:
        self.moved: dict[str, dict[str, Moved]] = {}

    def add(self, kind: str, peer: str, moved: Moved) -> None:
        peers = self.moved.setdefault(kind, {})
        peers[peer] = peers.get(peer, Moved()) + moved
        if len(peers) > PEERS + (OTHERS in peers):
            least = min(peers.keys() - {OTHERS, peer}, key=lambda one: peers[one].sent + peers[one].received)
            peers[OTHERS] = peers.get(OTHERS, Moved()) + peers.pop(least)

    def merge(self, other: dict[str, dict[str, Moved]]) -> None:
        for kind, peers in other.items():
            for peer, moved in peers.items():
                self.add(kind, peer, moved)

    def by_kind(self) -> dict[str, Moved]:
        return {kind: sum(peers.values(), Moved()) for kind, peers in self.moved.items()}

    def by_peer(self) -> dict[str, dict[str, Moved]]:
        found: dict[str, dict[str, Moved]] = {}
        for kind, peers in self.moved.items():
            for peer, moved in peers.items():
                found.setdefault(peer, {})[kind] = moved
        return found


@dataclass(frozen=True, slots=True)
class Page:
    """One file: what moved from when until when. `closed_ms`: when the daemon ended, and had counted everything; None while it
    runs, and if it was killed."""

    from_ms: int
    until_ms: int
    closed_ms: int | None
    gaps: tuple[Gap, ...]
    moved: dict[str, dict[str, Moved]]

    @classmethod
    def of(cls, pages: "Iterable[Page]", now_ms: int) -> "Page":
        """All of them as one, oldest first."""
        pages = list(pages)
        tally = Tally()
        for page in pages:
            tally.merge(page.moved)
        gaps = tuple(gap for page in pages for gap in page.gaps)
        first, last = (pages[0].from_ms, pages[-1]) if pages else (now_ms, None)
        return cls(first, last.until_ms if last else now_ms, last.closed_ms if last else None, _few(gaps), tally.moved)

    def to_bytes(self) -> bytes:
        return json.dumps({"schema": 1} | asdict(self)).encode()


class Tallies:
    """`since`, `month` and `fold`, which take their time with the disk, may be called from another thread than the rest, one at a time."""

    def __init__(self, folder: Path, now_ms: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        for leftover in folder.glob("*.new"):
            leftover.unlink()
        self._folder = folder
        self._unwritten: dict[Path, Page] = {}
        last = next(filter(None, map(self._read, reversed(self._files()))), None)
        self._gaps: tuple[Gap, ...] = ()
        self._begin(now_ms)
        if last and last.closed_ms is None:
            self._gaps = (*self._gaps, Gap(last.until_ms, max(now_ms, last.until_ms)))

    def _begin(self, now_ms: int) -> None:
        """The file of this hour, gone on with if it is there; of the day, if a clock was set back that far."""
        self._path = self._folder / _name(now_ms, _DAY)
        if not self._path.exists():
            self._path = self._folder / _name(now_ms, _HOUR)
        before = self._unwritten.pop(self._path, None) or (self._read(self._path) if self._path.exists() else None)
        self._from_ms = before.from_ms if before else now_ms
        self._gaps = before.gaps if before else ()
        self._tally = Tally()
        self._tally.merge(before.moved if before else {})

    def add(self, kind: str, peer: str, sent: int, received: int) -> None:
        self._tally.add(kind, peer, Moved(sent, received))

    def pages(self, now_ms: int, *, closing: bool = False) -> dict[Path, Page]:
        """What is to be written, by file. When the hour is over, the next one begins."""
        self._unwritten[self._path] = self._page(now_ms, closing)
        pages = dict(self._unwritten)
        if self._path.name not in (_name(now_ms, _HOUR), _name(now_ms, _DAY)):
            self._begin(now_ms)
        return pages

    def written(self, pages: dict[Path, Page]) -> None:
        for path in pages:
            self._unwritten.pop(path, None)

    def _page(self, now_ms: int, closing: bool) -> Page:
        moved = {kind: dict(peers) for kind, peers in self._tally.moved.items()}
        return Page(self._from_ms, max(now_ms, self._from_ms), now_ms if closing else None, _few(self._gaps), moved)

    def _files(self) -> list[Path]:
        """Oldest first. An hour whose day is there is in it already: we ended before it was removed."""
        names = sorted(path.name for path in self._folder.glob("????-??-??*.json"))
        return [self._folder / name for name in names if "T" not in name or f"{name[:10]}.json" not in names]

    def _read(self, path: Path) -> Page | None:
        """A damaged one is set aside."""
        try:
            return cast(Page, stored(Page, json.loads(path.read_bytes())))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            set_aside(path, str(error))
            return None

    def since(self, since_ms: int, now_ms: int, pages: dict[Path, Page]) -> Page:
        """What moved since then, or since the beginning of the hour or day that it lies in. `pages`: what is on no disk yet."""
        known = self._known(pages)
        return Page.of((known[path] for path in sorted(known) if known[path].until_ms >= since_ms), now_ms)

    def month(self, month: str, now_ms: int, pages: dict[Path, Page]) -> Page:
        """What moved in "2026-07" (UTC)."""
        known = self._known(pages)
        return Page.of((known[path] for path in sorted(known) if path.name.startswith(month)), now_ms)

    def _known(self, pages: dict[Path, Page]) -> dict[Path, Page]:
        return {path: page for path in self._files() if (page := pages.get(path) or self._read(path))} | pages

    def fold(self, now_ms: int) -> None:
        """Make days of the hours that are older than HOURS, and forget days beyond DAYS. Only when all is written. Raises DiskFull
        with nothing lost."""
        hours = [path for path in self._folder.glob("*T*.json") if path != self._path]
        recent = _name(now_ms - HOURS * 3_600_000, _DAY)
        for day in sorted({f"{path.name[:10]}.json" for path in hours if path.name < recent}):
            old = sorted(path for path in hours if path.name.startswith(day[:10]))
            if not (self._folder / day).exists():
                write(self._folder / day, Page.of(filter(None, map(self._read, old)), now_ms).to_bytes())
            for path in old:
                path.unlink(missing_ok=True)
        for path in sorted(self._folder.glob("????-??-??.json"))[:-DAYS]:
            path.unlink()


def _few(gaps: tuple[Gap, ...]) -> tuple[Gap, ...]:
    return gaps if len(gaps) <= GAPS else (Gap(gaps[0].from_ms, gaps[-GAPS].until_ms), *gaps[1 - GAPS :])


def _name(ms: int, form: str) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime(form)
