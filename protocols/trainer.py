"""The channel between daemon and trainer: fixed structs, enumerations instead of text, two shared vectors.

One AF_UNIX SOCK_SEQPACKET connection; every packet is one struct of exactly SIZE bytes (little-endian), so there is
nothing to frame and nothing to parse but numbers. With HELLO four memfds travel as SCM_RIGHTS: `params` (daemon writes,
trainer reads) and `delta` (trainer writes, daemon reads), 4 * n bytes of float32 each; the run rules and the tokenizer.
Each side copies out of shared memory into its own before it validates: a mapping can change after a check.

    daemon                                trainer
    HELLO abi n fragments layout_digest →
                                        ← READY abi n device precision optimizer
    BASE height fragment keep (params)  →          adopt; evaluate the Shared Base on held-out text
                                        ← EVALUATED height loss tokens
    TRAIN round height                  →          local steps until STOP
                                        ← BEAT steps tokens loss rate memory epsilon withheld (about twice a second)
    STOP round fragment                 →
                                        ← DELTA round fragment steps tokens examples loss norm ledger (delta)
                                        ← WITHHELD round fragment reason     (instead: the release rules forbid it)
    REST                                →          end local steps; nothing is written
    QUIT                                →          checkpoint and exit
                                        ← CHECKS held open                   (what of its box holds; at start and every hour)
                                        ← FAULT code                         (then exits)
                                        ← ENDED status                       (by the steward, when the process is gone)

On a channel of its own the steward itself says what it sees of its machine, whether a trainer runs or not:

    WATCH abi                           →
    AROUND input cpu                    →          (about every five seconds)
                                        ← HOLD holding over until measured limit  (of each that holds)
                                        ← HOLDS bits changes                      (these, and no others)
                                        ← GPU index count temperature util …      (of each)
Specified in trainer.md. Knows nothing of sockets.
"""

import math
import struct
from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from typing import ClassVar

from protocols import limits
from protocols.refusal import Reason, Refused

ABI = 2
SIZE = 96
ALL_FRAGMENTS = 0xFFFF
GPUS = 64


class Device(IntEnum):
    CPU = 0
    CUDA = 1
    ROCM = 2
    MPS = 3


class Precision(IntEnum):
    FP32 = 0
    BF16 = 1


class Optimizer(IntEnum):
    ADAMW8BIT = 0
    ADAMW = 1
    ADAMW_FALLBACK = 2
    """The rules ask for adamw8bit, but bitsandbytes does not work on this device: plain AdamW instead."""


class Code(IntEnum):
    """Why the trainer cannot go on. A code, never text: an exception's message can quote a row of the data."""

    INTERNAL = 1
    CONFIG = 2
    DATA_MISSING = 3
    DATA_UNREADABLE = 4
    DATA_EMPTY = 5
    DATA_TOO_SMALL = 6
    MODEL = 7
    TOKENIZER = 8
    LAYOUT = 9
    MEMORY = 10
    DEVICE = 11
    DISK_FULL = 12
    NOT_FINITE = 13
    CHANNEL = 14
    ISOLATION = 15
    DATA_FORBIDDEN = 16
    TIER = 17
    BUDGET = 18
    LEDGER = 19


class Withhold(IntEnum):
    """Why a delta was not released (the trainer's [release] rules); nothing of it crossed the channel."""

    FEW_STEPS = 1
    FEW_EXAMPLES = 2
    RATE = 3
    BUDGET = 4
    DISK_FULL = 5
    """What cannot be written down in the ledger does not leave."""


class Holding(IntEnum):
    """Why the data side's policy holds training, by bit number in HOLDS. What each means is in trainer.md."""

    SCHEDULE = 0
    USER_ACTIVE = 1
    EXCLUSIVE_APP = 2
    OTHER_GPU_PROCESS = 3
    CPU_LOAD = 4
    BATTERY = 5
    GPU_TEMPERATURE = 6


class Check(IntEnum):
    """What the data side tries at start and every hour, by bit number in CHECKS. What each means is in trainer.md."""

    INTERFACES = 0
    SOCKETS = 1
    IO_URING = 2
    DESCRIPTORS = 3
    NETWORK_SIDE = 4
    MEMORY = 5
    PRIVILEGES = 6
    WRITES = 7


@dataclass(frozen=True, slots=True)
class Hello:
    FORMAT: ClassVar[str] = "<HHQ32s"
    abi: int
    fragments: int
    elements: int
    layout: bytes


@dataclass(frozen=True, slots=True)
class Base:
    """`params` now holds fragment `fragment` (or all) of the base at `height`. `keep`: the change since the last
    base is laid on top of local values instead of replacing them (local progress survives a catch-up)."""

    FORMAT: ClassVar[str] = "<QH?"
    height: int
    fragment: int
    keep: bool


@dataclass(frozen=True, slots=True)
class Train:
    FORMAT: ClassVar[str] = "<QQ"
    round: int
    height: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End local steps and write the delta of `fragment`."""

    FORMAT: ClassVar[str] = "<QH"
    round: int
    fragment: int


@dataclass(frozen=True, slots=True)
class Rest:
    """End local steps. No delta is wanted, and none is written."""

    FORMAT: ClassVar[str] = "<"


@dataclass(frozen=True, slots=True)
class Quit:
    FORMAT: ClassVar[str] = "<"


@dataclass(frozen=True, slots=True)
class Ready:
    FORMAT: ClassVar[str] = "<HQBBB"
    abi: int
    elements: int
    device: int
    precision: int
    optimizer: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Totals since the trainer's first start (they survive restarts); `loss` is a running mean in nats per token. `epsilon`:
    privacy spent of all data sets together, 0 without differential privacy; with it no loss is told (0), here or elsewhere, and
    counts are of what is expected. `withheld`: deltas that the release rules kept."""

    FORMAT: ClassVar[str] = "<QQddQdQ"
    steps: int
    tokens: int
    loss: float
    tokens_per_s: float
    memory_bytes: int
    epsilon: float
    withheld: int


@dataclass(frozen=True, slots=True)
class Delta:
    """`delta` holds theta - local of `fragment`. `steps`, `tokens`, `loss`: since the last DELTA; `examples`: distinct windows' worth
    of text behind the vector; `norm` is L2. `entry` and `chain` (SHA-256): the ledger's entry of this release, to be remembered."""

    FORMAT: ClassVar[str] = "<QHQQQddQ32s"
    round: int
    fragment: int
    steps: int
    tokens: int
    examples: int
    loss: float
    norm: float
    entry: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Withheld:
    """STOP's other answer: local progress stays, nothing of it is released."""

    FORMAT: ClassVar[str] = "<QHB"
    round: int
    fragment: int
    reason: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Mean held-out loss (nats per token) of the Shared Base at `height` on this node's held-out text."""

    FORMAT: ClassVar[str] = "<QdQ"
    height: int
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Checks:
    """Bit sets of Check: what was tried and is impossible, as it should be; what was tried and is not. Neither: not tried."""

    FORMAT: ClassVar[str] = "<II"
    held: int
    open: int


@dataclass(frozen=True, slots=True)
class Fault:
    FORMAT: ClassVar[str] = "<H"
    code: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The last packet, from the steward: the trainer's exit status (negative: minus the signal that ended it)."""

    FORMAT: ClassVar[str] = "<i"
    status: int


@dataclass(frozen=True, slots=True)
class Watch:
    """The first packet of a channel on which no trainer, but the steward answers."""

    FORMAT: ClassVar[str] = "<H"
    abi: int


@dataclass(frozen=True, slots=True)
class Around:
    """What the data side cannot see of its machine: when somebody last was at a desktop (Unix time; 0: not known), and the CPU time
    that the network side has used in all, so that it is not taken for others'."""

    FORMAT: ClassVar[str] = "<QQ"
    input_ms: int
    cpu_ms: int


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason not to train. `over`: its cause is gone, and has to stay away. `until_ms`: Unix time at which it ends, as things stand;
    0: nobody knows. `measured` against `limit`, in the unit of its reason; UNKNOWN: no number."""

    FORMAT: ClassVar[str] = "<B?Qdd"
    holding: int
    over: bool
    until_ms: int
    measured: float
    limit: float


@dataclass(frozen=True, slots=True)
class Holds:
    """All that holds now, `bits` of Holding; of each a HOLD came before. `changes_ms`: when that will be others, as things stand."""

    FORMAT: ClassVar[str] = "<IQ"
    bits: int
    changes_ms: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """The `index`th of `count` that the policy looks at. Shares of time are from 0 to 1; UNKNOWN, and 0 bytes: not known."""

    FORMAT: ClassVar[str] = "<BBdddQQid"
    index: int
    count: int
    temperature_c: float
    util: float
    power_w: float
    memory_used_bytes: int
    memory_bytes: int
    others: int
    others_util: float


UNKNOWN = -1.0

Order = Hello | Base | Train | Stop | Rest | Quit
Report = Ready | Beat | Delta | Withheld | Evaluated | Checks | Fault | Ended
Sight = Hold | Holds | Gpu
Message = Order | Report | Watch | Around | Sight

_KINDS: tuple[type[Message], ...] = (
    Hello, Base, Train, Stop, Quit, Ready, Beat, Delta, Evaluated, Fault, Withheld, Checks, Rest, Ended, Watch, Around, Hold, Holds, Gpu,
)  # fmt: skip
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_ENUMS: dict[str, type[IntEnum]] = {
    "device": Device, "precision": Precision, "optimizer": Optimizer, "code": Code, "reason": Withhold, "holding": Holding,
}  # fmt: skip


def pack(message: Message) -> bytes:
    """SIZE bytes: one byte for the kind, the struct, zeros."""
    body = struct.pack(message.FORMAT, *astuple(message))
    return (bytes([_NUMBERS[type(message)]]) + body).ljust(SIZE, b"\0")


def unpack(packet: bytes) -> Message:
    """Parse one packet. Raises Refused for a wrong size, an unknown kind, a number out of its enumeration or bit set, a non-finite
    loss or norm, a time beyond limits.INTEGER, a GPU beyond their count, an entry that no ledger has, a flag that is neither 0 nor 1,
    or anything but zeros behind the struct."""
    if len(packet) != SIZE or packet[0] >= len(_KINDS):
        raise Refused(Reason.MALFORMED, "no packet of the trainer channel")
    kind = _KINDS[packet[0]]
    values = struct.unpack_from(kind.FORMAT, packet, 1)
    for field, value in zip(fields(kind), values, strict=True):
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(Reason.NOT_FINITE, f"{kind.__name__}.{field.name}")
        if field.name.endswith("_ms") and value > limits.INTEGER:
            raise Refused(Reason.OUT_OF_RANGE, f"{kind.__name__}.{field.name} = {value}")
        if field.name in _ENUMS and value not in set(_ENUMS[field.name]):
            raise Refused(Reason.OUT_OF_RANGE, f"{kind.__name__}.{field.name} = {value}")
    message = kind(*values)
    if isinstance(message, Checks) and (message.held & message.open or (message.held | message.open) >> len(Check)):
        raise Refused(Reason.OUT_OF_RANGE, f"{message}")
    if isinstance(message, Holds) and message.bits >> len(Holding):
        raise Refused(Reason.OUT_OF_RANGE, f"{message}")
    if isinstance(message, Gpu) and not message.index < message.count <= GPUS:
        raise Refused(Reason.OUT_OF_RANGE, f"{message}")
    if isinstance(message, Delta) and not 0 < message.entry <= limits.INTEGER:
        raise Refused(Reason.OUT_OF_RANGE, f"Delta.entry = {message.entry}")
    if pack(message) != packet:
        raise Refused(Reason.MALFORMED, f"{kind.__name__}: bytes behind the struct, or a flag that is neither 0 nor 1")
    return message
