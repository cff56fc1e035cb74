"""Every byte that leaves four machines in twenty rounds: what the daemons say they sent, against what the kernel counted.

    pytest -m 'slow and root' -s tests/chaos/test_egress.py
Each daemon is alone in a network namespace, so that nothing else goes by its interface. Prints the table of both ways.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from protocols.rules import RunRules
from tapestryd.swarm.meter import KINDS
from tests.chaos.namespaces import Lan
from tests.living import Peer, corpora, found

REGIONS = ("swahili", "ukrainian", "armenian", "basque")
ROUNDS = int(os.environ.get("TAPESTRY_ROUNDS", "20"))
MODEL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 257, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
REST = 0.01
"""Of what the interface counted, at most so much is neither ours nor libp2p's nor a header: the kernel's own small talk."""

UNREAD = 0.001
"""Of what one says it sent to another, at most so much is not among what that one says it received: words that it no longer
waited for."""
SETTLED = ("delta", "mean", "vote", "roster", "snapshot", "log", "rules")
"""Kinds that nobody sends while all are paused, so that machines asked one after the other speak of the same."""

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(1800)]

Doc = dict[str, Any]


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    text = corpora()
    if text is None:
        pytest.skip("the six regions' text is not beside this checkout (set TAPESTRY_CORPORA)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with ExitStack() as stack:
        lan = stack.enter_context(Lan(len(REGIONS), 61))
        made = []
        for i, region in enumerate(REGIONS, start=1):
            listen = f"/ip4/{lan.address(i)}/tcp/31700"
            made.append(Peer(tmp_path / region, [text / region], listen=listen, namespace=lan.namespace(i)))
            stack.callback(made[-1].end)
        yield made


def test_all_that_was_sent_is_accounted_for(peers: list[Peer], tmp_path: Path) -> None:
    toml = found(
        tmp_path / "founder", "--train", "6", "--average", "9", "--tokens", "64", "--sequences", "2",
        "--decay-rounds", str(ROUNDS), config=MODEL,
    )  # fmt: skip
    began = time.monotonic()
    peers[0].start(str(toml))
    invite = peers[0].invite()
    for peer in peers[1:]:
        peer.start(invite)
    for peer in peers:
        peer.height(ROUNDS, 120 + ROUNDS * 60)
    for peer in peers:
        peer.client.ask("POST", "/v1/pause", {})
    for peer in peers:
        peer.wait("rest", lambda s: s["run"]["phase"] == "paused", 30)
    took = time.monotonic() - began
    names = {peer.status()["self"]["peer_id"]: peer.folder.name for peer in peers}
    books = {peer.folder.name: peer.client.ask("GET", "/v1/egress") for peer in peers}
    elements = RunRules.from_toml(toml.read_text()).layout().elements
    print(f"\n{elements:,} parameters, {ROUNDS} committed rounds, {took:.0f} s, {len(peers)} daemons in {len(peers)} namespaces")
    for way in ("sent", "received"):
        table(books, way)
    sent, missing = unread(books, names)
    print(f"\nof {sent:,} bytes of {', '.join(SETTLED)} that they sent to one another, {missing:,} were not read by whom they went to")
    assert missing <= UNREAD * sent

    for name, book in books.items():
        assert book["unreconciled"] == ""
        assert book["reconciliation"]["interfaces"] == ["eth0"]
        assert set(book["by_kind"]) <= {kind for pair in KINDS.values() for kind in pair}, "a kind that nobody has named"
        assert set(book["by_peer"]) == set(names) - {peer for peer, own in names.items() if own == name}, "bytes of nobody"
        for way in ("sent", "received"):
            kinds, line = book["by_kind"], book["reconciliation"][way]
            of_peers = sum(kind[way] for peer in book["by_peer"].values() for kind in peer.values())
            assert sum(kind[way] for kind in kinds.values()) == of_peers == book["sum"][way] == line["payload"]
            assert line["libp2p"] > 0
            assert abs(line["rest"]) <= REST * line["interfaces"], (name, way, line)
    for peer in peers:
        assert peer.term() == 0


def table(books: dict[str, Doc], way: str) -> None:
    kinds = sorted({kind for book in books.values() for kind in book["by_kind"]})
    columns = [*kinds, "payload", "libp2p", "resent", "headers", "rest", "interface", "rest %"]
    print(f"\n{way + ', bytes':12}" + "".join(f"{column:>12}" for column in columns))
    for name, book in books.items():
        line = book["reconciliation"][way]
        row = [book["by_kind"].get(kind, {way: 0})[way] for kind in kinds]
        row += [line[part] for part in ("payload", "libp2p", "resent", "headers", "rest", "interfaces")]
        print(f"{name:12}" + "".join(f"{value:12,}" for value in row) + f"{100 * line['rest'] / line['interfaces']:12.3f}")


def unread(books: dict[str, Doc], names: dict[str, str]) -> tuple[int, int]:
    """(bytes that each says it sent to each other one, those of them that this one does not say it received), of SETTLED."""
    sent = missing = 0
    for here, name in names.items():
        for there, other in names.items():
            for kind in SETTLED if here != there else ():
                ours = books[name]["by_peer"][there].get(kind, {"sent": 0})["sent"]
                theirs = books[other]["by_peer"][here].get(kind, {"received": 0})["received"]
                assert ours >= theirs, (name, other, kind, ours, theirs)
                sent, missing = sent + ours, missing + ours - theirs
    return sent, missing
