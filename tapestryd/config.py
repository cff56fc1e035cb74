"""This machine's choices, and their built-in values. Two files, because the network side must not even read the data side's.

Run rules, which all peers must agree on, are not here; nor is how files and other layers become these (layers.py).
"""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """`profile`: values for a kind of machine, beneath all that is set otherwise (profiles.py). `name`: public label; empty shows the
    short peer id. `state_dir`: identity, snapshots, log; one daemon each."""

    profile: str = "none"
    name: str = ""
    state_dir: Path = Path("/var/lib/tapestry")


@dataclass(frozen=True, slots=True)
class RunChoice:
    """`join`: an invite, or the path of a run.toml with its genesis beside it; empty is idle until `tapestry run join`.
    `delegation`: in roster mode the file that a Member's `tapestry member delegate` wrote; it is read again while we run."""

    join: str = ""
    delegation: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """Multiaddrs. `announce` empty: discovered. `bootstrap`: peers to look for the run at, beside those of the invite.
    `max_serve_bytes`: a second, to all who catch up from us together; 0: no limit. Rounds are never held back by it.
    `max_upload_bytes`, `max_download_bytes`: a second on the wire, of everything; 0: no limit. Lower leaves the line to others;
    a round whose vectors do not get through in its average window is lost to us. `lan_exempt`: private networks do not count.
    `transfer_cap_bytes`: a calendar month (UTC), both ways, with all peers, as `tapestry audit` counts it: some percent less than on
    the wire; then nothing is trained until the next. 0: none. `metered`: pause | run, while NetworkManager says that the network costs
    by the byte."""

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/31700", "/ip6/::/tcp/31700")
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    max_serve_bytes: int = 0
    max_upload_bytes: int = 0
    max_download_bytes: int = 0
    lan_exempt: bool = False
    transfer_cap_bytes: int = 0
    metered: str = "pause"


@dataclass(frozen=True, slots=True)
class TrainerChoice:
    """`socket`: where the data side listens. `config`: its own file, which the network side never opens."""

    enabled: bool = True
    socket: Path = Path("/run/tapestry/trainer.sock")
    config: Path = Path("/etc/tapestry/trainer.toml")


@dataclass(frozen=True, slots=True)
class Api:
    socket: Path = Path("/run/tapestry/tapestryd.sock")


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`listen`: a loopback address and a port; port 0: any free one, which `tapestry dashboard --print` tells. Whoever can connect
    there may read; with `enabled` false nobody can. `allowed_hosts`: names under which a browser may ask for the page, beside
    IP addresses. `writes`: token (with a link that `tapestry dashboard` makes) | never."""

    enabled: bool = True
    listen: str = "127.0.0.1:8470"
    allowed_hosts: tuple[str, ...] = ("localhost",)
    writes: str = "token"


@dataclass(frozen=True, slots=True)
class Metrics:
    """`listen`: an address and a port for Prometheus, of /metrics alone, which all who can connect there may read; empty: only the
    dashboard's. `per_peer`: also series that name peers, several for each, which Prometheus keeps for as long as all others."""

    listen: str = "127.0.0.1:9470"
    per_peer: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """`level`: error | warning | info | debug. `format`: auto | text | json."""

    level: str = "info"
    format: str = "auto"


@dataclass(frozen=True, slots=True)
class Storage:
    """A snapshot is written every `snapshot_every` commits and the newest `keep_snapshots` are kept, beside genesis.
    Below `min_free_bytes` of free disk this node pauses (reason disk_low)."""

    snapshot_every: int = 8
    keep_snapshots: int = 2
    min_free_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Trust:
    """The score of a peer goes from 0 down to -100 with its faults, and halves every `score_halflife_s`. At
    `score_disconnect` its connection is dropped and it is no donor for us; at `score_ban` it is banned for `ban_time_s`.
    Lower scores bear with more, shorter times forget faster. `deny`: peer ids that are banned for good."""

    score_disconnect: int = -20
    score_ban: int = -50
    score_halflife_s: float = 600.0
    ban_time_s: float = 43_200.0
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """`method`: systemd (the units do it) | container (one for each side does) | namespaces (we do) | none | auto (namespaces; none where
    there can be none, and it is not required). `require`: with a wall that does not hold, end (78). `read`: more files and folders that
    the network side may read."""

    method: str = "auto"
    require: bool = True
    read: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    node: Node = field(default_factory=Node)
    run: RunChoice = field(default_factory=RunChoice)
    network: Network = field(default_factory=Network)
    trainer: TrainerChoice = field(default_factory=TrainerChoice)
    api: Api = field(default_factory=Api)
    dashboard: Dashboard = field(default_factory=Dashboard)
    metrics: Metrics = field(default_factory=Metrics)
    log: Log = field(default_factory=Log)
    storage: Storage = field(default_factory=Storage)
    trust: Trust = field(default_factory=Trust)
    sandbox: Box = field(default_factory=Box)


@dataclass(frozen=True, slots=True)
class Machine:
    """`profile`: as for the network side, whose file the data side does not see."""

    profile: str = "none"


@dataclass(frozen=True, slots=True)
class Data:
    """`paths`: folders or files of .txt, .md, .jsonl, .parquet (also .gz, .zst). `text_field`: where a row keeps its text.
    Files named heldout.* are never trained on; where there are none, every 20th block of text is held out.
    `require_manifest` false: data that nobody declared (`tapestry data add`) is taken as fully-open, and the log says so; true: it
    is refused. `exclude`: a list of protected text, as `tapestry data protect` makes; documents that quote it are left out."""

    paths: tuple[Path, ...] = (Path("/srv/tapestry/data"),)
    text_field: str = "text"
    seed: int = 0
    require_manifest: bool = False
    exclude: str = ""


@dataclass(frozen=True, slots=True)
class Compute:
    """`device`: auto | cpu | cuda | cuda:N | mps. `threads` 0: all but one. `precision`: auto (bf16 on CUDA) | fp32 | bf16."""

    device: str = "auto"
    threads: int = 0
    precision: str = "auto"

    @property
    def cores(self) -> int:
        """As many threads as `threads` comes to here."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) - 1)


@dataclass(frozen=True, slots=True)
class Evaluate:
    """The Shared Base is evaluated on held-out text every `every` commits (0: never), on at most `tokens` tokens."""

    every: int = 1
    tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Local progress (model, optimizer moments, data position) is saved where training begins anew, `every_s` after the last time or later,
    and so seldom that it takes a twentieth of the time at most. What was made since dies with a crash."""

    dir: Path = Path("/var/lib/tapestry-train")
    every_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Release:
    """What a vector must be to leave this machine; protocols/ledger.md says what each is worth. What is withheld is not lost:
    it stays in the local model, and in the vector of the fragment's next turn.

    `min_steps`, `min_examples`: local steps, and distinct windows' worth of text, behind a vector. More: each row's part in it is
    smaller; but a slow machine, or one of little text, is withheld in some rounds, and takes no part in those. 0: off.
    `delta_clip_norm`: L2 norm that a vector is shortened to, 0: off. Below what `tapestry audit` shows as usual, less is learned.
    `delta_noise_std`: of the normal noise in each element, as a share of that norm, so it needs one; 0: off. A vector of n
    elements gets a noise of norm delta_noise_std * delta_clip_norm * sqrt(n), and what others learn from it suffers accordingly.
    `max_per_hour`: vectors, of all runs together; a round more often than that is withheld. Rounds of 60 s need 60.
    `max_param_jump`: a base further from the last one than so many of its norms ends the trainer; no outer step does that. Less
    leaves whoever would make the model tell its data less room, but what a catch-up brings may then be refused, too.
    """

    min_steps: int = 32
    min_examples: int = 256
    delta_clip_norm: float = 0.0
    delta_noise_std: float = 0.0
    max_per_hour: int = 60
    max_param_jump: float = 10.0


@dataclass(frozen=True, slots=True)
class Privacy:
    """Differential privacy for data sets of tier 2; DATA.md says what is hidden, and what is not.

    `epsilon`: the budget, of all data of this machine together, for good, at `delta`; 0: none, and tier 2 is refused. Each doubling
    lets whoever sees what leaves square the odds by which they tell that a record was there. `delta`: the chance that it is worse; must be
    below one in the number of records.
    `noise_multiplier`: noise of each step, in units of `max_grad_norm`. More: less is spent by a step, and less is learned from it.
    `max_grad_norm`: what each record's gradient is shortened to. Less: less noise, and a gradient that is less like the true one.
    `batch`: records expected in a step. More: the noise weighs less, a step takes longer, and costs more of the budget.
    """

    epsilon: float = 0.0
    delta: float = 1e-6
    noise_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    batch: int = 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """When this machine trains; each key by itself may hold it. `hours`: local time, "mon-fri 18:00-08:00"; empty: any.
    `when_user_active`: run | pause | pause-gpu (only where we train on a GPU); `idle_after_s` without input nobody is there.
    `on_battery`: pause | run, then down to `battery_min_share`. `other_gpu_process`: pause | run; `other_gpu_util_share`: of a GPU that
    others may use before that counts; 0: whoever computes on it counts. `yield_to`: names of programs that always come first.
    `resume_delay_s`: what comes and goes has to stay away for so long. Longer: fewer starts, each of which loads the model anew;
    shorter: back sooner."""

    hours: tuple[str, ...] = ()
    when_user_active: str = "run"
    idle_after_s: float = 180.0
    on_battery: str = "pause"
    battery_min_share: float = 0.0
    other_gpu_process: str = "pause"
    other_gpu_util_share: float = 0.0
    yield_to: tuple[str, ...] = ()
    resume_delay_s: float = 120.0


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """°C. At `max_temperature` training pauses until the GPU is down to `resume_temperature`; 0: never."""

    max_temperature: float = 83.0
    resume_temperature: float = 75.0


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """`max_load_share`: of all processors that others may use before training pauses; 0: any."""

    max_load_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Required:
    """`require`: with a wall of the data side's box that does not hold, end (78) before any text is opened."""

    require: bool = True


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    node: Machine = field(default_factory=Machine)
    data: Data = field(default_factory=Data)
    compute: Compute = field(default_factory=Compute)
    evaluate: Evaluate = field(default_factory=Evaluate)
    release: Release = field(default_factory=Release)
    privacy: Privacy = field(default_factory=Privacy)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    schedule: Schedule = field(default_factory=Schedule)
    gpu: GpuLimits = field(default_factory=GpuLimits)
    cpu: CpuLimits = field(default_factory=CpuLimits)
    sandbox: Required = field(default_factory=Required)


_KINDS: dict[Any, str] = {
    bool: "flag",
    int: "whole",
    str: "text",
    Path: "path",
    tuple[str, ...]: "texts",
    tuple[Path, ...]: "paths",
    float: "number",
}
_SUFFIXES = {"_bytes": "size", "_share": "share", "_s": "duration"}
"""Of fields whose keys are written with a unit, and are called without it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How one key of a file fills one field: "storage.min_free", a size, fills Storage.min_free_bytes, which is `default` otherwise."""

    section: str
    field: str
    kind: str
    default: Any


def settings_of(config: type) -> dict[str, Setting]:
    """Every key that a file of this config may have, as "section.key"."""
    found = {}
    for section in fields(config):
        table: Any = section.type
        for item in fields(table):
            suffix = next((suffix for suffix in _SUFFIXES if item.name.endswith(suffix)), "")
            key, kind = item.name.removesuffix(suffix), _SUFFIXES.get(suffix) or _KINDS[item.type]
            found[f"{section.name}.{key}"] = Setting(section.name, item.name, kind, item.default)
    return found
