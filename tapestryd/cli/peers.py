"""`tapestry peers`: the others, and whom to keep out."""

import argparse
from contextlib import suppress

from protocols.identity import public_key
from protocols.refusal import Refused
from tapestryd import screen
from tapestryd.cli.verbs import Verbs, columns, duration, said, show, watchable, watched
from tapestryd.client import Client
from tapestryd.errors import LocalFault


def add(verbs: Verbs) -> None:
    one = verbs.add("peers", peers, "the peers of this run, with their addresses; whom to keep out")
    watchable(one)
    some = verbs.below(one)
    one = some.add("ban", ban, "close the door to a peer, whatever it does")
    one.add_argument("peer", metavar="ID", help="a peer id, or the end of one as the tables show it")
    one.add_argument(
        "--for", dest="duration", type=duration, metavar="12h", help="for so long (default: trust.ban_time of the configuration)"
    )
    one.add_argument("--reason", metavar="TEXT", help="for whoever reads the list")
    one = some.add("unban", unban, "open it again; what was held against the peer is forgotten")
    one.add_argument("peer", metavar="ID", help="as for ban")
    some.add("bans", bans, "who is kept out, until when, and why")


def peers(options: argparse.Namespace, client: Client) -> int:
    return watched(options, lambda: client.ask("GET", "/v1/peers"), lambda found: screen.peers(found["peers"], width=columns()))


def ban(options: argparse.Namespace, client: Client) -> int:
    body = {"for_s": options.duration, "reason": options.reason}
    return said(options, client.ask("PUT", f"/v1/bans/{_whole_id(options.peer, client)}", body))


def unban(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("DELETE", f"/v1/bans/{_whole_id(options.peer, client)}"))


def bans(options: argparse.Namespace, client: Client) -> int:
    return show(options, client.ask("GET", "/v1/bans"), lambda found: screen.bans(found["bans"], width=columns()))


def _whole_id(text: str, client: Client) -> str:
    """The peer id that is meant: itself, or by its end, as tables and logs show it. Raises LocalFault unless there is just one."""
    with suppress(Refused):
        public_key(text)
        return text
    end = text.rpartition("…")[2]
    listed: list[str] = [peer["peer_id"] for peer in client.ask("GET", "/v1/peers")["peers"] + client.ask("GET", "/v1/bans")["bans"]]
    meant = sorted({peer for peer in listed if end and peer.endswith(end)})
    if len(meant) > 1:
        raise LocalFault(f"{screen.clean(text)} may be any of {', '.join(meant[:4])}; write more of its end.")
    if not meant:
        raise LocalFault(f"{screen.clean(text)} is neither a whole peer id nor the end of one that is present or banned.")
    return meant[0]
