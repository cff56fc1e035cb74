"""This machine's choices. Two files, because the network side must not even read the data side's.

Precedence, last wins: built-in < file < environment (TAPESTRY_SECTION__KEY) < command line. Every fault is
reported, together, with its file, key and value. Run rules, which all peers must agree on, are not here.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """`name`: public label; empty shows the short peer id. `state_dir`: identity, snapshots, log; one daemon each."""

    name: str = ""
    state_dir: Path = Path("/var/lib/tapestry")


@dataclass(frozen=True, slots=True)
class RunChoice:
    """`join`: an invite, or the path of a run.toml with its genesis beside it; empty is idle until `tapestry run join`."""

    join: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """Multiaddrs. `announce` empty: discovered. `bootstrap`: peers to look for the run at, beside those of the invite."""

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/31700", "/ip6/::/tcp/31700")
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainerChoice:
    """`config`: the data side's own file; the daemon passes on its path and never opens it."""

    enabled: bool = True
    config: Path = Path("/etc/tapestry/trainer.toml")


@dataclass(frozen=True, slots=True)
class Api:
    socket: Path = Path("/run/tapestry/tapestryd.sock")


@dataclass(frozen=True, slots=True)
class Log:
    """`level`: error | warning | info | debug. `format`: auto | text | json."""

    level: str = "info"
    format: str = "auto"


@dataclass(frozen=True, slots=True)
class Storage:
    """A snapshot is written every `snapshot_every` commits and the newest `keep_snapshots` are kept, beside genesis.
    Below `min_free_bytes` of free disk nothing new is written and training pauses (reason disk_low)."""

    snapshot_every: int = 8
    keep_snapshots: int = 2
    min_free_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    node: Node = field(default_factory=Node)
    run: RunChoice = field(default_factory=RunChoice)
    network: Network = field(default_factory=Network)
    trainer: TrainerChoice = field(default_factory=TrainerChoice)
    api: Api = field(default_factory=Api)
    log: Log = field(default_factory=Log)
    storage: Storage = field(default_factory=Storage)


@dataclass(frozen=True, slots=True)
class Data:
    """`paths`: folders or files of .txt, .md, .jsonl, .parquet (also .gz, .zst). `text_field`: where a row keeps its text.
    Files named heldout.* are never trained on; where there are none, every 20th block of text is held out."""

    paths: tuple[Path, ...] = (Path("/srv/tapestry/data"),)
    text_field: str = "text"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Compute:
    """`device`: auto | cpu | cuda | cuda:N | mps. `threads` 0: all but one. `precision`: auto (bf16 on CUDA) | fp32 | bf16."""

    device: str = "auto"
    threads: int = 0
    precision: str = "auto"


@dataclass(frozen=True, slots=True)
class Evaluate:
    """The Shared Base is evaluated on held-out text every `every` commits (0: never), on at most `tokens` tokens."""

    every: int = 1
    tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Local progress (model, optimizer moments, data position): at most this many seconds of it die with a crash."""

    dir: Path = Path("/var/lib/tapestry-train")
    every_s: float = 60.0


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    data: Data = field(default_factory=Data)
    compute: Compute = field(default_factory=Compute)
    evaluate: Evaluate = field(default_factory=Evaluate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
