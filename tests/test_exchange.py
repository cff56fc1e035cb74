"""One round's numbers against plain numpy: means, coverage, what is owed, and what a hostile offer does (nothing)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.grouping import BITMAP_BYTES, in_bitmap
from protocols.refusal import Reason, Refused
from tapestryd.exchange import Exchange, assemble, offer_bytes, part_bytes
from tests.lineages import PEOPLE, exchanging, noise, reduced
from tests.people import roster, rules


def exchanges(
    members: int, *, fragments: int = 2, bits: int = 8, reducers: int = 0, fragment: int = 0, scale: float = 1e-2
) -> list[Exchange]:
    made = rules(fragments, bits)
    of = roster(PEOPLE[:members], fragment=fragment, run=made.run_id, reducers=reducers)
    size = made.layout().size(fragment)
    return exchanging(made, of, [noise(size, place, scale) for place in range(members)])


@pytest.mark.parametrize("members", [2, 3, 6])
@pytest.mark.parametrize("fragments", [1, 2, 4])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_all_come_to_the_same_bits(members: int, fragments: int, bits: int) -> None:
    for fragment in range(fragments):
        made = exchanges(members, fragments=fragments, bits=bits, fragment=fragment)
        blobs = reduced(made)
        means = [exchange.mean(blobs) for exchange in made]
        assert {coverage for _, coverage in means} == {1_000_000}
        assert len({mean.numpy().tobytes() for mean, _ in means}) == 1


@pytest.mark.parametrize("reducers", [1, 2, 4])
def test_at_32_bits_it_is_the_plain_mean(reducers: int) -> None:
    """The oracle knows nothing of parts, codecs and reducers: float64 sum in roster order, one division, one rounding."""
    made = exchanges(4, bits=32, reducers=reducers)
    total = np.zeros(made[0].offer.owed.numel(), dtype=np.float64)
    for exchange in made:
        total += exchange.offer.owed.numpy().astype(np.float64)
    mean, _ = made[0].mean(reduced(made))
    assert mean.numpy().tobytes() == (total / 4).astype(np.float32).tobytes()


def test_the_rules_say_how_offers_become_one() -> None:
    for kind in ("trimmed", "median"):
        made = rules(2, 32, aggregation=kind)
        of = roster(PEOPLE[:5], fragment=0, run=made.run_id)
        deltas = [noise(made.layout().size(0), place) for place in range(5)]
        exchanged = exchanging(made, of, deltas)
        mean, _ = exchanged[0].mean(reduced(exchanged))
        ranked = torch.stack(deltas).double().sort(dim=0).values
        assert torch.equal(mean, (ranked[2] if kind == "median" else ranked[1:4].mean(0)).float())


@settings(max_examples=40)
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=6), st.sampled_from(["clipped", "mean", "trimmed", "median"]),
    st.sampled_from(["uniform", "steps"]), st.sampled_from([4, 8, 32]), st.data(),
)  # fmt: skip
def test_honest_members_never_refuse_one_another(sizes: list[float], kind: str, weighting: str, bits: int, data: st.DataObject) -> None:
    """Deltas of lengths from 1e-4 to 1e4, whoever's are missing: every offer keeps to its claim, every part to its ceilings."""
    made = rules(2, bits, aggregation=kind, weighting=weighting, coverage="0")
    of = roster(PEOPLE[: len(sizes)], fragment=0, run=made.run_id)
    of = replace(of, claims=tuple(replace(claim, steps=data.draw(st.integers(1, 1000))) for claim in of.claims))
    exchanged = exchanging(made, of, [noise(made.layout().size(0), place, 10**size) for place, size in enumerate(sizes)])
    absent = {part: set(data.draw(st.lists(st.integers(1, len(sizes) - 1)))) for part in range(len(sizes))}
    mean, _ = exchanged[-1].mean(reduced(exchanged, absent))
    assert float(mean.abs().max()) > 0


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_clipped_a_huge_delta_counts_as_a_median_one(bits: int) -> None:
    made = rules(2, bits, aggregation="clipped")
    of = roster(PEOPLE[:5], fragment=0, run=made.run_id)
    deltas = [noise(made.layout().size(0), place, 1e-2) for place in range(5)]
    bound = float(torch.stack(deltas).norm(dim=1).median())
    honest, _ = (exchanged := exchanging(made, of, deltas))[0].mean(reduced(exchanged))
    for lie in (-10 * deltas[4], 1e6 * deltas[4], torch.zeros_like(deltas[4])):
        poisoned, _ = (exchanged := exchanging(made, of, [*deltas[:4], lie]))[0].mean(reduced(exchanged))
        codec = 0.0 if bits == 32 else 3 * 0.01 * 4 / (2 ** (bits - 1) - 1) * lie.numel() ** 0.5  # half a scale of 4 sigma, thrice
        assert float((poisoned - honest).norm()) <= 2 * bound / 5 * 1.05 + codec


@pytest.mark.parametrize(("bits", "top"), [(8, 127), (4, 7)])
def test_at_few_bits_it_is_the_mean_within_two_scales(bits: int, top: int) -> None:
    made = exchanges(4, bits=bits)
    mean, _ = made[0].mean(reduced(made))
    plain = torch.stack([exchange.offer.owed for exchange in made]).mean(0)
    worst = max(float(exchange.offer.owed.abs().max()) for exchange in made) / top
    assert float((mean - plain).abs().max()) <= worst * 1.01


def test_one_fragment_is_the_whole_vector() -> None:
    """F = 1 is the plain algorithm: the four fragments' means, side by side, are its mean where the layout is the same."""
    whole, quarters = rules(1, 32), rules(4, 32)
    assert sum(quarters.layout().size(f) for f in range(4)) == whole.layout().elements
    offsets = {span.name: (span.start, span.stop) for span in whole.layout().spans}
    for fragment in range(4):
        made = exchanges(3, fragments=4, bits=32, fragment=fragment)
        mean, _ = made[0].mean(reduced(made))
        start = quarters.layout().bounds[fragment][0]
        inside = [
            span
            for span in quarters.layout().spans
            if quarters.layout().bounds[fragment][0] <= span.start < quarters.layout().bounds[fragment][1]
        ]
        of = roster(PEOPLE[:3], fragment=0, run=whole.run_id)
        vectors = []
        for exchange in made:
            vector = torch.zeros(whole.layout().elements)
            for span in inside:
                a, b = offsets[span.name]
                vector[a:b] = exchange.offer.owed[span.start - start : span.stop - start]
            vectors.append(vector)
        plain = exchanging(whole, of, vectors)
        flat, _ = plain[0].mean(reduced(plain))
        for span in inside:
            a, b = offsets[span.name]
            assert torch.equal(flat[a:b], mean[span.start - start : span.stop - start])


# What is owed.


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([4, 8, 32]))
def test_the_residual_is_exact(data: st.DataObject, bits: int) -> None:
    """Where we are in the mean: owed - decoded, so nothing is lost but what one float32 subtraction rounds; else all of it."""
    made = exchanges(3, bits=bits)
    absent = {part: set(data.draw(st.lists(st.integers(0, 2), max_size=2))) for part in range(3)}
    blobs = reduced(made, absent)
    for place, exchange in enumerate(made):
        before = exchange.offer.owed.clone()
        offers = exchange.offers()
        left = exchange.residual(blobs)
        assert torch.equal(exchange.offer.owed, before)
        for part, (start, stop) in enumerate(exchange.slices):
            if place in absent[part]:
                assert torch.equal(left[start:stop], before[start:stop])
            elif bits == 32:
                assert not left[start:stop].any()
            else:
                reducer = made[exchange.roster.members.index(exchange.roster.reducers[part])]
                alone, _ = reducer.reduce(part, {place: offers[part]})  # its mean is what the others decoded, encoded again
                assert in_bitmap(alone[:BITMAP_BYTES], 3) == [place]
                sent = before[start:stop] - left[start:stop]
                scales = np.frombuffer(offers[part][: 4 * -(-(stop - start) // 64)], "<f4")
                body = np.frombuffer(offers[part], np.uint8, offset=4 * len(scales))
                halves = np.stack([body << 4, body & 0xF0], axis=1).reshape(-1).view(np.int8) >> 4
                codes = body.view(np.int8) if bits == 8 else halves[: stop - start]
                decoded = codes.astype(np.float32) * np.repeat(scales, 64)[: stop - start]
                assert left[start:stop].numpy().tobytes() == (before[start:stop].numpy() - decoded).tobytes()
                assert float((sent - torch.from_numpy(decoded)).abs().max()) <= 1e-8


@pytest.mark.parametrize(("bits", "top"), [(8, 127), (4, 7)])
def test_error_feedback_makes_up_for_the_codec(bits: int, top: int) -> None:
    """The same small delta every round: without what is owed, its least values would never arrive."""
    made = rules(1, bits)
    of = roster(PEOPLE[:2], fragment=0, run=made.run_id)
    size = made.layout().elements
    delta = noise(size, 5) * torch.logspace(-4, 0, size)
    total, owed = torch.zeros(size), torch.zeros(size)
    for _ in range(50):
        mine, other = exchanging(made, of, [delta + owed, torch.zeros(size)])
        blobs = reduced([mine, other])
        owed = mine.residual(blobs)
        total += mine.mean(blobs)[0] * 2
    assert float((total + owed - 50 * delta).abs().max()) < 50 * float(delta.abs().max()) * 1.27 / top
    assert float((total / 50 - delta).abs().max()) < float(delta.abs().max()) / top


# Coverage and refusals.


def test_coverage_below_the_rule_is_refused() -> None:
    made = exchanges(4, reducers=2)
    assert made[0].mean(reduced(made, {0: {1, 2}, 1: {0, 3}}))[1] == 500_000
    thin = reduced(made, {0: {1, 2, 3}, 1: {0, 3}})
    with pytest.raises(Refused) as refused:
        made[0].mean(thin)
    assert refused.value.reason is Reason.OUT_OF_RANGE
    assert made[0].thin(thin) == [0]


@pytest.mark.parametrize(
    "hostile",
    [b"", b"x", lambda size: bytes(size - 1), lambda size: bytes(size + 1), lambda size: b"\xff" * size, lambda size: b"\x80" * size],
    ids=["empty", "one", "short", "long", "nan", "-128"],
)
def test_a_hostile_offer_is_left_out_and_named(hostile: object) -> None:
    made = exchanges(3)
    start, stop = made[0].slices[0]
    size = offer_bytes(made[0].rules, stop - start)
    offers = {place: exchange.offers()[0] for place, exchange in enumerate(made)}
    blob, refused = made[0].reduce(0, {**offers, 1: hostile(size) if callable(hostile) else hostile})
    assert [place for place, _ in refused] == [1]
    assert in_bitmap(blob[:BITMAP_BYTES], 3) == [0, 2]
    assert blob == made[0].reduce(0, {0: offers[0], 2: offers[2]})[0]
    assert len(blob) == part_bytes(made[0].rules, stop - start)


def test_the_order_of_arrival_does_not_matter() -> None:
    made = exchanges(5, bits=32)
    offers = {place: exchange.offers()[0] for place, exchange in enumerate(made)}
    assert made[0].reduce(0, offers) == made[0].reduce(0, dict(reversed(offers.items())))


@given(st.lists(st.binary(max_size=80), min_size=2, max_size=2))
def test_hostile_parts_are_refused(blobs: list[bytes]) -> None:
    made = exchanges(2)
    with pytest.raises(Refused):
        made[0].mean(blobs)


def test_more_reducers_than_blocks() -> None:
    """Some parts are empty then; all the same everybody agrees."""
    base = rules(1)
    tiny = replace(base, model=replace(base.model, tensors=("a 70",)))
    of = roster(PEOPLE, fragment=0, run=tiny.run_id)
    made = exchanging(tiny, of, [noise(70, place) for place in range(len(of.members))])
    assert [stop - start for start, stop in made[0].slices] == [0, 0, 64, 0, 0, 6]
    blobs = reduced(made)
    mean, coverage = made[3].mean(blobs)
    assert coverage == 1_000_000
    assert torch.equal(assemble(tiny, made[0].roster, blobs)[0], mean)
    left = made[0].residual(blobs)
    assert float(left.abs().max()) < 1e-3


@settings(max_examples=60)
@given(st.lists(st.sampled_from([1, 1000, 10**9]), min_size=2, max_size=6), st.sampled_from([4, 8, 32]), st.integers(1, 700))
def test_a_reducer_far_slower_than_the_others_reduces_nothing(rates: list[int], bits: int, elements: int) -> None:
    """Wherever it stands in the roster, and wherever the last block ends."""
    made = rules(1, bits)
    made = replace(made, model=replace(made.model, tensors=(f"a {elements}",)))
    of = roster(PEOPLE[: len(rates)], fragment=0, run=made.run_id)
    of = replace(of, claims=tuple(replace(claim, rate=rate) for claim, rate in zip(of.claims, rates, strict=True)))
    exchanged = exchanging(made, of, [noise(elements, place) for place in range(len(rates))])
    blobs = reduced(exchanged)
    means = [exchange.mean(blobs) for exchange in exchanged]
    assert {coverage for _, coverage in means} == {1_000_000}
    assert len({mean.numpy().tobytes() for mean, _ in means}) == 1
    assert float(exchanged[0].residual(blobs).abs().max()) < 1e-2
