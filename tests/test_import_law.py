"""Who may import whom, who may read clock and environment, and how long a file may be: kept by the syntax tree."""

import ast
import gc
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "protocols").rglob("*.py"), *(ROOT / "tapestryd").rglob("*.py")])
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


@cache
def syntax(path: Path) -> ast.Module:
    """CPython 3.11 fails in ast.parse when the collector finalises something meanwhile that another test left (gh-106905)."""
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        gc.enable()


ROOMS = {
    "protocols": {"protocols"},
    "tapestryd.errors": set(),
    "tapestryd.training": {
        "protocols", "tapestryd.training", "tapestryd.errors", "torch", "numpy", "transformers", "tokenizers", "safetensors",
        "bitsandbytes", "pyarrow", "zstandard",
    },
    "tapestryd.child": set(),
    "tapestryd.swarm": {
        "protocols", "tapestryd.swarm", "tapestryd.child", "tapestryd.errors", "hivemind", "msgpack", "multiaddr",
    },
    "tapestryd.host": {"protocols", "tapestryd", "tapestryd.child", "tapestryd.host",
                       "tapestryd.training", "tapestryd.errors", "tapestryd.config", "tapestryd.layers", "tapestryd.settings",
                       "tapestryd.__version__", "torch", "numpy", "transformers", "cryptography", "aiohttp", "prometheus_client", "pynvml",
                       "dp_accounting"},
    "tapestryd.config": set(),
    "tapestryd.layers": {"tapestryd.config", "tapestryd.errors", "tapestryd.profiles", "tapestryd.settings"},
    "tapestryd.profiles": set(),
    "tapestryd.editing": {"tapestryd.errors", "tomlkit"},
    "tapestryd.settings": {"protocols", "tapestryd.errors", "tapestryd.host.hours", "tapestryd.profiles", "multiaddr"},
    "tapestryd.host.hours": set(),
    "tapestryd.host.policy": {"tapestryd.host.hours"},
    "tapestryd.host.will": {"tapestryd.host.policy"},
    "tapestryd.host.sensors": {"tapestryd.host.policy", "tapestryd.host.sensors", "pynvml"},
    "tapestryd.words": set(),
    "tapestryd.netcheck": {"protocols"},
    "tapestryd.screen": {"protocols", "tapestryd.words"},
    "tapestryd.statement": {"protocols", "tapestryd.screen"},
    "tapestryd.program": {"protocols", "tapestryd.errors"},
    "tapestryd.client": {"protocols", "tapestryd.errors", "tapestryd.screen", "tapestryd.__version__"},
    "tapestryd.desktop": {"tapestryd.errors", "tapestryd.client", "tapestryd.program", "tapestryd.host.clock",
                          "tapestryd.host.sensors.desktop"},
    "tapestryd.cli": {"protocols", "tapestryd.cli", "tapestryd.errors", "tapestryd.client", "tapestryd.screen", "tapestryd.settings",
                      "tapestryd.config", "tapestryd.editing", "tapestryd.layers", "tapestryd.profiles", "tapestryd.program",
                      "tapestryd.reloading", "tapestryd.netcheck", "tapestryd.host.files", "tapestryd.host.clock", "tapestryd.host.hours",
                      "tapestryd.host.sensors.wall", "tapestryd.host.box",
                      "tapestryd.__version__"},
}  # fmt: skip
"""What a room may import beside the standard library. Rooms that are not named (the daemon and what it is made of) may import all."""

LIGHT = (
    "tapestryd.cli",
    "tapestryd.client",
    "tapestryd.screen",
    "tapestryd.settings",
    "tapestryd.demo",
    "tapestryd.declaring",
    "tapestryd.delegating",
    "tapestryd.desktop",
    "tapestryd.program",
    "tapestryd.__main__",
)
"""Must start in an instant: none of these, nor anything that they import at once, brings in one of HEAVY."""
HEAVY = {"torch", "hivemind", "aiohttp", "transformers", "numpy"}

CLOCK = {
    "tapestryd.host.clock": "the one place that reads the clock",
    "tapestryd.demo": "times itself",
}
ENVIRONMENT = {
    "tapestryd.__main__": "hands it to config",
    "tapestryd.bench": "hands it to config, and tells torch its threads",
    "tapestryd.canary": "hands it to config, and tells torch its threads",
    "tapestryd.config": "reads settings from what it is handed",
    "tapestryd.contrib": "the socket's default place, and where this user's files of settings are",
    "tapestryd.daemon": "hands it to logs and systemd",
    "tapestryd.audit": "where this user's files of settings are",
    "tapestryd.auditing": "the socket's default place, and where this user's files of settings are",
    "tapestryd.declaring": "hands it to config",
    "tapestryd.cli": "the socket's default place, NO_COLOR, settings, the editor",
    "tapestryd.demo": "starts daemons",
    "tapestryd.desktop": "the socket's default place, and which desktop it is",
    "tapestryd.host.steward": "the data side's own main, and what of it trainers inherit",
    "tapestryd.host.trainer_main": "a trainer's own main",
    "tapestryd.warden": "hands it on to both sides",
}


LONGEST = {"protocols.rounds": 480}
"""More than 450 lines: states, events, effects and the law that ties them are read together."""


def in_room(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


@cache
def imports(module: str, *, at_once: bool = False) -> list[str]:
    """Every module that `module` imports; `at_once`: leaving out what is imported inside functions and for type checkers."""
    return list(_imports(module, at_once))


def _imports(module: str, at_once: bool) -> Iterator[str]:
    tree = syntax(MODULES[module])

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if at_once and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            yield child
            yield from walk(child)

    for node in walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in MODULES or inner == "tapestryd.__version__" else node.module


def ours(module: str, *, at_once: bool = False) -> set[str]:
    """Our modules that importing `module` runs, packages above them included."""
    found = set()
    for name in imports(module, at_once=at_once):
        parts = name.split(".")
        found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & MODULES.keys()
    return found - {module}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_they_may(module: str) -> None:
    for room, allowed in ROOMS.items():
        if not in_room(module, room):
            continue
        for name in imports(module):
            top = name.split(".")[0]
            fine = top in sys.stdlib_module_names or any(in_room(name, part) for part in allowed)
            assert fine, f"{module} imports {name}; {room} may import {sorted(allowed)}"


def test_hivemind_stays_in_swarm() -> None:
    for module in MODULES:
        if not in_room(module, "tapestryd.swarm"):
            assert not [name for name in imports(module) if name.split(".")[0] == "hivemind"], module


def test_what_the_operator_starts_stays_light() -> None:
    for start in (module for module in MODULES if any(in_room(module, light) for light in LIGHT)):
        reached, todo = set(), {start}
        while todo:
            module = todo.pop()
            reached.add(module)
            todo |= ours(module, at_once=True) - reached
        for module in reached:
            heavy = {name.split(".")[0] for name in imports(module, at_once=True)} & HEAVY
            assert not heavy, f"{start} brings in {heavy} by way of {module}"


def test_no_import_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in ours(module, at_once=True):
                if not in_room(module, other):  # a package's __init__ stands above its own modules
                    visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def _reads(module: str) -> set[str]:
    """Names such as time.time and os.environ that `module` mentions, under whatever name it imported them."""
    tree = syntax(MODULES[module])
    alias: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            alias |= {name.asname or name.name: name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            alias |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{alias.get(node.value.id, node.value.id)}.{node.attr}")
        elif isinstance(node, ast.Name):
            found.add(alias.get(node.id, node.id))
    return found


_WALL = {"time.time", "time.time_ns", "time.ctime", "time.localtime", "time.gmtime", "time.strftime"} | {
    f"{holder}.{name}" for holder in ("datetime", "datetime.datetime", "datetime.date") for name in ("now", "utcnow", "today")
}
_PLACES = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
_DICE = {"random", "secrets", "uuid"}


@pytest.mark.parametrize("module", MODULES)
def test_clock_and_environment_are_read_where_they_may_be(module: str) -> None:
    reads = _reads(module)
    if not any(in_room(module, place) for place in CLOCK):
        assert not reads & _WALL, f"{module} reads the wall clock; only {sorted(CLOCK)} may"
    if not any(in_room(module, place) for place in ENVIRONMENT):
        assert not reads & _PLACES, f"{module} reads the environment; only {sorted(ENVIRONMENT)} may"
    if in_room(module, "protocols"):
        assert not {name.split(".")[0] for name in imports(module)} & (_DICE | {"time", "os", "socket", "asyncio", "threading", "datetime"})


@pytest.mark.parametrize("module", MODULES)
def test_no_file_grows_beyond_450_lines(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST.get(module, 450), (
        f"{module}: find the part that wants a room of its own"
    )


def test_the_lists_name_only_what_is_there() -> None:
    for place in (*ROOMS, *LIGHT, *CLOCK, *ENVIRONMENT):
        assert any(in_room(module, place) for module in MODULES), place
