"""Texts without what gives away more than their meaning: keys, tokens, invites, addresses, whose files lie where.

Pure, and of any text: a log line is treated as an answer is. What stays is what explains a fault: ids of peers, the first
characters of digests, ports, and whether an address is a private one; equal addresses stay equal.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address

_KEPT = 12
"""Characters of a digest that logs name, too; with them nobody finds a run, nor guesses a token of 43."""
_PLACES = r"etc/tapestry|var/lib/tapestry|var/lib/tapestry-train|run/tapestry|run/systemd|opt/tapestry|usr|proc|sys|dev"
_PROTOCOLS = r"ip4|ip6|dns|dns4|dns6|dnsaddr|tcp|udp|p2p|p2p-circuit|v1|metrics|readyz|livez"

_INVITE = re.compile(r"tapestry:[0-9a-fA-F]{64}\S*")
_PACKAGES = re.compile(r"[^\s\"']*/(?=(?:site|dist)-packages/)")
_QUOTED = re.compile(r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\")(?!\w)")
"""A value as somebody wrote it."""
_PATH = re.compile(rf"(?<![\w.~)])(?<!:/)/(?!/|(?:{_PLACES}|{_PROTOCOLS})(?![\w-]))[^\s\"'`,;:()]+")
_HOST = re.compile(r"(?<=/)(dns|dns4|dns6|dnsaddr)/([^/\s]+)")
_ADDRESS = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)|(?<![\w:])(?=[0-9a-fA-F]*:[0-9a-fA-F]*:)[0-9a-fA-F:]{3,39}(?![\w:])")
_NAME = r"(?:[a-z]{1,20}|[A-Z]{1,20})"
_LONG = re.compile(rf"(?<![\w+-])(?!12D3KooW|{_NAME}(?:[_-]+{_NAME})*(?![\w+-]))[\w+-]{{32,}}={{0,2}}", re.ASCII)
"""A key, a token or a digest: no id of a peer, and no name, which is of words."""


class Scrub:
    """`paths`: what is to be said instead of a path and of all that lies below it, which may have blanks in its name."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        longest_first = sorted(paths.items(), key=lambda item: -len(item[0]))
        self._paths = [(re.compile(rf"{re.escape(path)}(?:/[^\"'`,;:()\n]*)?"), says) for path, says in longest_first]
        self._numbers: dict[str, int] = {}

    def document(self, value: object) -> object:
        """The same, every text in it scrubbed, names of fields included."""
        match value:
            case str():
                return self.text(value)
            case Mapping():
                return {self.text(str(key)): self.document(item) for key, item in value.items()}
            case list() | tuple():
                return [self.document(item) for item in value]
        return value

    def text(self, text: str) -> str:
        text = _INVITE.sub("(invite)", text)
        for path, says in self._paths:
            text = path.sub(says, text)
        text = _QUOTED.sub("'…'", _PACKAGES.sub("", text))
        text = _PATH.sub("(path)", text)
        text = _HOST.sub(lambda found: f"{found[1]}/host-{self._number(found[2])}", text)
        text = _ADDRESS.sub(lambda found: self._address(found[0]), text)
        return _LONG.sub(lambda found: found[0][:_KEPT] + "…", text)

    def _address(self, text: str) -> str:
        try:
            address = ip_address(text)
        except ValueError:
            return text
        if address.is_loopback or address.is_unspecified:
            return text
        return f"{'public' if address.is_global else 'private'}-{self._number(str(address))}"

    def _number(self, what: str) -> int:
        return self._numbers.setdefault(what, len(self._numbers) + 1)
