"""Whether others can dial this node, and what to do if they cannot. Pure: what was tried and seen in, a verdict and sentences out.

Only IP and TCP count: names could lead anywhere, and relays prove nothing.
"""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from protocols.control import Netcheck

_SHARED = ip_network("100.64.0.0/10")
"""Providers number their customers in there, behind a router of theirs (RFC 6598)."""

Ip = IPv4Address | IPv6Address


def judge(
    listen: Sequence[str], announce: Sequence[str], reached: Mapping[str, bool], seen: Sequence[str], present: int | None,
    asked_s: float | None,
) -> Netcheck:  # fmt: skip
    """`listen`, `announce`: as configured. `reached`, `seen`, `asked_s`: as in Netcheck. `present`: peers; None: no run is joined."""
    verdict, says, fix = _verdict(listen, announce, reached, seen, present, asked_s)
    return Netcheck(verdict, says, tuple(fix), tuple(listen), dict(reached), tuple(seen), asked_s)


def _verdict(
    listen: Sequence[str], announce: Sequence[str], reached: Mapping[str, bool], seen: Sequence[str], present: int | None,
    asked_s: float | None,
) -> tuple[str, str, list[str]]:  # fmt: skip
    if present is None:
        return "unknown", "No run is joined, so there is nobody to try.", ["tapestry run join INVITE"]
    if asked_s is None:
        return "unknown", "Nobody has tried yet." if present else "No other peer is here to try.", []
    through = [ip for ip, _ in map(_end, (address for address, held in reached.items() if held)) if ip]
    if through and all(ip.is_private for ip in through):
        return "yes", "Others on the same private network can dial this node; whether the world can, none of them knows.", []
    if through:
        return "yes", "Others can dial this node.", []
    return "no", "Others cannot dial this node: it takes part, but reduces nothing and helps no joiner.", _fix(listen, announce, seen)


def _fix(listen: Sequence[str], announce: Sequence[str], seen: Sequence[str]) -> list[str]:
    ends = [end for end in map(_end, listen) if end[0]]
    outside = [ip for ip, _ in map(_end, seen) if ip and not ip.is_private and ip not in _SHARED]
    port = next((port for _, port in ends), 31700)
    if ends and all(ip.is_loopback for ip, _ in ends if ip):
        return [f"It listens to this machine alone: tapestry config set network.listen /ip4/0.0.0.0/tcp/{port}, and restart tapestryd."]
    told = {ip for ip, _ in map(_end, announce) if ip}
    if told and outside and not told & set(outside):
        return [
            f"network.announce names {', '.join(map(str, sorted(told, key=str)))}, but others see it come from {outside[0]}: correct it, "
            "or leave it empty, and restart tapestryd."
        ]
    opened = (
        f"Open TCP port {port} in this machine's firewall: ufw allow {port}/tcp, or "
        f"firewall-cmd --permanent --add-port={port}/tcp && firewall-cmd --reload."
    )
    if any(ip in _SHARED for ip, _ in map(_end, seen) if ip):
        return [
            opened,
            "Its provider has several customers behind one address, so no port can be forwarded: ask it for an address of your own, or use "
            "IPv6.",
        ]
    here = outside[0] if outside else None
    family = "ip6" if here and here.version == 6 else "ip4"
    announced = f"tapestry config set network.announce /{family}/{here or 'ADDRESS'}/tcp/{port}, and restart tapestryd"
    which = f"{here} is the address that others see" if here else "ADDRESS is the router's on its outside"
    return [opened, f"Behind a router: forward its TCP port {port} to this machine's port {port}, and tell others: {announced} ({which})."]


def local(invite: str) -> bool:
    """Whether all that an invite names are addresses of private networks, so that nobody elsewhere can use it."""
    named = [_end(peer)[0] for peer in invite.split("peer=")[1:]]
    return bool(named) and all(ip is not None and not ip.is_global for ip in named)


def _end(address: str) -> tuple[Ip | None, int]:
    """IP address and TCP port of a multiaddr; (None, 0) where it has others."""
    match address.split("/"):
        case ["", "ip4" | "ip6", host, "tcp", port, *_] if port.isdigit():
            try:
                return ip_address(host), int(port)
            except ValueError:
                pass
    return None, 0
