"""Who at the dashboard may change things: a code, good once and for minutes, is exchanged for a token that lasts for hours.

Pure but for the dice: the caller says what time it is. Only digests are kept, in memory: a daemon that starts anew knows nobody.
"""

import hashlib
import secrets

CODE_S = 600.0
TOKEN_S = 12 * 3_600.0
_CODES = 8
_TOKENS = 32
"""The oldest give way."""


class Tokens:
    def __init__(self) -> None:
        self._codes: dict[bytes, float] = {}
        self._tokens: dict[bytes, float] = {}

    def code(self, now_s: float) -> str:
        return _made(self._codes, now_s + CODE_S, _CODES)

    def redeem(self, code: str, now_s: float) -> str | None:
        """A token for a code that was not used before; None for any other."""
        if self._codes.pop(_digest(code), now_s) <= now_s:
            return None
        return _made(self._tokens, now_s + TOKEN_S, _TOKENS)

    def holds(self, token: str, now_s: float) -> bool:
        return self._tokens.get(_digest(token), now_s) > now_s


def _made(where: dict[bytes, float], until_s: float, most: int) -> str:
    while len(where) >= most:
        del where[min(where, key=lambda digest: where[digest])]
    text = secrets.token_urlsafe(32)
    where[_digest(text)] = until_s
    return text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()
