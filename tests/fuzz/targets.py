"""Every parser of bytes that this process did not make itself, by name."""

from tests.fuzz.ledgers import LEDGERS
from tests.fuzz.machine import MACHINE
from tests.fuzz.target import Target
from tests.fuzz.wire import WIRE

TARGETS: dict[str, Target] = {**WIRE, **MACHINE, **LEDGERS}
