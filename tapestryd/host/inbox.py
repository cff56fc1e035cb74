"""A founder's folder on its way in: the files that `tapestry run new` wrote, brought by whoever may read them.

The network side sees no folder of its operator's, so they come through the control API. Knows nothing of what is in them.
"""

import os
import shutil
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from protocols import limits
from tapestryd.host.fields import Doc
from tapestryd.host.files import saying_disk_full
from tapestryd.host.route import Refusal

_MOST = {"run.toml": limits.RULES_BYTES, "tokenizer.json": limits.TOKENIZER_BYTES, "genesis.json": None, "genesis.base": None}
"""Bytes of each; None: as many as the disk has room for."""
_PIECE_BYTES = 1 << 20


class Inbox:
    """`folder` is there while something lies in it. `min_free_bytes()` stay free on its disk."""

    def __init__(self, folder: Path, min_free_bytes: Callable[[], int]) -> None:
        self.folder = folder
        self._min_free = min_free_bytes

    async def receive(self, request: web.Request, name: str) -> Doc:
        """One file, in the request's body. The run's rules come first: what lay here before goes."""
        if name not in _MOST:
            raise Refusal(HTTPStatus.NOT_FOUND, f"{name[:80]!r} is no file of a founder's folder; there are: {', '.join(_MOST)}")
        if name == "run.toml":
            self.clear()
        most, size = _MOST[name], request.content_length
        if size is None or (most is not None and size > most):
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{name}: must say its length, at most {most or 'what the disk holds'}")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if shutil.disk_usage(self.folder).free - size < self._min_free():
            raise Refusal(HTTPStatus.INSUFFICIENT_STORAGE, f"{name} takes {size} bytes: less than storage.min_free would be left")
        with saying_disk_full(self.folder), (self.folder / name).open("wb") as file:
            async for piece in request.content.iter_chunked(_PIECE_BYTES):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            if file.tell() != size:
                raise Refusal(HTTPStatus.BAD_REQUEST, f"{name} broke off after {file.tell()} of {size} bytes")
        return {"bytes": size}

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
