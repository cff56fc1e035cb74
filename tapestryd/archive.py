"""A lineage as files: a run's rules, snapshots and log entries, in a state directory or wherever somebody put them.

Only reads: takes no lock, sets nothing aside, so it may look on while a daemon writes, and at what is not ours. Knows
nothing of tensors; what the files prove together is for proof.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocols import limits
from protocols.canonical import Verify, digest, is_digest
from protocols.lineage import ENTRY_HEAD_BYTES, Entry, Snapshot, Tip, manifest_bytes
from protocols.refusal import Refused
from protocols.rules import Invite, RunRules
from tapestryd.errors import LocalFault


class Fault(LocalFault):
    """The first thing in a lineage's files that is not as it must be. `height` None: it belongs to none."""

    def __init__(self, file: Path, height: int | None, what: str) -> None:
        super().__init__(f"{file}{'' if height is None else f' (height {height})'}: {what}")
        self.file = file
        self.height = height
        self.what = what


def read(path: Path, bound: int, height: int | None = None) -> bytes:
    """A file's bytes. Raises Fault if it cannot be read or is larger than `bound`, before any of it is read."""
    try:
        size = path.stat().st_size
        if size > bound:
            raise Fault(path, height, f"{size} bytes where at most {bound} can be right")
        return path.read_bytes()
    except OSError as error:
        raise Fault(path, height, f"cannot be read: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Archive:
    """What lies where. `snapshots`: height → (manifest, its file; the base is beside it, `.base`); `entries`: height → file."""

    rules: RunRules
    rules_file: Path
    snapshots: dict[int, tuple[Snapshot, Path]]
    entries: dict[int, Path]

    @classmethod
    def of(cls, places: Sequence[Path], run: str = "") -> "Archive":
        """Of these files, and of the files in these folders and in their log/ and snapshots/. `run`: the id that the rules
        must have; "": whatever they have. Raises Fault, or LocalFault if something is not there at all."""
        files = [file for place in places for file in _files(place)]
        rules, rules_file = _rules([file for file in files if file.name == "rules.json" or file.suffix == ".toml"], run)
        for file in files:
            named = rules.tokenizer.digest if file.name == "tokenizer.json" else ""
            if named and digest(read(file, limits.TOKENIZER_BYTES)) != named:
                raise Fault(file, None, "bad_digest: not the tokenizer that the rules name")
        manifests = [file for file in files if file.suffix == ".json" and _manifest(file)]
        entries: dict[int, Path] = {}
        for file in files:
            if file.suffix == ".entry":
                height = _height(file)
                if height in entries:
                    raise Fault(file, height, f"{entries[height]} is of that height, too; give one lineage at a time")
                entries[height] = file
        return cls(rules, rules_file, _snapshots(manifests, rules), entries)


def run_folder(state: Path, run: str = "") -> Path:
    """The folder of `run` in a state directory; "": of the run that its daemon is in, or of the only one. Raises LocalFault."""
    runs = state / "runs"
    known = sorted(path.name for path in runs.iterdir() if is_digest(path.name)) if runs.is_dir() else []
    if not known:
        raise LocalFault(f"{state} holds no run; --state names the folder that node.state_dir in tapestryd.toml names")
    if not run and (state / "current").exists():
        try:
            run = Invite.parse((state / "current").read_text(errors="replace")).run_id
        except Refused as refused:
            raise LocalFault(f"{state / 'current'}: {refused.detail}; name the run with --run") from None
    if not run and len(known) > 1:
        raise LocalFault(f"{state} holds {len(known)} runs; name one with --run: {', '.join(known)}")
    if run and run not in known:
        raise LocalFault(f"{state} does not hold run {run}; it holds {', '.join(known)}")
    return runs / (run or known[0])


@dataclass(frozen=True, slots=True)
class Branch:
    """One log on disk. `stretches`: heights of its entries, (first, last) of each unbroken run. `tip`, `round`: of the newest
    entry; None where there is no entry, or it is damaged. `snapshots`: height → bytes."""

    name: str
    stretches: tuple[tuple[int, int], ...]
    bytes: int
    tip: Tip | None
    round: int
    fault: str
    snapshots: dict[int, int]


def branches(folder: Path, verify: Verify) -> list[Branch]:
    """The current branch of a run's folder, and those that lost. Raises LocalFault without the run's rules."""
    rules, _ = _rules([file for file in (folder / "rules.json",) if file.exists()], folder.name)
    aside = sorted(folder.glob("superseded-*"), key=lambda path: (len(path.name), path.name))
    return [_branch(place, "current" if place == folder else place.name, rules, verify) for place in (folder, *aside)]


def _branch(folder: Path, name: str, rules: RunRules, verify: Verify) -> Branch:
    entries = {int(file.stem): file for file in folder.glob("log/*.entry") if file.stem.isdigit()}
    stretches: list[tuple[int, int]] = []
    for height in sorted(entries):
        if stretches and stretches[-1][1] == height - 1:
            stretches[-1] = (stretches[-1][0], height)
        else:
            stretches.append((height, height))
    tip, round, fault = None, -1, ""
    if entries:
        latest = entries[max(entries)]
        with latest.open("rb") as data:
            head = data.read(ENTRY_HEAD_BYTES)
        try:
            newest, _ = Entry.parse(head, rules, verify)
            tip, round = newest.tip, newest.vote.round
        except Refused as refused:
            fault = f"{latest.name}: {refused}"
    bases = {int(file.stem): file.stat().st_size for file in folder.glob("snapshots/*.base") if file.stem.isdigit()}
    size = sum(file.stat().st_size for file in entries.values())
    return Branch(name, tuple(stretches), size, tip, round, fault, dict(sorted(bases.items())))


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        if not place.exists():
            raise LocalFault(f"{place}: no such file or folder")
        return [place]
    folders = [place, place / "log", place / "snapshots"]
    return [file for folder in reversed(folders) if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]


def _rules(files: Sequence[Path], run: str) -> tuple[RunRules, Path]:
    """The rules of run `run`, if one is named; else those that are there. All files of rules must say the same."""
    found: RunRules | None = None
    for file in files:
        data = read(file, limits.RULES_BYTES)
        try:
            rules = RunRules.from_toml(data.decode()) if file.suffix == ".toml" else RunRules.from_canonical(data, run or digest(data))
        except (Refused, UnicodeDecodeError) as error:
            raise Fault(file, None, f"not the rules of this run: {error}") from None
        run = run or rules.run_id
        if rules.run_id != run:
            raise Fault(file, None, f"the rules of run {rules.run_id[:12]}, not of {run[:12]}")
        found = rules
    if found is None:
        raise LocalFault("There are no rules among these files: rules.json from a state directory, or run.toml.")
    return found, files[-1]


def _snapshots(manifests: Sequence[Path], rules: RunRules) -> dict[int, tuple[Snapshot, Path]]:
    layout = rules.layout()
    found: dict[int, tuple[Snapshot, Path]] = {}
    for file in manifests:
        try:
            data = read(file, manifest_bytes(layout.elements, layout.fragments))
            snapshot = Snapshot.parse(data, run=rules.run_id, elements=layout.elements, fragments=layout.fragments)
        except Refused as refused:
            raise Fault(file, None, str(refused)) from None
        height = snapshot.tip.height
        if file.stem.isdigit() and int(file.stem) != height:
            raise Fault(file, height, "its name is that of another height")
        if height in found:
            raise Fault(file, height, f"{found[height][1]} is of that height, too; give one lineage at a time")
        base = file.with_suffix(".base")
        if not base.exists():
            raise Fault(base, height, "missing; its manifest is here")
        if base.stat().st_size != snapshot.size:
            raise Fault(base, height, f"{base.stat().st_size} bytes where a base of this run has {snapshot.size}")
        found[height] = (snapshot, file)
    return found


def _manifest(file: Path) -> bool:
    """Whether a .json is a snapshot's manifest: a state directory and a founder's folder hold others, too."""
    return file.stem.isdigit() or file.stem == "genesis" or file.with_suffix(".base").exists()


def _height(file: Path) -> int:
    if not (file.stem.isascii() and file.stem.isdigit() and 0 < int(file.stem[:20]) < limits.INTEGER):
        raise Fault(file, None, "a log entry is named by its height, as in 0000000012.entry")
    return int(file.stem)
