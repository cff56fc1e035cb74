"""The ledger's files: what is written comes back, whatever crashes; what was altered is not written behind."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocols.canonical import digest
from protocols.ledger import Chain, Entry, Opened, Recovered, Released, What, Withheld
from protocols.trainer import ALL_FRAGMENTS
from tapestryd.config import Release
from tapestryd.errors import DiskFull
from tapestryd.host import files, ledger
from tapestryd.host.ledger import HOUR_MS, Ledger, LedgerFault, read, segments
from tests.people import RUN, verify

NOW = 1_700_000_000_000
RULES = Release()
RELEASED = Released(RUN, 7, 1, 128, 1 << 17, 900, 128, 4096, digest(b"vector"), 12.5, 1.0, 0.0, 0.0)
WITHHELD = Withheld(RUN, 8, 0, "rate", 128, 900, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., Ledger]]:
    """Open the ledger, as a trainer does after the one before has ended."""
    held: list[Ledger] = []

    def open_(now_ms: Callable[[], int] = lambda: NOW, rules: Release = RULES) -> Ledger:
        while held:
            held.pop().close()
        held.append(Ledger(folder, rules, now_ms=now_ms, waiting=lambda: None))
        return held[-1]

    yield open_
    for one in held:
        one.close()


Opener = Callable[..., Ledger]


def told(folder: Path) -> list[Entry]:
    """Every entry, followed from the first as an auditor does."""
    chain = Chain(verify)
    found = []
    for file in segments(folder):
        whole, rest = read(file)
        assert rest == b""
        found += [chain.follow(data) for data in whole]
    return found


def whats(folder: Path) -> list[What]:
    return [entry.what for entry in told(folder)]


def last(folder: Path) -> Path:
    return segments(folder)[-1]


def test_what_is_written_is_there_and_a_restart_goes_on_behind_it(folder: Path, opened: Opener) -> None:
    first = opened()
    number, chain = first.write(RELEASED)
    assert number == 2
    assert digest(last(folder).read_bytes().splitlines()[1]) == chain.hex()
    again = opened(rules=Release(min_steps=1, delta_clip_norm=0.5, delta_noise_std=0.25))
    assert again.write(WITHHELD)[0] == 4
    kinds = whats(folder)
    assert [type(what).__name__ for what in kinds] == ["Opened", "Released", "Opened", "Withheld"]
    assert kinds[1::2] == [RELEASED, WITHHELD]
    assert isinstance(kinds[0], Opened)
    assert kinds[2] == Opened(kinds[0].key, 1, 256, 0.5, 0.25, 60)
    assert {entry.time_ms for entry in told(folder)} == {NOW}
    assert (folder.stat().st_mode & 0o777, last(folder).stat().st_mode & 0o777, (folder / "key").stat().st_mode & 0o777) == (
        0o700,
        0o600,
        0o400,
    )


def test_files_that_are_full_are_left_alone_and_the_chain_goes_on(folder: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 4000)
    one = opened()
    for round in range(40):
        one.write(replace(RELEASED, round=round))
    found = segments(folder)
    assert len(found) > 5
    assert all(file.stat().st_size <= 4000 for file in found)
    assert [file.stat().st_mode & 0o777 for file in found] == [0o400] * (len(found) - 1) + [0o600]
    assert [int(file.stem) for file in found] == [1 + sum(len(read(file)[0]) for file in found[:i]) for i in range(len(found))]
    before = [file.read_bytes() for file in found[:-1]]
    assert opened().write(WITHHELD)[0] == 43
    assert [file.read_bytes() for file in found[:-1]] == before
    assert [what.round for what in whats(folder) if isinstance(what, Released)] == list(range(40))


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_an_unfinished_line_is_dropped_and_that_is_written_down(cut: int, folder: Path, opened: Opener) -> None:
    """As a crash leaves it, after any byte."""
    one = opened()
    one.write(RELEASED)
    whole = last(folder).read_bytes()
    one.write(replace(RELEASED, round=8))
    torn = last(folder).read_bytes()[len(whole) :][:cut]
    last(folder).write_bytes(whole + torn)
    assert opened().write(replace(RELEASED, round=9))[0] == 5
    kinds = whats(folder)
    assert [type(what).__name__ for what in kinds] == ["Opened", "Released", "Recovered", "Opened", "Released"]
    assert kinds[2] == Recovered(len(torn), digest(torn))
    assert kinds[4] == replace(RELEASED, round=9)


@pytest.mark.parametrize("rest", [b"\0" * 300 + b"\n", b'{"entry":3,\n', b"\n"])
def test_blocks_that_never_reached_the_disk_are_an_unfinished_line_too(rest: bytes, folder: Path, opened: Opener) -> None:
    one = opened()
    one.write(RELEASED)
    with last(folder).open("ab") as file:
        file.write(rest)
    opened()
    assert [type(what).__name__ for what in whats(folder)] == ["Opened", "Released", "Recovered", "Opened"]


def test_a_crash_in_the_very_first_line_leaves_nothing_to_tell(folder: Path, opened: Opener) -> None:
    opened()
    first = last(folder)
    first.write_bytes(first.read_bytes()[:50])
    opened().write(RELEASED)
    assert [type(what).__name__ for what in whats(folder)] == ["Opened", "Released"]


def test_a_crash_between_two_files_is_no_gap(folder: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 4000)
    one = opened()
    while len(segments(folder)) < 3:
        one.write(RELEASED)
    torn = last(folder)
    torn.write_bytes(torn.read_bytes()[:99])
    opened().write(RELEASED)
    assert isinstance(told(folder)[-3].what, Recovered)
    assert last(folder) == torn
    torn.write_bytes(b"")
    opened().write(RELEASED)
    assert isinstance(told(folder)[-2].what, Opened)


def test_killed_at_any_moment_a_ledger_opens_again(folder: Path) -> None:
    """A real process, killed while it writes; what it said was on disk is there."""
    program = (
        "import sys; from pathlib import Path; from tapestryd.host.ledger import Ledger; from tests.host.test_ledger import RELEASED\n"
        "from tapestryd.config import Release\n"
        "one = Ledger(Path(sys.argv[1]), Release(), now_ms=lambda: 0, waiting=lambda: None)\n"
        "while True: print(one.write(RELEASED)[0], flush=True)\n"
    )
    for lines in (1, 20, 45):
        with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            numbers = [int(writer.stdout.readline()) for _ in range(lines)]
            writer.kill()
            numbers += [int(line) for line in writer.stdout.read().splitlines()]
        one = Ledger(folder, Release(), now_ms=lambda: 0, waiting=lambda: None)
        one.close()
        assert one.number > numbers[-1]
        assert all(isinstance(entry.what, Released) for entry in told(folder) if entry.number in numbers)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_it_as_it_was(
    number: int, call: str, folder: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    one = opened()
    one.write(RELEASED)
    before = last(folder).read_bytes()

    def full(*words: object) -> None:
        raise OSError(number, os.strerror(number))

    def half(data: bytes) -> None:
        last(folder).write_bytes(before + data[:50])
        full()

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(one, "_append", half)
        with pytest.raises(DiskFull, match="what cannot be written down does not leave"):
            one.write(RELEASED)
    assert last(folder).read_bytes() == before
    assert one.write(WITHHELD)[0] == 3
    assert whats(folder)[2] == WITHHELD


def test_a_disk_that_fails_is_the_end(folder: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened()

    def broken(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(LedgerFault, match="Input/output error"):
        one.write(RELEASED)


def edited(data: bytes) -> bytes:
    return data.replace(b'"round":7', b'"round":9')


def without_a_line(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:1] + lines[2:])


def swapped(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([lines[0], lines[2], lines[1], *lines[3:]])


@pytest.mark.parametrize("change", [edited, without_a_line, swapped])
def test_what_was_altered_is_not_written_behind(change: Callable[[bytes], bytes], folder: Path, opened: Opener) -> None:
    one = opened()
    one.write(RELEASED)
    one.write(WITHHELD)
    last(folder).write_bytes(change(last(folder).read_bytes()))
    altered = last(folder).read_bytes()
    with pytest.raises(LedgerFault, match=r"nothing leaves until that is cleared up; tapestry audit --verify says more"):
        opened()
    assert last(folder).read_bytes() == altered


def test_a_key_that_is_gone_or_another_is_a_sentence(folder: Path, opened: Opener, tmp_path: Path) -> None:
    opened()
    key = folder / "key"
    key.rename(tmp_path / "key")
    with pytest.raises(LedgerFault, match="it is gone; restore it, or begin anew by moving"):
        opened()
    key.write_bytes(b"no key")
    with pytest.raises(LedgerFault, match="restore it"):
        opened()
    key.unlink()
    files.write(key, (tmp_path / "key").read_bytes()[:4] + bytes(64))
    with pytest.raises(LedgerFault, match="key"):
        opened()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerFault, match=r"Not a directory; set checkpoint\.dir"):
        Ledger(tmp_path / "file" / "ledger", Release(), now_ms=lambda: NOW, waiting=lambda: None)


def test_two_trainers_do_not_share_a_ledger(folder: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_S", 0.2)
    opened()
    with pytest.raises(LedgerFault, match=r"another trainer writes to it; give each daemon its own checkpoint\.dir"):
        Ledger(folder, Release(), now_ms=lambda: NOW, waiting=lambda: None)


def test_the_last_hour_is_counted_over_restarts_and_runs(opened: Opener) -> None:
    now = NOW
    one = opened(lambda: now)
    for minute in (0, 20, 40):
        now = NOW + minute * 60_000
        one.write(replace(RELEASED, run="ab" * 32 if minute else RUN))
        one.write(WITHHELD)
    assert (one.last_hour(Released), one.last_hour(Withheld)) == (3, 3)
    one = opened(lambda: now)
    assert (one.last_hour(Released), one.last_hour(Withheld)) == (3, 3)
    now = NOW + HOUR_MS - 1
    assert one.last_hour(Released) == 3
    now = NOW + HOUR_MS
    assert one.last_hour(Released) == 2
    now = NOW + 9 * HOUR_MS
    assert one.last_hour(Released) == 0


def test_what_was_released_last_is_known_after_a_restart(opened: Opener) -> None:
    one = opened()
    for fragment, batches in ((0, 10), (1, 20), (0, 30)):
        one.write(replace(RELEASED, fragment=fragment, batches=batches))
    assert [one.batches(RUN, fragment) for fragment in (0, 1, 2)] == [30, 20, 0]
    again = opened()
    assert [again.batches(RUN, fragment) for fragment in (0, 1, 2)] == [30, 20, 0]
    assert again.batches("ab" * 32, 0) == 0
    again.write(replace(RELEASED, fragment=ALL_FRAGMENTS, batches=40))
    assert [again.batches(RUN, fragment) for fragment in (0, 1, 2)] == [40, 40, 40]


def test_a_file_larger_than_any_is_not_read(folder: Path, opened: Opener) -> None:
    opened()
    with last(folder).open("ab") as file:
        file.truncate(2 << 20)
    with pytest.raises(LedgerFault, match="larger than a ledger's files are"):
        opened()
