"""The Shared Base as it is now, in a folder of Hugging Face layout, with a model card that says how anyone can check it."""

import asyncio
import shutil
from pathlib import Path

from tapestryd import __version__
from tapestryd.errors import LocalFault
from tapestryd.session import Session
from tapestryd.training import model


async def exported(session: Session, folder: Path, peer_id: str) -> Path:
    """`folder`, which is replaced. `peer_id`: ours, for the card. Raises LocalFault before there is a base."""
    rules, copy = session.rules, await session.keeper.copy()
    if rules is None or copy is None:
        raise LocalFault("There is no base yet; try again when `tapestry status` shows one.")
    tip, theta = copy
    layout = session.keeper.base.layout
    tokenizer = session.store.path / "tokenizer.json"
    card = _CARD.format(
        name=rules.name, run=rules.run_id, height=tip.height, weight=tip.weight, base=tip.base, genesis=rules.model.genesis,
        round=session.history.rounds[-1].round if session.history.rounds else 0, peer=peer_id, version=__version__,
    )  # fmt: skip

    def build() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        model.export(
            folder, config=rules.model.config, theta=theta, layout=layout,
            tokenizer=tokenizer if tokenizer.exists() else None, card=card,
        )  # fmt: skip

    await asyncio.to_thread(build)
    return folder


_CARD = """---
library_name: transformers
tags: [tapestry, consortium-training]
---
# {name}: Shared Base at height {height}

The common model of a Tapestry run: trained by its peers together, each on its own data, which never left them.

| | |
|---|---|
| run | `{run}` |
| committed rounds (height) | {height} |
| latest round | {round} |
| contributions committed (weight) | {weight} |
| base digest | `{base}` |
| genesis digest | `{genesis}` |
| exported by | `{peer}`, tapestryd {version} |

Lineage: the base is a fold over the run's log. From genesis, each of the {height} log entries applied in order with the
run's outer optimizer gives exactly these weights; every entry carries the signed votes that committed it.
"""
