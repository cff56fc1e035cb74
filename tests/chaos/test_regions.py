"""Four regions, four languages, twenty rounds and more; then a fifth machine, a kill and a farewell. Prints what it measured.

    pytest -m 'slow and root' -s tests/chaos/test_regions.py
Each daemon is on a machine of its own: a network namespace with an address on one bridge.
"""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from protocols.rules import RunRules
from tapestryd.training import model
from tapestryd.training.data import Corpus
from tapestryd.training.diloco import Replica, Where
from tests.chaos.namespaces import Lan
from tests.chaos.told import stage_times
from tests.living import Peer, corpora, digests_by_height, found
from tests.training.tiny import opened

REGIONS = ("swahili", "ukrainian", "armenian", "basque")
LATE = "latvian"
ROUNDS = int(os.environ.get("TAPESTRY_ROUNDS", "32"))
MODEL = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 257, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
HELDOUT_TOKENS = 8192

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(1800)]


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    text = corpora()
    if text is None:
        pytest.skip("the six regions' text is not beside this checkout (set TAPESTRY_CORPORA)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with ExitStack() as stack:
        lan = stack.enter_context(Lan(5, 7))
        made = []
        for i, region in enumerate((*REGIONS, LATE), start=1):
            peer = Peer(tmp_path / region, [text / region], listen=f"/ip4/{lan.address(i)}/tcp/31700", namespace=lan.namespace(i))
            config = peer.folder / "trainer.toml"
            config.write_text(config.read_text().replace("tokens = 2048", f"tokens = {HELDOUT_TOKENS}"))
            stack.callback(peer.end)
            made.append(peer)
        yield made


def corpus(rules: RunRules, region: str, cache: Path) -> Corpus:
    text = corpora()
    assert text is not None
    cache.mkdir(exist_ok=True)
    return opened([text / region], cache, rules.inner.tokens)


def alone(rules: RunRules, region: str, steps: int, rounds: int, cache: Path) -> dict[str, float]:
    """Held-out loss in every region of a model that `region` trains by itself, in as many steps, from the same genesis seed."""
    torch.set_num_threads(1)

    def replica(text: str) -> Replica:
        where = Where(torch.device("cpu"), False)
        return Replica(model.fresh(rules.model.config, 0), rules.layout(), rules.inner, corpus(rules, text, cache), where=where, seed=0)

    trained = replica(region)
    for step in range(steps):
        trained.step(step * rounds // steps)
    losses = {}
    for other in REGIONS:
        judge = replica(other)
        judge.theta.copy_(trained.local)
        found_loss = judge.evaluate(HELDOUT_TOKENS)
        assert found_loss is not None
        losses[other] = found_loss[0]
    return losses


def test_four_regions_then_a_fifth_a_kill_and_a_farewell(peers: list[Peer], tmp_path: Path) -> None:
    *four, late = peers
    toml = found(
        tmp_path / "founder", "--train", "5", "--average", "3", "--tokens", "96", "--sequences", "4", "--lr", "0.002",
        "--warmup-rounds", "4", "--decay-rounds", str(ROUNDS), config=MODEL,
    )  # fmt: skip
    rules = RunRules.from_toml(toml.read_text())
    began = time.monotonic()

    # One by one.
    four[0].start(str(toml))
    invite = four[0].invite()
    for peer in four[1:]:
        peer.start(invite)
        peer.wait("a place in the run", lambda s: s["run"] and s["run"]["base_digest"], 60)
    for peer in four:
        peer.height(ROUNDS, 60 + ROUNDS * 12)
    took = time.monotonic() - began
    for peer in four:
        peer.client.ask("POST", "/v1/pause", {})
    final = [peer.wait("its evaluation", lambda s: s["trainer"]["heldout"]["height"] == s["run"]["height"], 60) for peer in four]

    by_height = digests_by_height(four)
    stories = four[0].rounds()
    print(f"\n{rules.layout().elements:,} parameters, {ROUNDS} rounds wanted, {took:.0f} s, 4 daemons in 4 namespaces on 2 cores")
    print(f"heights with one digest on all peers: {sum(len(d) == 1 for d in by_height.values())} of {len(by_height)}")
    took_ms = [story["took_ms"] for story in stories if story["result"] == "committed"]
    sent = [story["sent_bytes"] for story in stories if story["result"] == "committed"]
    print(f"rounds {len(stories)}, committed {len(took_ms)}; one took median {statistics.median(took_ms):.0f} ms, max {max(took_ms)} ms")
    print(f"of that, in ms: {stage_times(stories)}")
    print(f"sent in a committed round: median {statistics.median(sent):,.0f} bytes")
    assert all(len(digests) == 1 for digests in by_height.values()), by_height
    assert len({status["run"]["base_digest"] for status in final}) == 1

    for peer in four:
        peer.client.ask("POST", "/v1/resume", {})

    # A fifth machine joins by invite, mid-run, and takes part within two rounds of being ready.
    began = time.monotonic()
    late.start(invite)
    ready = late.wait("a base and a trainer", lambda s: s["state"] in ("training", "averaging"), 90)
    first = late.wait("its first committed round", lambda s: (s["averaging"]["last"] or {}).get("result") == "committed", 60)
    rounds_until = first["averaging"]["last"]["round"] - ready["run"]["round"]
    print(f"fifth: training {time.monotonic() - began:.0f} s after its start at most, part of round +{rounds_until}")
    assert rounds_until <= 2

    # kill -9 in the middle of a round: the others commit the next one; it comes back to the same digest.
    victim = four[2]
    victim.wait("averaging", lambda s: s["run"]["phase"] in ("gathering", "reducing", "settling", "stopping"), 30)
    killed_round = victim.status()["run"]["round"]
    victim.kill()
    began = time.monotonic()
    height = four[0].status()["run"]["height"]
    four[0].height(height + 1, 40)
    next_commit = [s for s in four[0].rounds() if s["result"] == "committed" and s["round"] > killed_round]
    after = time.monotonic() - began
    print(
        f"kill -9 in round {killed_round}: next commit of the others {after:.1f} s later (a round is {rules.schedule.period_ms / 1000:g} s)"
    )
    assert victim.gone()
    assert not next_commit or next_commit[0]["round"] == killed_round + 1
    victim.start()
    back = time.monotonic()
    victim.wait(
        "a committed round", lambda s: (s["averaging"]["last"] or {}).get("result") == "committed" and s["run"]["height"] > height + 1, 90
    )
    print(f"it was back in a committed round {time.monotonic() - back:.1f} s after its restart")

    # A farewell.
    assert four[1].term() == 0
    assert four[1].processes() == []
    rest = [four[0], four[2], four[3], late]
    height = four[0].status()["run"]["height"]
    for peer in rest:
        peer.height(height + 2, 60)
    by_height = digests_by_height(rest)
    assert all(len(digests) == 1 for digests in by_height.values()), by_height
    print(f"after all that: height {max(by_height)}, one digest at each of {len(by_height)} heights")
    for peer in rest:
        assert peer.term() == 0
    assert all(peer.gone() for peer in peers)
    check_losses(rules, final, tmp_path)


def check_losses(rules: RunRules, final: list[dict[str, object]], tmp_path: Path) -> None:
    """Below genesis in every region, and the mean below that of each region's own model on as many tokens."""
    base = {region: status["trainer"]["heldout"] for region, status in zip(REGIONS, final, strict=True)}  # type: ignore[index]
    steps = {region: status["trainer"]["steps"] for region, status in zip(REGIONS, final, strict=True)}  # type: ignore[index]
    rows = {region: alone(rules, region, steps[region], ROUNDS, tmp_path / "cache") for region in REGIONS}
    print(f"\n{'held-out nats/token':24}" + "".join(f"{region:>12}" for region in REGIONS) + f"{'mean':>12}")

    def line(name: str, values: list[float]) -> float:
        mean = statistics.mean(values)
        print(f"{name:24}" + "".join(f"{value:12.3f}" for value in values) + f"{mean:12.3f}")
        return mean

    line("genesis", [base[region]["first_loss"] for region in REGIONS])
    shared = line("Shared Base", [base[region]["loss"] for region in REGIONS])
    means = [line(f"{region} alone", list(rows[region].values())) for region in REGIONS]
    print(f"{'local steps':24}" + "".join(f"{steps[region]:12}" for region in REGIONS))
    assert all(base[region]["loss"] < base[region]["first_loss"] for region in REGIONS)
    assert all(shared < mean for mean in means)
