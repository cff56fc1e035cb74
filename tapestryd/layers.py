"""How this machine's choices come about: layer upon layer, and the last that says something wins.

    built-in < profile < file < drop-ins, sorted by name < environment (TAPESTRY_SECTION__KEY) < command line

Every fault is reported, together, with its place, key and value; every value says where it came from. Files are found apart from
being made sense of, because a daemon in a box is handed its own.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from tapestryd.config import DaemonConfig, Setting, TrainerConfig, settings_of
from tapestryd.errors import ConfigFault
from tapestryd.profiles import PROFILES
from tapestryd.settings import CHECKS, convert, from_text

SCHEMA = 1
BUILT_IN = "built-in"
_ENVIRONMENT, _COMMAND_LINE = "environment", "command line"
_FILE_BYTES = 1 << 20

C = TypeVar("C", DaemonConfig, TrainerConfig)


@dataclass(frozen=True, slots=True)
class Source:
    """One file as it was found. `fault`: why it could not be read, if it could not."""

    path: Path
    data: bytes = b""
    fault: str = ""


def files_at(path: Path | None) -> tuple[Source, ...]:
    """`path` and its drop-ins, path.d/*.toml, in the order in which they count; without a path, none."""
    return tuple(map(_read, [path.absolute(), *drop_ins(path.absolute())])) if path is not None else ()


def drop_ins(path: Path) -> list[Path]:
    """Those of a file; the folder itself where it cannot be looked into."""
    folder = path.with_name(path.name + ".d")
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(".toml")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        return [folder]


def _read(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            return Source(path, file.read(_FILE_BYTES + 1))
    except OSError as error:
        return Source(path, fault=error.strerror or repr(error))


@dataclass(frozen=True, slots=True)
class Loaded(Generic[C]):
    """`origins`: key → where its value came from; BUILT_IN, a profile, a file, a name of the environment, the command line.
    `files`: those that were read, in the order in which they count."""

    config: C
    origins: Mapping[str, str]
    files: tuple[Path, ...] = ()

    def value(self, key: str) -> Any:
        setting = settings_of(type(self.config))[key]
        return getattr(getattr(self.config, setting.section), setting.field)


def load_daemon(files: Sequence[Source], environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded[DaemonConfig]:
    """Settings of the network side. `flags`: "section.key" → text. Raises ConfigFault with one line per fault."""
    names = {name: name[9:] for name in environ if name.startswith("TAPESTRY_") and not of_trainer(name)}
    return _load(DaemonConfig, files, {name: (short, environ[name]) for name, short in names.items() if "__" in short}, flags)


def load_trainer(files: Sequence[Source], environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded[TrainerConfig]:
    """Settings of the data side, as load_daemon; its environment names begin with TAPESTRY_TRAINER_."""
    names = {name: name[17:] for name in environ if of_trainer(name)}
    loaded = _load(TrainerConfig, files, {name: (short, environ[name]) for name, short in names.items() if "__" in short}, flags)
    release, gpu = loaded.config.release, loaded.config.gpu
    if release.delta_noise_std and not release.delta_clip_norm:
        raise ConfigFault(
            f"release.delta_noise_std = {release.delta_noise_std} is a share of release.delta_clip_norm, which is 0: set both or none"
        )
    if gpu.max_temperature and gpu.resume_temperature > gpu.max_temperature:
        raise ConfigFault(
            f"gpu.resume_temperature = {gpu.resume_temperature:g} is above gpu.max_temperature = {gpu.max_temperature:g}: "
            "it must not be hotter than that to go on; lower it"
        )
    return loaded


def usual(environ: Mapping[str, str], name: str = "tapestryd.toml") -> Path:
    """Where a side's file lies: the service's, or where there is none, the one of a daemon that this user runs."""
    service, folder = Path("/etc/tapestry", name), environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/"), ".config")
    own = Path(folder, "tapestry", name)
    return own if own.exists() and not service.exists() else service


def daemon_at_hand(environ: Mapping[str, str]) -> DaemonConfig:
    """As the usual file says; as built in, where it is not there, or not for this user to read. Raises ConfigFault."""
    return load_daemon(files_at(_readable(usual(environ))), environ, {}).config


def trainer_at_hand(environ: Mapping[str, str]) -> TrainerConfig:
    return trainer_at(_readable(usual(environ, "trainer.toml")), environ)


def trainer_at(file: Path | None, environ: Mapping[str, str]) -> TrainerConfig:
    return load_trainer(files_at(file), environ, {}).config


def _readable(file: Path) -> Path | None:
    return file if os.access(file, os.R_OK) else None


def of_trainer(name: str) -> bool:
    """TAPESTRY_TRAINER__CONFIG is the daemon's section "trainer"; TAPESTRY_TRAINER_DATA__PATHS is the trainer's own."""
    return name.startswith("TAPESTRY_TRAINER_") and not name.startswith("TAPESTRY_TRAINER__")


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as somebody wrote it. `origin` and `written` name the place and the key in that person's words."""

    origin: str
    written: str
    key: str
    value: object
    folder: Path

    def fault(self, sentence: str) -> str:
        return f"{self.origin}: {_word(self.written)} = {_shown(self.value)}: {sentence}"

    def read(self, setting: Setting) -> Any:
        """Raises ValueError."""
        value = from_text(setting.kind, str(self.value)) if self.origin in (_ENVIRONMENT, _COMMAND_LINE) else self.value
        value = convert(setting.kind, value, self.folder)
        return CHECKS[self.key](value, self.folder) if self.key in CHECKS else value


def _load(config: type[C], files: Sequence[Source], environ: Mapping[str, tuple[str, str]], flags: Mapping[str, str]) -> Loaded[C]:
    settings, faults, given = settings_of(config), list[str](), list[_Given]()
    here = Path.cwd()
    for source in files:
        given += _from_file(source, settings, faults, drop_in=source is not files[0])
    for name, (short, text) in sorted(environ.items()):
        given.append(_Given(_ENVIRONMENT, name, short.lower().replace("__", ".", 1), text, here))
    given += [_Given(_COMMAND_LINE, key, key, text, here) for key, text in flags.items()]
    given = _of_profile(config, given, here) + given
    values: dict[str, dict[str, Any]] = {section.name: {} for section in fields(config)}
    origins = dict.fromkeys(settings, BUILT_IN)
    for one in given:
        setting = settings.get(one.key)
        if setting is None:
            faults.append(one.fault(f"no such key{nearest(one.key, settings)}"))
            continue
        try:
            values[setting.section][setting.field] = one.read(setting)
            origins[one.key] = f"{_ENVIRONMENT} {one.written}" if one.origin == _ENVIRONMENT else one.origin
        except ValueError as wrong:
            faults.append(one.fault(str(wrong)))
    if faults:
        raise ConfigFault("\n".join(faults))
    tables: dict[str, Any] = {section.name: section.type for section in fields(config)}
    return Loaded(
        config(**{name: table(**values[name]) for name, table in tables.items()}), origins, tuple(source.path for source in files)
    )


def _of_profile(config: type, given: Sequence[_Given], folder: Path) -> list[_Given]:
    """The values of the profile that `given` chooses; one that does not exist is a fault by itself, and has none."""
    chosen = next((one.value for one in reversed(given) if one.key == "node.profile"), "none")
    profile = PROFILES.get(chosen) if isinstance(chosen, str) else None
    values = (profile.daemon if config is DaemonConfig else profile.trainer) if profile else {}
    return [_Given(f"profile {chosen}", key, key, value, folder) for key, value in values.items()]


def _from_file(source: Source, settings: Mapping[str, Setting], faults: list[str], *, drop_in: bool) -> list[_Given]:
    """The values in a file; what cannot be a setting at all goes to `faults`."""
    path = source.path
    if source.fault:
        faults.append(f"{path}: cannot be read ({source.fault}); name another file with --config, or copy the example from deploy/")
        return []
    try:
        if len(source.data) > _FILE_BYTES:
            raise ValueError(f"larger than {_FILE_BYTES} bytes")
        body = tomllib.loads(source.data.decode())
    except (ValueError, RecursionError) as error:
        faults.append(f"{path}: not a TOML file in UTF-8 ({str(error)[:200]}); correct it there")
        return []
    schema = body.pop("schema_version", SCHEMA if drop_in else None)
    if type(schema) is not int or schema != SCHEMA:
        said = "is missing" if schema is None else f"= {_shown(schema)} is not one this version reads"
        faults.append(f"{path}: schema_version {said}; the file must begin with schema_version = {SCHEMA}")
        return []
    sections = sorted({setting.section for setting in settings.values()})
    given = []
    for name, table in body.items():
        if isinstance(table, dict) and name in sections:
            given += [_Given(str(path), f"{name}.{key}", f"{name}.{key}", value, path.parent) for key, value in table.items()]
        elif isinstance(table, dict):
            faults.append(f"{path}: [{_word(name)}]: no such section{nearest(name, sections)}")
        elif name in sections:
            faults.append(f"{path}: {name} = {_shown(table)}: must be a section; write [{name}] on a line of its own")
        else:
            faults.append(f"{path}: {_word(name)} = {_shown(table)}: no such key outside a section{nearest(name, settings)}")
    return given


def nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant: "; did you mean …?", or the whole choice where nothing is near and the choice is short."""
    import difflib  # only a faulty file pays for it

    known = list(known)
    ends = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = ends or difflib.get_close_matches(name, known, 1, 0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return "; there are " + ", ".join(known if len(known) < 20 else sorted({key.partition(".")[0] + ".…" for key in known}))


def _word(key: str) -> str:
    """A key as written, which TOML lets be any text at all, on one line."""
    return key if key.isprintable() and len(key) <= 80 else repr(key[:60])


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "(too large to show)"
    return text if len(text) <= 80 else text[:77] + "…"
