"""Which of its addresses a node names first."""

from random import Random

from protocols import limits
from tapestryd.swarm.libp2p import widest


def test_what_most_others_can_dial_comes_first() -> None:
    ordered = [
        "/dns4/node.example/tcp/31700",
        "/ip4/34.77.1.2/tcp/31700",
        "/ip4/8.8.4.4/tcp/31700/p2p/12D3KooW/p2p-circuit",
        "/ip6/2600:1900::5/tcp/31700",
        "/ip4/10.0.0.5/tcp/31700",
        "/ip4/100.70.1.2/tcp/31700",
        "/ip6/fd00::1/tcp/31700",
        "/ip4/127.0.0.1/tcp/31700",
        "/ip4/169.254.1.1/tcp/31700",
        "/ip6/::1/tcp/31700",
        "/ip6/fe80::1/tcp/31700",
        "/ip6zone/eth0/ip6/fe80::1/tcp/31700",
    ]
    assert widest(Random(1).sample(ordered, len(ordered))) == ordered


def test_bridges_do_not_push_the_public_address_out() -> None:
    """A machine of many containers: as text, its bridges come before its own address."""
    bridges = [f"/ip4/172.{number}.0.1/tcp/31700" for number in range(17, 17 + limits.ADDRESSES)]
    mine = "/ip4/203.0.114.9/tcp/31700"
    assert sorted([*bridges, mine])[: limits.ADDRESSES] == bridges
    assert widest([*bridges, mine])[0] == mine
