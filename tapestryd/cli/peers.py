"""`tapestry peers`, `bootstrap`, `netcheck`: the others, how to find them, whether they find us, and whom to keep out."""

import argparse
import time
from contextlib import suppress
from urllib.parse import quote

from protocols.control import SCHEMA, Exit
from protocols.identity import public_key
from protocols.refusal import Refused
from tapestryd import screen
from tapestryd.cli.verbs import Verbs, columns, lasting, said, show, watchable, watched
from tapestryd.client import Client, Doc
from tapestryd.errors import LocalFault
from tapestryd.program import whole


def add(verbs: Verbs) -> None:
    one = verbs.add("peers", peers, "the peers of this run, with their addresses; whom to keep out")
    watchable(one)
    some = verbs.below(one)
    some.add("show", peer_show, "one peer, in full").add_argument("peer", metavar="ID", help=_ID)
    one = some.add("ping", ping, "go to a peer and back: how long that takes, and how its clock differs")
    one.add_argument("peer", metavar="ID", help=_ID)
    one.add_argument("-c", dest="count", type=whole(1, 1000), default=4, metavar="N", help="so many times (4)")
    some.add("connect", connect, "dial a peer").add_argument("address", metavar="MULTIADDR", help=_ADDRESS)
    one = some.add("ban", ban, "close the door to a peer, whatever it does")
    one.add_argument("peer", metavar="ID", help=_ID)
    one.add_argument(
        "--for", dest="duration", type=lasting, metavar="12h", help="for so long (default: trust.ban_time of the configuration)"
    )
    one.add_argument("--reason", metavar="TEXT", help="for whoever reads the list")
    one = some.add("unban", unban, "open it again; what was held against the peer is forgotten")
    one.add_argument("peer", metavar="ID", help="as for ban")
    some.add("bans", bans, "who is kept out, until when, and why")

    known = verbs.noun("bootstrap", "peers to look for the run at", "Peers to look for the run at when this node starts.")
    known.add("list", bootstrap, "those of the configuration, of yours, and those seen last")
    known.add("add", bootstrap_add, "one more").add_argument("address", metavar="MULTIADDR", help=_ADDRESS)
    known.add("rm", bootstrap_rm, "forget one").add_argument("peer", metavar="ID|MULTIADDR", help="whom")
    known.add("reset", bootstrap_reset, "forget all but the configuration's")
    one = verbs.add("netcheck", netcheck, "whether others can dial this node, and what to do if not; peers try")
    watchable(one)


_ID = "a peer id, or the end of one as the tables show it"
_ADDRESS = "/ip4/192.0.2.7/tcp/31700/p2p/12D3…"


def peers(options: argparse.Namespace, client: Client) -> int:
    return watched(options, lambda: client.ask("GET", "/v1/peers"), lambda found: screen.peers(found["peers"], width=columns()))


def peer_show(options: argparse.Namespace, client: Client) -> int:
    meant = _whole_id(options.peer, client)
    found = next((peer for peer in client.ask("GET", "/v1/peers")["peers"] if peer["peer_id"] == meant), None)
    if found is None:
        raise LocalFault(f"{meant} is not present; `tapestry peers bans` shows those that are banned.")
    return show(options, {"schema": SCHEMA, **found}, lambda found: screen.peer(found, width=columns()))


def ping(options: argparse.Namespace, client: Client) -> int:
    meant = _whole_id(options.peer, client)
    times = list[float]()
    for number in range(options.count):
        found = client.ask("POST", f"/v1/peers/{meant}/ping", {})
        times.append(found["rtt_ms"])
        if not options.json:
            print(f"{screen.short(meant)}: {found['rtt_ms']:.1f} ms, clock {found['skew_ms']:+d} ms", flush=True)
        if number + 1 < options.count:
            time.sleep(0.5)
    if options.json:
        return show(options, {"schema": SCHEMA, "peer_id": meant, "rtt_ms": times, "skew_ms": found["skew_ms"]}, str)
    return Exit.OK


def connect(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/peers/connect", {"address": options.address}))


def ban(options: argparse.Namespace, client: Client) -> int:
    body = {"for_s": options.duration, "reason": options.reason}
    return said(options, client.ask("PUT", f"/v1/bans/{_whole_id(options.peer, client)}", body))


def unban(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("DELETE", f"/v1/bans/{_whole_id(options.peer, client)}"))


def bans(options: argparse.Namespace, client: Client) -> int:
    return show(options, client.ask("GET", "/v1/bans"), lambda found: screen.bans(found["bans"], width=columns()))


def bootstrap(options: argparse.Namespace, client: Client) -> int:
    def text(found: Doc) -> str:
        cells = [(one["by"], "known" if one["known"] else "not met", one["address"]) for one in found["peers"]]
        return "\n".join(screen.table([("BY", "DHT", "PEER"), *cells], 1000)) + "\n" if cells else "There are none.\n"

    return show(options, client.ask("GET", "/v1/bootstrap"), text)


def bootstrap_add(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("PUT", "/v1/bootstrap", {"address": options.address}))


def bootstrap_rm(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("DELETE", f"/v1/bootstrap/{quote(options.peer.rpartition('/p2p/')[2], safe='')}"))


def bootstrap_reset(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("DELETE", "/v1/bootstrap", {}))


def netcheck(options: argparse.Namespace, client: Client) -> int:
    """Peers try for 3 s each."""
    return watched(options, lambda: client.ask("GET", "/v1/netcheck"), lambda found: screen.netcheck(found, width=columns()))


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
