"""A bootstrap node at work: it trains nothing, others find each other through it, and do without it once they have."""

from pathlib import Path

from tests.living import PLAIN, Peer, digests_by_height, found

TEXT = "".join(f"{number} is a number, and {number + 1} is the next.\n" for number in range(4000))


def test_two_find_each_other_through_a_third_that_trains_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers.txt").write_text(TEXT)
    door, *pair = peers = [Peer(tmp_path / name, [tmp_path / "data"]) for name in ("door", "one", "other")]
    try:
        door.start(str(found(tmp_path / "founder", *PLAIN, "--train", "4", "--average", "4")), "node.profile=bootstrap")
        status = door.wait("serving", lambda s: s["state"] == "serving", 90)
        assert (status["reasons"], status["trainer"]["state"], status["run"]["base_digest"] != "") == ([], "off", True)
        assert door.client.ready()
        invite = door.invite()
        assert invite.count("/p2p/") == invite.count(status["self"]["peer_id"]) == 1
        for peer in pair:
            peer.start(invite)
        for peer in pair:
            peer.height(1, 180)
        assert door.height(1, 30)["trainer"]["state"] == "off"  # it keeps what the others commit
        door.kill()
        height = max(peer.status()["run"]["height"] for peer in pair)
        for peer in pair:
            peer.height(height + 2, 120)
        assert all(len(digests) == 1 for digests in digests_by_height(pair).values())
    finally:
        for peer in peers:
            peer.end()
