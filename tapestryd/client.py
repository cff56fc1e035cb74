"""Asking the daemon: HTTP over its unix socket, with a sentence for every way in which that fails.

Knows nothing of arguments and tables. Standard library only, because `tapestry` must start fast.
"""

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from tapestryd.errors import DiskFull, LocalFault, NotAllowed, NotRunning
from tapestryd.screen import size

Doc = dict[str, Any]

ANSWER_S = 30.0
EXPORT_S = 3_600.0
"""Making an export copies and hashes the whole model before the first byte of an answer."""
_DOC_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_LINE_BYTES = 1 << 24


def default_socket(environ: Mapping[str, str]) -> Path:
    """$TAPESTRY_SOCKET, or the service's, or the one of a daemon that this user runs: whichever exists."""
    if environ.get("TAPESTRY_SOCKET"):
        return Path(environ["TAPESTRY_SOCKET"])
    usual = [Path("/run/tapestry/tapestryd.sock")]
    if environ.get("XDG_RUNTIME_DIR"):
        usual.append(Path(environ["XDG_RUNTIME_DIR"], "tapestry", "tapestryd.sock"))
    return next((path for path in usual if os.path.exists(path)), usual[0])


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Client:
    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, method: str, target: str, body: Doc | None = None, *, timeout_s: float = ANSWER_S) -> Doc:
        """The answer's document. Raises NotRunning, NotAllowed, or LocalFault with the daemon's own sentence."""
        with self._answer(method, target, body, timeout_s) as response:
            return _document(response)

    def pid(self) -> int:
        """The daemon's, as it is here (unix(7), SO_PEERCRED): in a box it knows itself by another. 0: not visible. Raises as `ask`."""
        with self._opened(ANSWER_S) as connection:
            pid, _uid, _gid = struct.unpack("3i", connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            return int(pid)

    def ready(self) -> bool:
        """Whether this node is a member of a run: /readyz."""
        with self._answer("GET", "/readyz", None, ANSWER_S) as response:
            return response.status == 200

    def fetch(self, target: str, into: Path) -> str:
        """Write what `target` answers to the new file `into`; its SHA-256."""
        sha256 = hashlib.sha256()
        with self._answer("GET", target, None, ANSWER_S) as response:
            if response.status != 200:
                _document(response)
            with into.open("xb") as file:
                while piece := response.read(_PIECE_BYTES):
                    sha256.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        return sha256.hexdigest()

    def lines(self, method: str, target: str) -> Iterator[str]:
        """The answer's text, line by line as it comes, for as long as it comes; the daemon is never silent for ANSWER_S."""
        with self._answer(method, target, None, ANSWER_S) as response:
            if response.status != 200:
                _document(response)
            while line := response.readline(_LINE_BYTES):
                yield line.decode(errors="replace").rstrip("\r\n")

    def put(self, target: str, file: Path) -> None:
        """Send a file's bytes. Raises OSError if it cannot be read."""
        with file.open("rb") as content, self._answer("PUT", target, content, EXPORT_S) as response:
            _document(response)

    @contextmanager
    def _answer(self, method: str, target: str, body: Doc | BinaryIO | None, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
        try:
            with self._opened(timeout_s) as connection:
                if isinstance(body, dict):
                    connection.request(method, target, json.dumps(body), {"Content-Type": "application/json"})
                elif body is not None:
                    length = str(os.fstat(body.fileno()).st_size)
                    with suppress(BrokenPipeError, ConnectionResetError):  # it may have refused all of it before it had read it
                        connection.request(method, target, body, {"Content-Type": "application/octet-stream", "Content-Length": length})
                else:
                    connection.request(method, target)
                yield connection.getresponse()
        except TimeoutError:
            raise LocalFault(
                f"The daemon on {self.path} did not answer {method} {target} within {timeout_s:g} s; its log may say why."
            ) from None
        except (http.client.HTTPException, ConnectionError) as error:
            raise NotRunning(f"The daemon on {self.path} broke off its answer ({error!r}). {_HINT}") from None

    @contextmanager
    def _opened(self, timeout_s: float) -> Iterator[_Connection]:
        connection = _Connection(self.path, timeout_s)
        try:
            try:
                connection.connect()
            except PermissionError:
                raise NotAllowed(f"You may not open {self.path}; ask for membership in the group tapestry-admin, or use sudo.") from None
            except OSError as error:
                raise NotRunning(f"No daemon answers on {self.path} ({error.strerror or error}). {_HINT}") from None
            yield connection
        finally:
            connection.close()


_HINT = "Is tapestryd running? See: systemctl status tapestryd; --socket names another one's socket."


def _document(response: http.client.HTTPResponse) -> Doc:
    try:
        body = json.loads(response.read(_DOC_BYTES))
        if response.status == 200:
            return dict(body)
        detail = str(body["detail"])
    except (ValueError, TypeError, KeyError):
        raise LocalFault(f"What answered is not a tapestryd that this CLI understands (HTTP status {response.status}).") from None
    raise (NotAllowed if response.status == 403 else LocalFault)(sentence(detail))


def sentence(words: str) -> str:
    """As one is written, unless a setting's name or a value begins it, or it is a question."""
    begun = words if re.match(r"\w+([._]| =)", words) else words[:1].upper() + words[1:]
    return begun if begun.endswith((".", "?")) else f"{begun}."


def join(client: Client, target: str) -> Doc:
    """An invite, or the path of a run.toml with its genesis beside it, which is brought to the daemon: it sees no folder of ours."""
    if target.startswith("tapestry:"):
        return client.ask("PUT", "/v1/run", {"target": target})
    toml = Path(target)
    files = {"run.toml": toml, **{name: toml.with_name(name) for name in ("genesis.json", "genesis.base", "tokenizer.json")}}
    try:
        for name, file in files.items():
            if name != "tokenizer.json" or file.exists():
                client.put(f"/v1/founded/{name}", file)
    except OSError as error:
        raise LocalFault(
            f"{error.filename}: {error.strerror}; join with the run.toml that `tapestry run new` wrote, its files beside it, or an invite."
        ) from None
    return client.ask("PUT", "/v1/run", {"target": "founded"}, timeout_s=EXPORT_S)


def export(client: Client, folder: Path) -> Doc:
    """Have the daemon export the Shared Base and write it to `folder`: the whole of it, verified, or nothing. The listing."""
    folder = Path(os.path.abspath(folder))
    partial = folder.with_name(folder.name + ".partial")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise LocalFault(f"{folder} exists and is not an empty folder; name another.")
        partial.mkdir(parents=True)
    except OSError as error:
        raise LocalFault(
            f"{partial} cannot be made ({error.strerror}); remove what an earlier export left there, or name another folder."
        ) from None
    try:
        listing = client.ask("POST", "/v1/export", {}, timeout_s=EXPORT_S)
        total = sum(file["bytes"] for file in listing["files"])
        if shutil.disk_usage(partial).free < total:
            raise OSError(errno.ENOSPC, "")
        for file in listing["files"]:
            name = Path(file["name"]).name
            if client.fetch(f"/v1/export/{quote(name)}?id={quote(listing['id'])}", partial / name) != file["sha256"]:
                raise LocalFault(f"{name} did not arrive as it was sent; nothing was kept. Try again.")
        partial.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"No space for the export at {folder}: it takes {size(total)}. Nothing was kept.") from None
        raise LocalFault(f"{folder} cannot be written ({error.strerror}). Nothing was kept.") from None
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    return listing
