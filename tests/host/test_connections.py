"""Connections that come, move bytes and go between looks, and what is known of them afterwards."""

from dataclasses import replace

from tapestryd.host.balance import Carried
from tapestryd.host.connections import UNKNOWN, Connections, Interfaces
from tapestryd.host.kernel import Endpoint, Interface, Socket

HERE, THERE = ("10.0.0.1", 31700), ("10.0.0.2", 31700)
LISTENING = Socket(1, 501, HERE, ("0.0.0.0", 0))
FOREIGN = Socket(2, 900, ("10.0.0.1", 22), ("10.0.0.9", 5555), 52, 10**9, 0, 10**9, 10**6, 10**6)
OURS = frozenset({501, 502, 503})


def socket(cookie: int, sent: int, received: int = 0, *, inode: int = 502, local: Endpoint = HERE, remote: Endpoint = THERE) -> Socket:
    return Socket(cookie, inode, local, remote, 52, sent, 0, received, sent // 1000 + 1, received // 1000 + 1)


def connections() -> Connections:
    return Connections(lambda: OURS)


def moved(found: Connections) -> dict[str, tuple[int, int]]:
    return {peer: (traffic.sent.size, traffic.received.size) for peer, traffic in found.by_peer().items()}


def test_only_ours_count_and_each_is_its_peers() -> None:
    found = connections()
    found.look([LISTENING, FOREIGN, socket(7, 100, 50), socket(8, 5, inode=503, remote=("10.0.0.3", 4242))], [])
    assert found.nameless
    found.name({THERE: "ada", ("10.0.0.3", 4242): "ben"})
    assert not found.nameless
    found.look([LISTENING, FOREIGN, socket(7, 3000, 60), socket(8, 6, inode=503, remote=("10.0.0.3", 4242))], [])
    assert moved(found) == {"ada": (3000, 60), "ben": (6, 0)}
    assert found.by_peer()["ada"].sent == Carried(3000, 4, 4 * 52)
    assert (found.count, found.cut) == (2, 0)
    assert found.ends() == {("10.0.0.1", "10.0.0.2"), ("10.0.0.1", "10.0.0.3")}


def test_the_kernels_last_word_counts() -> None:
    found = connections()
    found.look([socket(7, 100)], [])
    found.name({THERE: "ada"})
    found.look([], [socket(7, 9000, inode=0)])
    assert moved(found) == {"ada": (9000, 0)}
    assert (found.cut, found.ends()) == (0, set())


def test_one_that_our_side_cut_off_is_as_we_last_saw_it() -> None:
    found = connections()
    found.look([socket(7, 100, 20)], [])
    found.look([], [replace(socket(7, 0, inode=0), remote=("0.0.0.0", 0))])
    assert (moved(found), found.cut) == ({UNKNOWN: (100, 20)}, 1)


def test_one_that_vanished_is_waited_for_until_the_next_look() -> None:
    found = connections()
    found.look([socket(7, 100)], [])
    found.name({THERE: "ada"})
    found.look([], [])
    assert (moved(found), found.cut) == ({"ada": (100, 0)}, 0)
    found.look([], [socket(7, 150, inode=0)])
    assert (moved(found), found.cut) == ({"ada": (150, 0)}, 0)
    found.look([socket(8, 1)], [])
    found.look([], [])
    found.look([], [])
    assert (moved(found), found.cut) == ({"ada": (150, 0), UNKNOWN: (1, 0)}, 1)


def test_one_that_came_and_went_between_two_looks_is_known_by_its_port() -> None:
    found = connections()
    found.look([LISTENING], [])
    found.look([LISTENING], [socket(9, 700, inode=0), socket(10, 700, inode=0, local=("10.0.0.1", 50000)), socket(11, 0, inode=0)])
    assert (moved(found), found.count) == ({UNKNOWN: (700, 0)}, 2)


def test_the_process_is_asked_only_about_sockets_that_are_new() -> None:
    asked = []
    found = Connections(lambda: asked.append(1) or OURS)  # type: ignore[func-returns-value]
    for _ in range(3):
        found.look([LISTENING, FOREIGN, socket(7, 1)], [])
    assert len(asked) == 1
    found.look([LISTENING, FOREIGN, socket(7, 1), socket(8, 1, inode=0)], [])  # not accepted yet
    assert len(asked) == 1
    found.look([LISTENING, FOREIGN, socket(7, 1), socket(8, 1, inode=503)], [])
    assert (len(asked), found.count) == (2, 2)


def test_a_stranger_that_is_gone_is_forgotten() -> None:
    found = connections()
    found.look([FOREIGN], [])
    found.look([], [FOREIGN])
    assert (found._set_aside, moved(found)) == (set(), {})


ETH = Interface(2, "eth0", False, 14, frozenset({"10.0.0.1"}), 1000, 2000, 10, 20)
LO = Interface(1, "lo", True, 0, frozenset({"127.0.0.1"}), 5, 5, 1, 1)


def test_interfaces_count_from_the_first_look_and_only_those_that_are_used() -> None:
    found = Interfaces()
    found.look([LO, ETH], ())
    found.look([replace(LO, sent=500), replace(ETH, sent=1600, packets_sent=14, received=2100, packets_received=21)], ())
    assert found.moved().sent == Carried()
    found.look([LO, replace(ETH, sent=1700, packets_sent=15, received=2100, packets_received=21)], {("10.0.0.1", "10.0.0.2")})
    assert found.used == {"eth0"}
    assert (found.moved().sent, found.moved().received) == (Carried(700, 5, 70), Carried(100, 1, 14))


def test_a_machine_talks_to_itself_by_its_loopback() -> None:
    found = Interfaces()
    found.look([LO, ETH], {("10.0.0.1", "10.0.0.1")})
    assert found.used == {"lo"}


def test_an_interface_that_was_made_anew_begins_again() -> None:
    found = Interfaces()
    found.look([ETH], {("10.0.0.1", "10.0.0.2")})
    found.look([replace(ETH, sent=10, packets_sent=1)], ())  # its counters went back
    found.look([replace(ETH, sent=30, packets_sent=2)], ())
    found.look([replace(ETH, index=9, sent=7)], ())
    found.look([replace(ETH, index=9, sent=8, packets_sent=11)], ())
    assert found.moved().sent == Carried(21, 2, 28)
