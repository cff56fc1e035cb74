"""Verdict and fix, for every kind of place that a node may be at."""

import pytest

from protocols.rules import Invite
from tapestryd.netcheck import judge, local

PEER = "12D3KooWMTy1onqJaar8xuNXFe6PfarRPdxVNAEFYd9L4TNyKNEJ"
ANY = ("/ip4/0.0.0.0/tcp/31700", "/ip6/::/tcp/31700")
HOME, WORLD, SHARED = "/ip4/192.168.1.5/tcp/31700", "/ip4/203.0.113.9/tcp/31700", "/ip4/100.70.1.2/tcp/31700"
PUBLIC = "/ip4/8.8.4.4/tcp/31700"
SEEN = "/ip4/8.8.4.4/tcp/55012"


@pytest.mark.parametrize(
    ("listen", "announce", "reached", "seen", "present", "asked", "verdict", "says", "fix"),
    [
        (ANY, (), {}, (), None, None, "unknown", "No run is joined", ["run join"]),
        (ANY, (), {}, (), 0, None, "unknown", "No other peer is here", []),
        (ANY, (), {}, (), 3, None, "unknown", "Nobody has tried yet", []),
        (ANY, (), {PUBLIC: True}, (SEEN,), 3, 1.0, "yes", "Others can dial this node.", []),
        (ANY, (), {HOME: True, PUBLIC: True}, (), 3, 1.0, "yes", "Others can dial this node.", []),
        (ANY, (), {HOME: True, PUBLIC: False}, (), 3, 1.0, "yes", "on the same private network", []),
        (("/ip4/127.0.0.1/tcp/99",), (), {}, (), 3, 1.0, "no", "helps no joiner", ["network.listen /ip4/0.0.0.0/tcp/99"]),
        (ANY, (), {HOME: False}, (SEEN,), 3, 1.0, "no", "helps no joiner", ["ufw allow 31700", "announce /ip4/8.8.4.4/tcp/31700"]),
        (ANY, (), {HOME: False}, ("/ip6/2001:4860::9/tcp/9",), 3, 1.0, "no", "helps", ["--reload", "announce /ip6/2001:4860::9/tcp/31700"]),
        (ANY, (), {HOME: False}, (), 3, 1.0, "no", "helps no joiner", ["ufw allow 31700", "ADDRESS is the router's"]),
        (ANY, (), {HOME: False}, (SHARED,), 3, 1.0, "no", "helps no joiner", ["ufw allow 31700", "no port can be forwarded"]),
        (ANY, ("/ip4/8.8.8.8/tcp/31700",), {"/ip4/8.8.8.8/tcp/31700": False}, (SEEN,), 3, 1.0, "no", "helps", ["names 8.8.8.8, but"]),
        (ANY, (PUBLIC,), {PUBLIC: False}, (SEEN,), 3, 1.0, "no", "helps no joiner", ["ufw allow 31700", "forward its TCP port"]),
        (("/dns4/x/tcp/1",), ("/nonsense",), {"": False, "/ip4/x/tcp/1": False}, ("",), 3, 1.0, "no", "helps", ["ufw", "forward"]),
    ],
)
def test_verdicts(
    listen: tuple[str, ...], announce: tuple[str, ...], reached: dict[str, bool], seen: tuple[str, ...], present: int | None,
    asked: float | None, verdict: str, says: str, fix: list[str],
) -> None:  # fmt: skip
    found = judge(listen, announce, reached, seen, present, asked)
    assert found.verdict == verdict
    assert says in found.says
    assert len(found.fix) == len(fix)
    assert all(words in said for words, said in zip(fix, found.fix, strict=True))
    assert (found.listen, found.reached, found.seen, found.asked_s) == (listen, reached, seen, asked)


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ([], False),
        ([HOME], True),
        ([HOME, SHARED, "/ip6/fd00::1/tcp/1", "/ip4/127.0.0.1/tcp/1"], True),
        ([HOME, PUBLIC], False),
        ([HOME, "/dns4/boot.example/tcp/31700"], False),
        (["/ip6/2001:4860::9/tcp/31700"], False),
    ],
)
def test_whether_an_invite_is_of_use_elsewhere(peers: list[str], expected: bool) -> None:
    assert local(str(Invite("0" * 64, tuple(f"{peer}/p2p/{PEER}" for peer in peers)))) == expected
