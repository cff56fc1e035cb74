"""One setting at a time: what text and TOML become, and which values each key may have.

Knows kinds of values and the bounds of each key by its dotted name; nothing of files, precedence or the
dataclasses that config.py fills. Everything wrong is a ValueError whose sentence says what to do.
"""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols import limits
from protocols.identity import public_key
from protocols.refusal import Refused
from protocols.rules import Invite
from tapestryd.host.hours import Window
from tapestryd.profiles import PROFILES

SOCKET_PATH_BYTES = 107
"""Linux's sun_path holds 108 bytes with its closing zero."""
PAUSE_S = 366 * 86_400
"""What an operator asks for lasts no longer, unless it is for good."""
LEAST_BYTES = 256 * limits.KIB
"""So that each of those who are served at once still gets more than limits.IO_BYTES in IO_S."""
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}


def parse_duration(text: str) -> float:
    """ "90s", "10m", "1h30m" → seconds. Raises ValueError with a sentence."""
    if not re.fullmatch(r"(\d{1,9}(\.\d{1,9})?(ms|s|m|h|d))+", text, re.ASCII):
        raise ValueError('must be a duration; write it like "90s", "10m" or "1h30m"')
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h|d)", text))


def parse_size(text: str) -> int:
    """ "512 MiB", "1.5 GB", "0" → bytes. Raises ValueError with a sentence."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]i?B|B|)", text, re.ASCII)
    if not match:
        raise ValueError('must be a size; write it like "512 MiB" or "5 GiB"')
    return int(float(match[1]) * _UNITS_BYTES[match[2]])


def parse_share(text: str) -> float:
    """ "40%" → 0.4. Raises ValueError with a sentence."""
    if not re.fullmatch(r"\d{1,3}(\.\d{1,9})?%", text, re.ASCII) or float(text[:-1]) > 100:
        raise ValueError('must be a share from "0%" to "100%"; write it like "40%"')
    return float(text[:-1]) / 100


def endpoint(text: str) -> tuple[str, int]:
    """ "127.0.0.1:8470", "[::1]:8470" → (address, port). Raises ValueError with a sentence."""
    import ipaddress  # only who listens pays for it

    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
        if (address.version == 6) != (bare != host) or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
            raise ValueError
    except ValueError:
        raise ValueError('must be an IP address and a port; write it like "127.0.0.1:8470" or "[::1]:8470"') from None
    return bare, int(port)


_MUST = {
    "flag": "must be true or false",
    "whole": "must be a whole number, without quotes",
    "number": "must be a number, without quotes",
    "text": "must be text in quotes",
    "path": "must be a path in quotes",
    "texts": 'must be a list of text; write ["one", "two"]',
    "paths": 'must be a list of paths; write ["/one", "/two"]',
    "duration": 'must be a duration in quotes; write it like "90s" or "10m"',
    "size": 'must be a size in quotes; write it like "512 MiB" or "5 GiB"',
    "share": 'must be a share in quotes; write it like "40%"',
}


def from_text(kind: str, text: str) -> object:
    """What a file would hold for this text of the environment or the command line; text that does not fit stays text."""
    if kind == "flag":
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind == "whole" and re.fullmatch(r"-?\d{1,20}", text, re.ASCII):
        return int(text)
    if kind == "number" and re.fullmatch(r"\d{1,20}(\.\d{1,20})?(e-?\d{1,2})?", text, re.ASCII):
        return float(text)
    if kind in ("texts", "paths"):
        if text.startswith("["):  # for parts that hold commas
            with suppress(ValueError, RecursionError):
                return json.loads(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def convert(kind: str, value: object, folder: Path) -> Any:
    match kind, value:
        case "number", int() | float() if not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
        case ("flag", bool()) | ("whole", int()) if kind == "flag" or not isinstance(value, bool):
            return value
        case (("text" | "path" | "duration" | "size" | "share"), str()) if not value.isprintable():
            raise ValueError("must not hold control characters; retype it")
        case "text", str():
            return value
        case "path", str():
            return _path(value, folder)
        case "duration", str():
            return parse_duration(value)
        case "size", str():
            return parse_size(value)
        case "share", str():
            return parse_share(value)
        case (("texts" | "paths"), list()) if all(isinstance(item, str) for item in value):
            return tuple(convert(kind[:-1], item, folder) for item in value)
    raise ValueError(_MUST[kind])


def _path(text: str, folder: Path) -> Path:
    if not text or text.startswith("~"):
        raise ValueError("must be a path; write it out in full, ~ is not replaced")
    return folder / text


def written(kind: str, value: Any) -> Any:
    """What a file would say for this value: the inverse of `convert`, but that paths stay whole."""
    match kind:
        case "path":
            return str(value)
        case "paths" | "texts":
            return [str(item) for item in value]
        case "share":
            return f"{_plain(value * 100)}%"
        case "size":
            unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if value and value % _UNITS_BYTES[unit] == 0), "")
            return f"{value // _UNITS_BYTES[unit]} {unit}" if unit else str(value)
        case "duration":
            unit = next((unit for unit in ("d", "h", "m", "s") if value and value % _UNITS_S[unit] == 0), "s")
            return f"{_plain(value / _UNITS_S[unit])}{unit}"
    return value


def _plain(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Between:
    """A number from `low` to `high`; `unit` goes behind them in the sentence."""

    low: float
    high: float
    unit: str = ""

    def __call__(self, value: Any, folder: Path) -> Any:
        if not self.low <= value <= self.high:
            raise ValueError(f"must be from {self.low} to {self.high}{self.unit}")
        return value


@dataclass(frozen=True, slots=True)
class OneOf:
    choices: tuple[str, ...]

    def __call__(self, value: Any, folder: Path) -> Any:
        if value not in self.choices:
            raise ValueError(f"must be {', '.join(self.choices[:-1])} or {self.choices[-1]}")
        return value


def _like(pattern: str, must: str) -> Callable[[Any, Path], Any]:
    def check(value: Any, folder: Path) -> Any:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(must)
        return value

    return check


def _join(value: str, folder: Path) -> str:
    """An invite as it is, or the whole path of a run.toml that exists."""
    if value.startswith("tapestry:"):
        try:
            return str(Invite.parse(value))
        except Refused as refused:
            raise ValueError(f"{refused.detail}; copy the whole invite, or name a run.toml") from None
    if value and not os.path.isfile(folder / value):
        raise ValueError("is neither an invite (tapestry:…) nor a file that exists; give one of the two, or leave it empty")
    return str(folder / value) if value else ""


def _file(value: str, folder: Path) -> str:
    """The whole path of a file, or nothing."""
    if value and not os.path.isfile(folder / value):
        raise ValueError("is not a file that exists; name one, or leave it empty")
    return str(folder / value) if value else ""


def _delegation(value: str, folder: Path) -> str:
    """The whole path of a file, which may come later: a Member has to know this node before it delegates it."""
    path = folder / value
    if value and (path.is_dir() or not path.parent.is_dir()):
        raise ValueError("is not a file in a folder that exists; name where delegation.json is, or will be, or leave it empty")
    return str(path) if value else ""


def _socket(value: Path, folder: Path) -> Path:
    if len(os.fsencode(value)) > SOCKET_PATH_BYTES:
        raise ValueError(f"must be at most {SOCKET_PATH_BYTES} bytes long, a bound of unix sockets; choose a shorter path")
    return value


def _loopback(value: str, folder: Path) -> str:
    import ipaddress

    host, port = endpoint(value)
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(
            f"must be of this machine alone, such as 127.0.0.1:{port}; from elsewhere go through ssh: ssh -L {port}:127.0.0.1:{port} HOST"
        )
    return value


def _endpoint(value: str, folder: Path) -> str:
    if value:
        endpoint(value)
    return value


def _hosts(value: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name, re.ASCII):
            raise ValueError(f"{name[:80]!r} is not the name of a host in small letters, without a port; write it like dashboard.example")
    return value


def _limit(value: int, folder: Path) -> int:
    if 0 < value < LEAST_BYTES:
        raise ValueError('must be "0", for no limit, or at least "256 KiB": with less, transfers that share it would be given up')
    return value


def _hours(value: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    for text in value:
        Window.parse(text)
    return value


def _names(value: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    for name in value:
        if not name or "/" in name:
            raise ValueError(f"{name!r} is no name of a program; write it as `ps -e` shows it, without a path")
    return value


def _some(value: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
    if not value:
        raise ValueError("must name at least one file or folder")
    return value


def _peers(value: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    for text in value:
        try:
            public_key(text)
        except Refused as refused:
            raise ValueError(f"{refused.detail}; write whole peer ids, as `tapestry peers --json` shows them") from None
    return value


def _multiaddrs(least: int, *, port: bool = False, peer: bool = False) -> Callable[[Any, Path], Any]:
    """`port`: 0, which means any free port, is not allowed. `peer`: each must end in /p2p/<id>."""

    def check(value: tuple[str, ...], folder: Path) -> tuple[str, ...]:
        if not least <= len(value) <= limits.ADDRESSES:
            raise ValueError(f"must hold {least} to {limits.ADDRESSES} multiaddrs")
        for text in value:
            _multiaddr(text, port=port, peer=peer)
        return value

    return check


def _multiaddr(text: str, *, port: bool, peer: bool) -> None:
    from multiaddr import Multiaddr  # the CLI, which never checks addresses, must start fast

    try:
        parts: list[tuple[str, str]] = [(protocol.name, value or "") for protocol, value in Multiaddr(text).items()]
    except ValueError as error:
        raise ValueError(f"{text[:80]!r} is not a multiaddr ({str(error)[:120]}); write it like /ip4/192.0.2.7/tcp/31700") from None
    names = [name for name, _ in parts]
    if "tcp" not in names and not ("udp" in names and ("quic" in names or "quic-v1" in names)):
        raise ValueError(f"{text!r} has no transport that libp2p speaks; it needs /tcp/<port> or /udp/<port>/quic-v1")
    if port and any(name in ("tcp", "udp") and number == "0" for name, number in parts):
        raise ValueError(f"{text!r}: nobody can dial port 0; announce the port that others reach")
    if peer and names[-1] != "p2p":
        raise ValueError(f"{text!r} must end in /p2p/<peer id>, so that nobody else can answer in that peer's place")


CHECKS: dict[str, Callable[[Any, Path], Any]] = {
    "node.profile": OneOf(tuple(PROFILES)),
    "node.name": _like(rf".{{0,{limits.NAME_CHARS}}}", f"must be at most {limits.NAME_CHARS} characters"),
    "run.join": _join,
    "run.delegation": _delegation,
    "network.listen": _multiaddrs(1),
    "network.announce": _multiaddrs(0, port=True),
    "network.bootstrap": _multiaddrs(0, peer=True),
    "network.max_serve": _limit,
    "network.max_upload": _limit,
    "network.max_download": _limit,
    "network.metered": OneOf(("pause", "run")),
    "api.socket": _socket,
    "dashboard.listen": _loopback,
    "dashboard.allowed_hosts": _hosts,
    "dashboard.writes": OneOf(("token", "never")),
    "metrics.listen": _endpoint,
    "log.level": OneOf(("error", "warning", "info", "debug")),
    "log.format": OneOf(("auto", "text", "json")),
    "trainer.socket": _socket,
    "sandbox.method": OneOf(("auto", "systemd", "container", "namespaces", "none")),
    "storage.snapshot_every": Between(1, 1_000_000),
    "storage.keep_snapshots": Between(1, 1_000),
    "trust.score_disconnect": Between(-100, -1),
    "trust.score_ban": Between(-100, -1),
    "trust.score_halflife": Between(1, 366 * 86_400, " seconds"),
    "trust.ban_time": Between(1, 366 * 86_400, " seconds"),
    "trust.deny": _peers,
    "data.paths": _some,
    "data.text_field": _like(".+", "must name the field of a row that holds its text"),
    "data.seed": Between(0, (1 << 63) - 1),
    "data.exclude": _file,
    "compute.device": _like(r"auto|cpu|mps|cuda(:\d{1,3})?", "must be auto, cpu, cuda, cuda:N or mps"),
    "compute.threads": Between(0, 1024),
    "compute.precision": OneOf(("auto", "fp32", "bf16")),
    "evaluate.every": Between(0, 1_000_000),
    "evaluate.tokens": Between(1, 1 << 30),
    "release.min_steps": Between(0, 1_000_000),
    "release.min_examples": Between(0, 32_768),
    "release.delta_clip_norm": Between(0, 1e9),
    "release.delta_noise_std": Between(0, 1e6),
    "release.max_per_hour": Between(1, 100_000),
    "release.max_param_jump": Between(0.001, 1e6),
    "privacy.epsilon": Between(0, 100),
    "privacy.delta": Between(1e-15, 1e-3),
    "privacy.noise_multiplier": Between(0.3, 1000),
    "privacy.max_grad_norm": Between(1e-6, 1e6),
    "privacy.batch": Between(1, 1_000_000),
    "checkpoint.every": Between(1, 86_400, " seconds"),
    "schedule.hours": _hours,
    "schedule.when_user_active": OneOf(("run", "pause", "pause-gpu")),
    "schedule.idle_after": Between(1, 86_400, " seconds"),
    "schedule.on_battery": OneOf(("pause", "run")),
    "schedule.other_gpu_process": OneOf(("pause", "run")),
    "schedule.yield_to": _names,
    "schedule.resume_delay": Between(0, 86_400, " seconds"),
    "gpu.max_temperature": Between(0, 150, " °C"),
    "gpu.resume_temperature": Between(0, 150, " °C"),
}
