"""A joiner that has nothing but the invite: the run's rules and tokenizer, from whoever has them.

Knows nothing of bases, rounds or the trainer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from protocols.rules import RunRules
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.streams import Gone

log = logging.getLogger(__name__)

_PATIENCE_S = 30.0
"""Rules and tokenizer that take longer, then twice as long, and so on, are asked for anew, also of those who were not there yet."""


async def fetched(fetcher: Fetcher, look: Callable[[], Awaitable[None]], donors: Callable[[], Sequence[str]]) -> tuple[RunRules, bytes]:
    """Rules and tokenizer (empty: bytes), both checked. Asks until it has them. `look` brings `donors`, whom to ask, up to date."""
    said, patience_s = "", _PATIENCE_S
    while True:
        try:
            await look()
            there = donors()
            async with asyncio.timeout(patience_s):
                found = await fetcher.rules(there)
                return found, await fetcher.tokenizer(there, found.tokenizer.digest) if found.tokenizer.digest else b""
        except (Gone, TimeoutError) as error:
            patience_s *= 2 if isinstance(error, TimeoutError) else 1
            if (why := str(error) or "too slow") != said:
                said = why
                log.info("no rules yet, still asking: %s", said)
            await asyncio.sleep(1)
