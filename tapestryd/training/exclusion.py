"""Protected text that must not be trained on: which documents quote it.

What is protected is known by digests alone, so a list may be passed on without the text. A text is read as words (Unicode NFKC,
case folded, split at white space; an ideograph or a kana is a word). SHINGLE words in a row, joined by single spaces, are a shingle;
a text of fewer words is one. A list holds the SHA-256 of every SHINGLE-th shingle of each protected text, a line each. A document
in which any of them stands, at any place, is left out: so whatever quotes 2 * SHINGLE - 1 words in a row, or is nothing but a
shorter text. Standard library only. Knows nothing of files but the list.
"""

import hashlib
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from tapestryd.errors import ConfigFault

SHINGLE = 13
"""Words: fewer would catch idioms, more would miss quotations (13 is what GPT-3's filter took, arXiv 2005.14165)."""

_WORD_CHARS = 1 << 16
"""A word that is cut by the end of a piece is put together again up to this length."""

_SPACE = re.compile(r"\s+")
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")


class Exclusion:
    """A list of protected text. `digest` names it: what was tokenised under another list is tokenised again."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._protected = frozenset(digests)
        self.digest = hashlib.sha256(b"".join(sorted(self._protected))).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "Exclusion":
        """A file of one SHA-256 a line; empty lines and what follows # are passed over. Raises ConfigFault."""
        found = set()
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, 1):
                    word = line.partition("#")[0].strip()
                    if word and not re.fullmatch("[0-9a-f]{64}", word):
                        raise ConfigFault(f"data.exclude: {path}: line {number} is no SHA-256; `tapestry data protect` makes such a list")
                    if word:
                        found.add(bytes.fromhex(word))
        except OSError as error:
            raise ConfigFault(f"data.exclude: {path}: {error.strerror}") from None
        return cls(found)

    def covers(self, pieces: Iterable[str]) -> bool:
        """Whether a document, in pieces, quotes anything protected."""
        return bool(self._protected) and any(shingle in self._protected for shingle in shingles(pieces, 1))


def protected(pieces: Iterable[str]) -> Iterator[bytes]:
    """What stands in a list for a text, in pieces."""
    return shingles(pieces, SHINGLE)


def shingles(pieces: Iterable[str], every: int) -> Iterator[bytes]:
    """The SHA-256 of a text's shingles that begin at words 0, `every`, 2 * `every` …"""
    window: deque[str] = deque(maxlen=SHINGLE)
    count = 0
    for word in _words(pieces):
        window.append(word)
        count += 1
        if count >= SHINGLE and (count - SHINGLE) % every == 0:
            yield _digest(window)
    if 0 < count < SHINGLE:
        yield _digest(window)


def _digest(words: Iterable[str]) -> bytes:
    return hashlib.sha256(" ".join(words).encode("utf-8", "replace")).digest()


def _words(pieces: Iterable[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *whole, rest = _SPACE.split(rest + piece)
        if len(rest) > _WORD_CHARS:
            whole, rest = [*whole, rest], ""
        yield from _normal(" ".join(whole))
    yield from _normal(rest)


def _normal(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
