"""How long a peer is passed over."""

from protocols import limits
from tapestryd.swarm.doubts import Doubts


def test_twice_as_long_each_time_up_to_the_longest() -> None:
    doubts, now, spans = Doubts(10, 600), 1000.0, []
    for times in range(1, 10):
        assert doubts.add("liar", now) == times == doubts.times("liar")
        began = now
        while doubts.holds("liar", now):
            now += 0.5
        spans.append(now - began)
    assert spans == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert not doubts.holds("somebody else", now)


def test_forgotten_when_nothing_more_came_of_it() -> None:
    doubts = Doubts(10, 600)
    doubts.add("ann", 0)
    doubts.add("ann", 100)
    doubts.add("bo", 120 + 599)
    assert doubts.times("ann") == 2
    doubts.add("bo", 120 + 600)
    assert doubts.times("ann") == 0
    assert doubts.add("cyd", 0) == doubts.add("cyd", 610) == 1
    doubts.clear("bo")
    assert not doubts.holds("bo", 721)


def test_waiting_is_no_doubt() -> None:
    doubts = Doubts(10, 600)
    doubts.wait("ann", 5)
    assert doubts.holds("ann", 4)
    assert not doubts.holds("ann", 5)
    assert doubts.times("ann") == 0


def test_made_up_peers_do_not_fill_the_memory() -> None:
    doubts = Doubts(10, 600)
    for number in range(3 * limits.RECORDS):
        doubts.add(str(number), 0)
    assert sum(doubts.times(str(number)) for number in range(3 * limits.RECORDS)) == limits.RECORDS
