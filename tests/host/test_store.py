"""The state directory: whole or not at all, one daemon, one schema; damage set aside; downloads that go on."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from protocols import limits
from protocols.canonical import digest
from protocols.control import Ban, Missing, Repaired, Silent, Story
from protocols.lineage import Snapshot, Tip
from tapestryd.errors import DiskFull, LocalFault, StateFault, Unavailable
from tapestryd.host import files as files_module
from tapestryd.host import store as store_module
from tapestryd.host.download import Download
from tapestryd.host.files import last_lines, saying_disk_full, set_aside, write
from tapestryd.host.state import StateDir
from tapestryd.host.store import RunStore
from tests.lineages import Line
from tests.people import RULES, RUN, verify

STORY = Story(7, 1, "committed", "", ("a", "b"), 1.0, 8, "cd" * 32, 1, 2, 3, 4, 5, 2.5)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, as on a full disk; in this process, for a moment."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


# Writing.


def test_write_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"one")
    write(path, b"t", memoryview(b"wo"))
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    path = tmp_path / "file"
    write(path, b"old")

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if call == "fsync":
        monkeypatch.setattr(store_module.os, "fsync", full)
    elif call == "rename":
        monkeypatch.setattr(Path, "rename", full)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(store_module.os, "fsync", full)  # data may also be refused only here, as on NFS
            with pytest.raises(DiskFull):
                write(path, b"new")
        monkeypatch.setattr(store_module.os, "open", full)
    with pytest.raises(DiskFull, match="make room"):
        write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_grow_leaves_what_was_there(tmp_path: Path) -> None:
    """The kernel itself refuses in the middle of the bytes."""
    path = tmp_path / "file"
    write(path, b"old")
    with file_size_limit(1000), pytest.raises(OSError, match="too large"):
        write(path, b"x" * 600, b"y" * 600)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_trouble_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "file", b"x")
    with pytest.raises(PermissionError), saying_disk_full(tmp_path):
        raise PermissionError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tapestry-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while True:
            os.write(file, b"x" * 1024)
    os.close(file)


@pytest.mark.root
def test_on_a_disk_that_is_really_full(small_disk: Path) -> None:
    state = StateDir(small_disk / "state")
    run = state.run(RUN)
    run.keep_rules(RULES, b"")
    filler = small_disk / "filler"
    fill(filler)
    before = sorted(path.name for path in run.path.rglob("*"))
    entry = Line.begin().grow()
    with pytest.raises(DiskFull):
        run.write_entry(entry, b"x" * 10_000)
    with pytest.raises(DiskFull):
        state.current = "tapestry:" + "x" * 10_000
    with pytest.raises(DiskFull):
        run.tell(replace(STORY, reason="x" * 10_000))
    assert sorted(path.name for path in run.path.rglob("*") if path.name != "rounds.jsonl") == before
    assert run.load_rules() == RULES
    filler.unlink()
    run.write_entry(entry, b"x" * 10_000)
    run.tell(STORY)
    assert run.stories()[-1] == STORY
    state.close()


# The directory.


def test_one_daemon_at_a_time(tmp_path: Path) -> None:
    first = StateDir(tmp_path / "state")
    with pytest.raises(StateFault, match="another tapestryd"):
        StateDir(tmp_path / "state")
    first.close()
    StateDir(tmp_path / "state").close()


def test_a_killed_daemon_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys, pathlib, tapestryd.host.state as s; d = s.StateDir(pathlib.Path(sys.argv[1])); print('held', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(StateFault, match="another tapestryd"):
        StateDir(tmp_path)
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    StateDir(tmp_path).close()


@pytest.mark.parametrize("found", ["2", "", "one", b"\xff\xfe"])
def test_another_schema_is_refused_and_left_alone(tmp_path: Path, found: str | bytes) -> None:
    data = found if isinstance(found, bytes) else found.encode()
    (tmp_path / "schema").write_bytes(data)
    for _ in range(2):  # the lock is given back each time
        with pytest.raises(StateFault, match="schema"):
            StateDir(tmp_path)
    assert (tmp_path / "schema").read_bytes() == data


def test_the_directory_is_private_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (state.run(RUN).path / "log").stat().st_mode & 0o777 == 0o700
    state.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFault, match=r"node\.state_dir"):
        StateDir(tmp_path / "file")


def test_bans_are_kept_and_a_damaged_file_bans_nobody(tmp_path: Path) -> None:
    state, path = StateDir(tmp_path), tmp_path / "bans.json"
    assert state.bans() == ()
    bans = (Ban("12D3a", "operator", "spam, “again”", 1_800_000_000_000), Ban("12D3b", "faults", "bad_digest ×10", 1))
    state.keep_bans(bans)
    assert state.bans() == bans
    good = path.read_bytes()
    kept = json.loads(good)
    for bad in (
        b"", b"\xff", good[:-3], b"7", b"{}x", b"[7]", b'["peer_id"]', b"[" * 100_000, json.dumps({"a": kept[0]}).encode(),
        *(json.dumps([kept[0] | {key: value}]).encode() for key, value in (
            ("until_ms", None), ("until_ms", 1.5), ("until_ms", -1), ("until_ms", 10**30), ("until_ms", True), ("peer_id", 7), ("more", 1),
        )),
    ):  # fmt: skip
        path.write_bytes(bad)
        assert state.bans() == (), bad[:50]
        assert not path.exists()
        assert (tmp_path / "bans.json.damaged").read_bytes() == bad
    state.keep_bans(())
    assert state.bans() == ()
    state.close()


def test_the_joined_run_is_remembered(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert state.current == ""
    state.current = f"tapestry:{RUN}"
    assert state.current == f"tapestry:{RUN}"
    state.current = ""
    assert state.current == ""
    state.current = ""
    (tmp_path / "current").write_bytes(b"\xff\xff")
    assert state.current  # damaged: it will be refused as an invite, with a sentence
    state.close()


# Rules, log, snapshots.


def store_of(line: Line, path: Path) -> RunStore:
    run = RunStore(path, line.rules.run_id)
    run.keep_rules(line.rules, b"")
    return run


def test_leftovers_of_a_crash_are_swept(tmp_path: Path) -> None:
    run = RunStore(tmp_path, RUN)
    (tmp_path / "log" / "0000000001.entry.new").write_bytes(b"half")
    (tmp_path / "rules.json.new").write_bytes(b"half")
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "0000000001.entry").write_bytes(b"whole, but its place was not taken")
    RunStore(tmp_path, RUN)
    assert not (tmp_path / "incoming").exists()
    assert not list(run.path.rglob("*.new"))


def test_rules(tmp_path: Path) -> None:
    run = RunStore(tmp_path, RUN)
    assert run.load_rules() is None
    assert run.tokenizer() == b""
    run.keep_rules(RULES, b"tokens")
    assert (run.load_rules(), run.rules(), run.tokenizer()) == (RULES, RULES.canonical(), b"tokens")
    (tmp_path / "rules.json").write_bytes(RULES.canonical()[:-1])
    with pytest.raises(StateFault, match="delete it"):
        run.load_rules()


def test_entries_come_back_and_damaged_ones_are_set_aside(tmp_path: Path) -> None:
    line = Line.begin()
    run = store_of(line, tmp_path)
    for _ in range(3):
        line.grow()
        run.write_entry(line.entries[-1][0], *line.entries[-1][1])
    for height, (entry, blobs) in enumerate(line.entries, 1):
        assert run.load_entry(height, verify) == (entry, blobs)
        size = run.entry_size(height)
        assert size is not None
        assert run.read_entry(height, 0, 1 << 30) == run.read_entry(height, 0, 10) + run.read_entry(height, 10, size)
    assert run.load_entry(4, verify) is None
    assert run.entry_size(4) is None
    path = tmp_path / "log" / "0000000002.entry"
    for damage in (lambda data: data[:-1], lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1])):
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert run.load_entry(2, verify) is None
        assert not path.exists()
        assert path.with_name("0000000002.entry.damaged").exists()
        path.write_bytes(whole)
    assert run.load_entry(2, verify) == line.entries[1]


def _snapshots(line: Line, run: RunStore, count: int) -> list[Snapshot]:
    kept = []
    for _ in range(count):
        made, data = line.snapshot()
        half = len(data) // 2
        run.write_snapshot(made, memoryview(data)[:half], memoryview(data)[half:])
        kept.append(made)
        line.grow()
    return kept


def test_snapshots_come_back_oldest_first_and_in_pieces(tmp_path: Path) -> None:
    line = Line.begin()
    run = store_of(line, tmp_path)
    assert run.snapshots() == []
    made = _snapshots(line, run, 3)
    assert run.snapshots() == made
    for snapshot in made:
        piece = run.read_snapshot(snapshot.tip.base, 0)
        assert piece is not None
        assert digest(piece) == snapshot.pieces[0]
        assert run.snapshot_file(snapshot).read_bytes() == piece
    for base, place in ((made[0].tip.base, 1), (made[0].tip.base, -1), ("00" * 32, 0), ("", 0)):
        assert run.read_snapshot(base, place) is None


def test_pruning_keeps_genesis_and_the_newest(tmp_path: Path) -> None:
    line = Line.begin()
    run = store_of(line, tmp_path)
    made = _snapshots(line, run, 6)
    run.prune_snapshots(2)
    assert run.snapshots() == [made[0], *made[-2:]]
    assert len(list((tmp_path / "snapshots").iterdir())) == 6
    run.prune_snapshots(2)
    assert len(run.snapshots()) == 3


def test_a_snapshot_that_is_being_fetched_is_kept_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is slower than we write snapshots would else never have a whole one; but nobody makes us keep them all."""
    now = [1000.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now[0])
    line = Line.begin()
    run = store_of(line, tmp_path)
    made = _snapshots(line, run, 8)
    for read in made[1:5]:
        assert run.read_snapshot(read.tip.base, 0)
    run.prune_snapshots(2)
    assert run.snapshots() == [made[0], made[1], made[2], *made[-2:]]
    now[0] += 599
    assert run.read_snapshot(made[2].tip.base, 0)
    now[0] += 2
    run.prune_snapshots(2)
    assert run.snapshots() == [made[0], made[2], *made[-2:]]
    assert run.read_snapshot(made[1].tip.base, 0) is None


def test_a_base_without_its_manifest_takes_up_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk was full, or we were killed, when its manifest was to be written; or its manifest was damaged."""
    line = Line.begin()
    run = store_of(line, tmp_path)
    made = _snapshots(line, run, 3)

    def bases() -> list[int]:
        return sorted(int(path.stem) for path in (tmp_path / "snapshots").glob("*.base"))

    last, data = line.snapshot()
    sizes = [1 << 20, 10]
    with monkeypatch.context() as patch:

        def limited(path: Path, *chunks: bytes) -> None:
            with file_size_limit(sizes.pop(0)):
                write(path, *chunks)

        patch.setattr(store_module, "write", limited)
        with pytest.raises(OSError, match="too large"):
            run.write_snapshot(last, memoryview(data), memoryview(b""))
    assert bases() == [0, 1, 2, 3]
    run.set_snapshot_aside(made[1], "damaged")
    run.prune_snapshots(1)
    assert bases() == [0, 2]
    run.set_snapshot_aside(made[2], "damaged")
    RunStore(tmp_path, line.rules.run_id)
    assert bases() == [0]
    assert RunStore(tmp_path, line.rules.run_id).snapshots() == made[:1]


@pytest.mark.parametrize("damage", ["manifest", "short", "missing", "another run's"])
def test_damaged_snapshots_are_set_aside(tmp_path: Path, damage: str) -> None:
    line = Line.begin()
    made = _snapshots(line, store_of(line, tmp_path), 2)
    manifest = tmp_path / "snapshots" / "0000000001.json"
    if damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:-1])
    elif damage == "short":
        os.truncate(manifest.with_suffix(".base"), 100)
    elif damage == "missing":
        manifest.with_suffix(".base").unlink()
    else:
        manifest.write_bytes(replace(made[1], run="00" * 32).to_bytes())
    run = RunStore(tmp_path, line.rules.run_id)  # a new start: nothing remembered
    assert run.snapshots() == made[:1]
    assert manifest.with_name("0000000001.json.damaged").exists()
    assert not manifest.exists()
    RunStore(tmp_path, line.rules.run_id)  # what may be whole is not swept
    assert manifest.with_name("0000000001.base.damaged").exists() == (damage in ("manifest", "another run's"))
    assert not manifest.with_suffix(".base").exists()


@pytest.mark.parametrize(("number", "fault"), [(errno.EIO, Unavailable), (errno.EMFILE, Unavailable), (errno.EACCES, StateFault)])
def test_what_cannot_be_read_is_no_damage(tmp_path: Path, number: int, fault: type[LocalFault], monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails for a moment, no descriptor left, files of another user: a sentence, and every file as it was."""
    line = Line.begin()
    made = _snapshots(line, store_of(line, tmp_path), 2)
    before = _contents(tmp_path)
    run = RunStore(tmp_path, line.rules.run_id)
    assert run.load_rules()
    run.write_entry(line.entries[0][0], *line.entries[0][1])
    entry, read = tmp_path / "log" / "0000000001.entry", Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.parent.parent == tmp_path:
            raise OSError(number, os.strerror(number))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(fault, match=r"0000000000\.json"):
            run.snapshots()
        with pytest.raises(fault, match=r"0000000001\.entry"):
            run.load_entry(1, verify)
    RunStore(tmp_path, line.rules.run_id).prune_snapshots(2)
    entry.unlink()
    assert _contents(tmp_path) == before
    assert run.snapshots() == made


def test_what_was_pruned_while_it_was_read_is_no_trouble(tmp_path: Path) -> None:
    set_aside(tmp_path / "gone.json", "read while it was pruned")
    assert list(tmp_path.iterdir()) == []


def test_a_superseded_branch_is_kept_where_its_owner_finds_it(tmp_path: Path) -> None:
    (tmp_path / "superseded-0.bak").mkdir()  # its owner's own
    line = Line.begin()
    run = store_of(line, tmp_path)
    made = _snapshots(line, run, 1)
    run.write_entry(line.entries[0][0], *line.entries[0][1])
    run.take_over([])
    assert run.snapshots() == []
    assert run.load_entry(1, verify) is None
    assert (tmp_path / "superseded-0" / "log" / "0000000001.entry").exists()
    _snapshots(Line.begin(), run, 1)
    run.take_over([])
    assert (tmp_path / "superseded-1" / "snapshots" / "0000000000.base").exists()
    assert len(made) == 1
    run.take_over([])  # nothing is there to be kept
    assert sorted(path.name for path in tmp_path.glob("superseded-?")) == ["superseded-0", "superseded-1"]
    run.write_entry(line.entries[0][0], *line.entries[0][1])
    run.take_over([])
    assert sorted(path.name for path in tmp_path.glob("superseded-*")) == ["superseded-0.bak", "superseded-1", "superseded-2"]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("by", ["entries", "snapshot"])
def test_a_lineage_takes_the_place_of_ours_whole_or_not_at_all(tmp_path: Path, by: str) -> None:
    """The disk is full at the first, the second … the last time that it is asked for anything."""
    ours = Line.begin()
    ours.grow()
    theirs = ours.fork()
    run = store_of(ours, tmp_path)
    _snapshots(ours, run, 3)
    for entry, parts in ours.entries:
        run.write_entry(entry, *parts)
    theirs.grow(seed=7)
    theirs.grow(seed=7)
    made, data = theirs.snapshot()
    (tmp_path / f"{made.tip.base}.part").write_bytes(data)
    before = _contents(tmp_path)

    def take() -> None:
        if by == "entries":
            run.take_over(theirs.entries[1:], beyond=1)
        else:
            run.take_over(theirs.entries[-1:], made)

    calls = 0
    while True:
        left = calls
        with pytest.MonkeyPatch.context() as patch:

            def counted(call: Callable[..., object]) -> Callable[..., object]:
                def perform(*given: object, **named: object) -> object:
                    nonlocal left
                    left -= 1
                    if left == -1:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return call(*given, **named)

                return perform

            patch.setattr(os, "fsync", counted(os.fsync))
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr(Path, "mkdir", counted(Path.mkdir))
            if calls > 100:  # they are fewer
                take()
                break
            with suppress(DiskFull):
                take()
                break
        assert _contents(tmp_path) == before, calls
        assert not list(tmp_path.glob("superseded-*"))
        assert [snapshot.tip.height for snapshot in run.snapshots()] == [1, 2, 3]
        calls += 1
    assert calls > 10
    assert [snapshot.tip for snapshot in run.snapshots()] == ([theirs.entries[0][0].tip] if by == "entries" else [made.tip])
    for height in (1, 2, 3, 4):
        here = by == "entries" or height == 3
        assert run.load_entry(height, verify) == (theirs.entries[height - 1] if here and height < 4 else None)
    kept = _contents(tmp_path / "superseded-0")
    assert set(kept) == {name for name in before if name.startswith(("log", "snapshots")) and not (by == "entries" and "0001" in name)}
    assert (tmp_path / f"{made.tip.base}.part").exists() == (by == "entries")
    assert not (tmp_path / "incoming").exists()


# Downloads.

_ELEMENTS = limits.PIECE_BYTES // 4 + 5
_DATA = bytes(range(256)) * (8 * _ELEMENTS // 256) + b"tail" * 2 * (8 * _ELEMENTS % 256 // 8)
_PIECES = [_DATA[at : at + limits.PIECE_BYTES] for at in range(0, 8 * _ELEMENTS, limits.PIECE_BYTES)]


def _wanted() -> Snapshot:
    return Snapshot(RUN, Tip(4, 8, "ab" * 32), (), _ELEMENTS, tuple(map(digest, _PIECES)))


def test_a_download_goes_on_where_it_was(tmp_path: Path) -> None:
    run, snapshot = RunStore(tmp_path, RUN), _wanted()
    first = run.download(snapshot)
    assert first.wanted() == [0, 1, 2]
    first.keep(1, _PIECES[1])
    again = RunStore(tmp_path, RUN).download(snapshot)
    assert again.wanted() == [0, 2]
    again.keep(0, b"x" * limits.PIECE_BYTES)  # torn by a power cut, say
    assert again.wanted() == [0, 2]
    again.keep(0, _PIECES[0])
    again.keep(2, _PIECES[2])
    assert again.path.read_bytes() == _DATA
    assert again.wanted() == []
    other = Download(tmp_path / "older.part", replace(snapshot, elements=1))
    assert other.path.exists()
    run.keep_download(snapshot)
    assert run.snapshot_file(snapshot).read_bytes() == _DATA
    assert not list(tmp_path.glob("*.part"))  # nor does an abandoned one stay for ever


def test_a_download_that_was_longer_is_cut(tmp_path: Path) -> None:
    snapshot = _wanted()
    (tmp_path / "x.part").write_bytes(_DATA + b"more")
    assert Download(tmp_path / "x.part", snapshot).wanted() == []


def test_a_newer_snapshot_takes_what_it_has_in_common_with_one_begun(tmp_path: Path) -> None:
    """And of downloads that were given up only the latest stays."""
    run, snapshot = RunStore(tmp_path, RUN), _wanted()
    for number, base in enumerate(["01" * 32, "02" * 32]):
        begun = run.download(replace(snapshot, tip=Tip(2, 4, base)))
        begun.keep(number, _PIECES[number])
        os.utime(begun.path, (number, number))
    assert run.begun() == ["02" * 32, "01" * 32]
    newer = replace(snapshot, tip=Tip(8, 9, "03" * 32), pieces=("ff" * 32, *snapshot.pieces[1:]))
    fetched = run.download(newer)
    assert fetched.wanted() == [0, 2]
    assert set(run.begun()) == {"02" * 32, "03" * 32}


def test_a_snapshot_that_does_not_fit_is_found_out_at_once(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="does not fit"):
        RunStore(tmp_path, RUN).download(replace(_wanted(), elements=1 << 40))


def test_a_download_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = Download(tmp_path / "x.part", _wanted())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFull):
        download.keep(0, _PIECES[0])


# Stories.


def test_stories_survive_torn_lines(tmp_path: Path) -> None:
    run = RunStore(tmp_path, RUN)
    assert run.stories() == []
    run.tell(STORY)
    with (tmp_path / "rounds.jsonl").open("ab") as file:
        for line in (b"{}", b"[]", b"7", b'"x"', b"null", b'{"round":1', b"\xff\xfe", b'{"members":[],"unknown":1}', b""):
            file.write(line + b"\n")
    run.tell(replace(STORY, round=8))
    assert [story.round for story in run.stories()] == [7, 8]
    assert run.stories()[0] == STORY


def test_a_story_cut_short_spoils_no_other(tmp_path: Path) -> None:
    run = RunStore(tmp_path, RUN)
    run.tell(STORY)
    with (tmp_path / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 8, "fragment": ')
    run.tell(replace(STORY, round=9))
    assert [story.round for story in run.stories()] == [7, 9]


def test_stories_of_other_versions_are_read(tmp_path: Path) -> None:
    """What an earlier one wrote lacks members, what a later one wrote has more."""
    run = RunStore(tmp_path, RUN)
    full = replace(
        STORY, leader="a", silent=(Silent("c", "why"),), present=("b",), missing=(Missing("b", "vote", "why"),), shares={"a": 7},
        repaired=(Repaired(1, "b"),), times_ms={"gathering": 5}, refusals={"stale": 2}, votes=("a",), root="ef" * 32,
        from_height=None, to_height=None, donors=(),
    )  # fmt: skip
    raw = asdict(full)
    with (tmp_path / "rounds.jsonl").open("w") as file:
        for line in ({name: raw[name] for name in Story.__slots__[:14]}, raw, {**raw, "later": [1]}):
            file.write(json.dumps(line) + "\n")
    assert run.stories() == [STORY, full, full]


def test_only_the_latest_stories_are_read(tmp_path: Path) -> None:
    run = RunStore(tmp_path, RUN)
    line = json.dumps({**{name: getattr(STORY, name) for name in STORY.__slots__}, "members": []})
    (tmp_path / "rounds.jsonl").write_text(
        "".join(line.replace('"round": 7', f'"round": {n}') + "\n" for n in range(store_module.STORIES + 5))
    )
    assert [story.round for story in run.stories()] == list(range(5, store_module.STORIES + 5))


def test_stories_of_years_cost_no_more_to_read_than_those_of_a_day(tmp_path: Path) -> None:
    """A file that is larger than the memory of any machine: its beginning is a hole."""
    run = RunStore(tmp_path, RUN)
    path = tmp_path / "rounds.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 42)
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    for number in range(store_module.STORIES + 5):
        run.tell(replace(STORY, round=number, reason="x" * 4000))
    assert [story.round for story in run.stories()] == list(range(5, store_module.STORIES + 5))


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_last_lines(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_CHUNK_BYTES", chunk)
    path = tmp_path / "file"
    for text in (b"", b"\n", b"a", b"a\n", b"a\nbb", b"a\nbb\n", b"\n\na\n", b"a\n\nbb\nccc\n"):
        path.write_bytes(text)
        for count in (1, 2, 3, 9):
            assert last_lines(path, count) == text.splitlines()[-count:]
