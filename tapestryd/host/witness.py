"""What the network side remembers of the data side's ledger, in witness.json of the state directory (protocols/ledger.md).

A ledger cannot show that its end was cut off; whoever was told where it was can. Knows nothing of the ledger's files, which
this side may not read: `tapestry audit --verify`, run by who may, compares the two.
"""

import logging
import threading
from pathlib import Path

from protocols.ledger import HEADS_BYTES, Heads
from protocols.refusal import Refused
from tapestryd.errors import DiskFull
from tapestryd.host.files import set_aside, write

log = logging.getLogger(__name__)


class Witness:
    """`trouble`: a sentence, once the ledger was seen to go back; ""."""

    def __init__(self, path: Path) -> None:
        """One that cannot be read is begun anew: what is lost with it is a comparison, no entry."""
        self.trouble = ""
        self._path = path
        self._heads = Heads()
        self._writing = threading.Lock()
        try:
            with path.open("rb") as file:
                self._heads = Heads.parse(file.read(HEADS_BYTES + 1))
        except FileNotFoundError:
            pass
        except Refused as refused:
            set_aside(path, refused.detail)

    def saw(self, number: int, chain: bytes) -> None:
        """A vector came, with its place in the ledger."""
        last = max((known for known, _ in self._heads.heads), default=0)
        if number <= last:
            self.trouble = (
                f"the trainer's ledger was at entry {last} and is at {number}: it was cut, or begun anew; tapestry audit --verify says more"
            )
            log.error("%s", self.trouble)
        self._heads = self._heads.with_(number, chain.hex())

    def keep(self) -> None:
        """Write what was seen to disk; for a thread. A disk that is full keeps what was there."""
        with self._writing:
            try:
                write(self._path, self._heads.to_bytes())
            except (DiskFull, OSError) as error:
                log.error("where the ledger is, is not kept: %s", error)
