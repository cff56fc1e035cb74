"""What a liar costs the others: DiLoCo by seven honest members on seven texts, and an eighth that lies, with the production
arithmetic from local step to next base. `pytest -m slow -s tests/hostile/test_loss.py` prints the table."""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from protocols.grouping import Roster, order
from protocols.refusal import Refused
from protocols.rules import Codec, RunRules
from tapestryd.base import SharedBase
from tapestryd.exchange import Exchange, Offer
from tapestryd.training import model as models
from tapestryd.training.data import Corpus
from tapestryd.training.diloco import Replica, Where
from tests.living import corpora
from tests.people import RATE, Person
from tests.training.tiny import genesis, opened, rules, write_text

HONEST = 7
ROUNDS = 20
STEPS = 10
HELD_OUT = 4096
BOUND = 1.015

MEMBERS = [Person(f"region{number}") for number in range(HONEST + 1)]
"""The last one is the liar."""


@dataclass(frozen=True)
class Lie:
    """`delta`: from the honest deltas of this round, which the liar knows, (7, n_f), to its own; `bent`: what becomes of its
    encoded parts; `claimed`: what it claims in place of the truth."""

    name: str
    delta: Callable[[Tensor], Tensor]
    bent: Callable[[bytes], bytes] = bytes
    claimed: Callable[[Tensor], Tensor] | None = None


def own(deltas: Tensor) -> Tensor:
    """As if it had trained: what one of the others learned."""
    return deltas[0]


LIES = [
    Lie("NaN", own, bent=lambda part: struct.pack("<f", math.nan) + part[4:]),
    Lie("huge, claimed small", lambda deltas: own(deltas) * 1e30, claimed=own),
    Lie("huge", lambda deltas: own(deltas) * 1e30),
    Lie("zero", lambda deltas: own(deltas) * 0),
    Lie("sign-flipped x1", lambda deltas: -own(deltas)),
    Lie("sign-flipped x10", lambda deltas: -10 * own(deltas)),
    Lie("sign-flipped x10, claimed x1", lambda deltas: -10 * own(deltas), claimed=own),
    Lie("against the mean", lambda deltas: -1e3 * deltas.mean(0)),
    Lie("noise", lambda deltas: torch.randn(deltas.shape[1], generator=torch.Generator().manual_seed(5))),
]


class Region:
    """An honest member: text and model of its own."""

    def __init__(self, made: RunRules, corpus: Corpus, seed: int) -> None:
        layout = made.layout()
        self.replica = Replica(
            models.fresh(made.model.config, 0), layout, made.inner, corpus, where=Where(torch.device("cpu"), False), seed=seed
        )
        self.owed = torch.zeros(layout.elements)


def texts(folder: Path) -> list[Corpus]:
    """Seven: six languages and English where those are at hand, else seven parts of the same book."""
    at = corpora()
    folders = sorted(path for path in at.iterdir() if path.is_dir())[: HONEST - 1] if at else []
    prose = (write_text(folder / "prose", 1_000_000) / "topics.txt").read_text()
    share = len(prose) // (HONEST - len(folders))
    for number in range(HONEST - len(folders)):
        folders.append(folder / f"part{number}")
        folders[-1].mkdir()
        (folders[-1] / "text.txt").write_text(prose[number * share : (number + 1) * share])
    found = []
    for number, path in enumerate(folders):
        found.append(opened([path], folder / "cache", 32, number))
    return found


def run(texts: Sequence[Corpus], aggregation: str, lie: Lie | None) -> float:
    """The honest regions' mean held-out loss, in nats per token, after ROUNDS rounds; inf if nothing finite was left to send."""
    made = rules("llama", 2, optimizer="adamw", warmup_rounds=4, decay_rounds=200)
    made = replace(made, codec=Codec(4, 4, 64), averaging=replace(made.averaging, aggregation=aggregation))
    layout = made.layout()
    base = SharedBase(made, layout)
    base.theta.copy_(genesis("llama", 2))
    base.pairs = base.digests(base.theta, base.velocity)
    regions = [Region(made, corpus, number) for number, corpus in enumerate(texts)]
    for number in range(ROUNDS):
        fragment = number % 2
        here = base.slice(fragment)
        for region in regions:
            for _ in range(STEPS):
                region.replica.step(number)
        owed = [region.replica.delta(fragment) + region.owed[here] for region in regions]
        try:
            step = base.next(fragment, averaged(made, number, owed, regions, here, lie))
        except Refused:
            return math.inf
        base.theta[here], base.velocity[here] = step.theta, step.velocity
        for region in regions:
            region.replica.adopt(fragment, step.theta, keep=False)
    losses = [found[0] for region in regions if (found := region.replica.evaluate(HELD_OUT))]
    assert len(losses) == HONEST
    return sum(losses) / HONEST


def averaged(made: RunRules, number: int, owed: Sequence[Tensor], regions: Sequence[Region], here: slice, lie: Lie | None) -> Tensor:
    """One round of Offer, Claim, Roster and Exchange, as on the wire but for the wire. Refused: nobody could go on."""
    offers = [Offer(made, delta) for delta in owed]
    claims = [offer.claim(STEPS, RATE) for offer in offers]
    if lie is not None:
        delta = lie.delta(torch.stack(list(owed)))
        offers.append(Offer(made, delta))
        claims.append((Offer(made, lie.claimed(torch.stack(list(owed)))) if lie.claimed else offers[-1]).claim(STEPS, 0))
    by_peer = {person.peer: (offer, claim) for person, offer, claim in zip(MEMBERS, offers, claims, strict=False)}
    members = order(made.run_id, number, by_peer)
    roster = Roster(made.run_id, number, number % 2, "00" * 32, tuple(members), tuple(by_peer[peer][1] for peer in members))
    exchanges = [Exchange(made, roster, peer, by_peer[peer][0]) for peer in members]
    sent = []
    for peer, exchange in zip(members, exchanges, strict=True):
        parts = exchange.offers()
        sent.append([lie.bent(part) for part in parts] if lie and peer == MEMBERS[-1].peer else parts)
    blobs = []
    for part, reducer in enumerate(roster.reducers):
        blob, _ = exchanges[members.index(reducer)].reduce(part, {place: sent[place][part] for place in range(len(members))})
        blobs.append(blob)
    mean, _ = exchanges[members.index(MEMBERS[0].peer)].mean(blobs)
    for person, region in zip(MEMBERS, regions, strict=False):
        region.owed[here] = exchanges[members.index(person.peer)].residual(blobs)
    return mean


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_honest_loss(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # of so small a model, two threads take three times as long
    ours = texts(tmp_path)
    alone = {kind: run(ours, kind, None) for kind in ("clipped", "mean")}
    print(f"\nhonest held-out loss after {ROUNDS} rounds of {STEPS} steps, {HONEST} honest members and one liar")
    print(f"{'attack':32}{'clipped':>9}{'ratio':>8}{'mean':>12}{'ratio':>8}")
    print(f"{'(nobody lies)':32}{alone['clipped']:9.4f}{1:8.4f}{alone['mean']:12.4f}{1:8.4f}", flush=True)
    ratios = {}
    for lie in LIES:
        loss = {kind: run(ours, kind, lie) for kind in ("clipped", "mean")}
        ratios[lie.name] = loss["clipped"] / alone["clipped"]
        print(
            f"{lie.name:32}{loss['clipped']:9.4f}{ratios[lie.name]:8.4f}{loss['mean']:12.4g}{loss['mean'] / alone['mean']:8.4f}", flush=True
        )
    assert max(ratios.values()) <= BOUND, ratios
