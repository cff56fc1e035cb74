"""Every attack against the boxes that the warden makes, as root and as an ordinary user; and against each of its guards left out."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.isolation.attacks import DATA, NETWORK

HERE = Path(__file__).parent
NOBODY = 65534

SIDES = {"data": DATA, "network": NETWORK}
Report = dict[str, dict[str, tuple[bool, str]]]

GUARDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(data), frozenset(network))
    for name, data, network in (
        ("ip", {"filter", "network namespace"}, {}),
        ("dns", {"filter", "network namespace"}, {}),
        ("families", {"filter"}, {"filter"}),
        ("pathname_socket", {"filter", "own root"}, {"own root"}),
        ("packet_socket", {"filter", "own root"}, {"own root"}),
        ("abstract_socket", {"filter", "network namespace", "scopes"}, {"scopes"}),
        ("paired_socket", {"filter", "own root"}, {"own root"}),
        ("io_uring", {"filter", "network namespace"}, {"filter"}),
        ("memory_file", {"user namespaces", "scopes"}, {"user namespaces", "scopes", "PID namespace"}),
        ("memory_call", {"user namespaces", "scopes", "filter"}, {"user namespaces", "scopes", "PID namespace", "filter"}),
        ("ptrace", {"user namespaces", "scopes", "filter"}, {"user namespaces", "scopes", "PID namespace", "filter"}),
        ("descriptor_of_another", {"user namespaces", "scopes", "filter"}, {"user namespaces", "scopes", "PID namespace", "filter"}),
        ("files_of_processes", {"user namespaces", "scopes"}, {"user namespaces", "scopes", "PID namespace"}),
        ("signals", {"scopes"}, {"scopes", "PID namespace"}),
        ("limits", {"filter"}, {"filter", "PID namespace"}),
        ("shared_memory", {"IPC namespace"}, {"IPC namespace"}),
        ("shared_files", {"own root"}, {"own root"}),
        ("keyring", {"filter"}, {"filter"}),
        ("inherited_descriptors", {"descriptors"}, {"descriptors"}),
        ("what_others_print", {"pipes"}, {"pipes"}),
        ("terminal", {"pipes"}, {"pipes"}),
        ("namespaces", {"filter"}, {"filter"}),
        ("device_nodes", {"own root"}, {"own root"}),
        ("files_of_the_other", {"own root"}, {"own root"}),
        ("writes_to_the_data", {"read-only"}, {}),
        ("environment", {"environment"}, {"environment"}),
    )
}
"""attack → what stops it on the data side, and on the network side: each of these is enough by itself."""

ROOT_ONLY = {"mounts": ("filter", "no capabilities"), "kernel_settings": ("read-only",), "writes_elsewhere": ("read-only",)}
"""What only root could do at all (others lose their capabilities when they execute anything) → what stops it then, likewise."""

NEVER = {"kernel_programs"}
"""What nobody may in a user namespace, whatever of our guards is left out."""


class Arena:
    """Runs boxed as one user, in a folder that this user can read, once for every set of guards left out."""

    def __init__(self, folder: Path, uid: int) -> None:
        self._folder, self.uid, self._runs = folder, uid, 0
        self._who: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if uid != os.geteuid() else {}
        for package in ("tapestryd", "protocols"):
            shutil.copytree(HERE.parents[1] / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(HERE, folder / "tests" / "isolation", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "tapestryd-0.dist-info").mkdir()
        (folder / "tapestryd-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tapestryd\nVersion: 0\n")
        self._python = self._interpreter()

    def report(self, *without: str, attacks: tuple[str, ...] = ()) -> Report:
        self._runs += 1
        folder = self._folder / f"run{self._runs}"
        folder.mkdir()
        os.chown(folder, self.uid, self.uid)
        command = [self._python, "-P", "-m", "tests.isolation.boxed", str(folder), json.dumps(without), json.dumps(attacks)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self._folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False, **self._who)
        if done.returncode == 77:
            pytest.skip(f"no boxes are to be had here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        found: Report = json.loads(done.stdout)
        return found

    def _interpreter(self) -> str:
        """One that this user may execute."""
        for candidate in (sys.executable, "/usr/bin/python3"):
            words = [candidate, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            try:
                done = subprocess.run(words, check=False, capture_output=True, cwd="/", **self._who)
            except OSError:
                continue
            if done.returncode == 0:
                return candidate
        pytest.skip(f"no Python 3.11 here that the user {self.uid} may execute")


@pytest.fixture(scope="module", params=["root", "user"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Root's, where we are root; and an ordinary user's: nobody's, or else our own."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("root's boxes can be made by root only")
    folder = Path(f"/tmp/tapestry-arena-{os.getpid()}-{request.param}")
    folder.mkdir(mode=0o755)
    try:
        yield Arena(folder, 0 if request.param == "root" else NOBODY if os.geteuid() == 0 else os.geteuid())
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def boxed(arena: Arena) -> Report:
    return arena.report()


@pytest.mark.parametrize("side", SIDES)
def test_no_attack_comes_through(side: str, boxed: Report) -> None:
    for attack, (_, how) in boxed[side].items():
        print(f"{side:8} {attack:24} {how}")
    assert set(boxed[side]) == set(SIDES[side])
    assert [attack for attack, (through, _) in boxed[side].items() if through] == []


def test_every_attack_has_its_guards() -> None:
    named = {*GUARDS, *ROOT_ONLY, *NEVER}
    assert named == {*DATA, *NETWORK}
    assert {name for name, (_, network) in GUARDS.items() if network} <= set(NETWORK)


def sets(every: bool) -> dict[frozenset[str], set[tuple[str, str]]]:
    """Guards to leave out → (side, attack) that must come through then; or that must not, if `every`: with one of its guards left in."""
    found: dict[frozenset[str], set[tuple[str, str]]] = {}
    for attack, pair in GUARDS.items():
        for side, guards in zip(SIDES, pair, strict=True):
            for without in [guards - {one} for one in guards] if every else [guards]:
                if without:
                    found.setdefault(without, set()).add((side, attack))
    return found


@pytest.mark.parametrize("without", sets(every=False), ids=lambda guards: "+".join(sorted(guards)))
def test_each_comes_through_where_its_guards_are_left_out(without: frozenset[str], arena: Arena) -> None:
    expected = sets(every=False)[without]
    report = arena.report(*without, attacks=tuple({attack for _, attack in expected} - {"terminal"}))
    if any(attack == "terminal" for _, attack in expected):
        for side, found in arena.report(*without, attacks=("terminal",)).items():
            report[side] |= found
    assert {(side, attack): report[side][attack] for side, attack in expected if not report[side][attack][0]} == {}


@pytest.mark.parametrize("attack", ROOT_ONLY)
def test_what_only_root_could_do(attack: str, arena: Arena) -> None:
    if arena.uid != 0:
        pytest.skip("not root")
    report = arena.report(*ROOT_ONLY[attack], attacks=(attack,))
    assert all(report[side][attack][0] for side in SIDES), report


@pytest.mark.slow
@pytest.mark.parametrize("without", sets(every=True), ids=lambda guards: "+".join(sorted(guards)))
def test_any_one_of_its_guards_is_enough(without: frozenset[str], arena: Arena) -> None:
    report = arena.report(*without)
    assert {(side, attack): report[side][attack] for side, attack in sets(every=True)[without] if report[side][attack][0]} == {}
