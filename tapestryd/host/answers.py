"""Everything that the control API answers, as protocols/control.md specifies it: one Route each, in the order of that page.

Asks the Operator (the daemon) and words the answer. Knows nothing of runs, peers or tensors, nor of who asks.
"""

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from protocols import TREATY, limits
from protocols.control import READY, Ban, Certificate, Peer, Status, Story
from protocols.egress import Egress
from tapestryd.host.clock import now_ms
from tapestryd.host.fields import Ago, Choice, Doc, Flag, Line, Maybe, Names, PeerId, Seconds, Span, Target, Text, Whole
from tapestryd.host.inbox import Inbox
from tapestryd.host.operator import Operator
from tapestryd.host.peering import Peering
from tapestryd.host.route import SAID, Refusal, Route
from tapestryd.host.trends import KEPT_S, SERIES
from tapestryd.host.upkeep import Upkeep
from tapestryd.host.watch import Watch
from tapestryd.host.will import Mode

ROUNDS = 1_000
_ROUND_MAX = 10**16 - 1
_REASON_CHARS = 200
_PAGE = ("/v1/pause", "/v1/finish", "/v1/resume")


@dataclass(frozen=True, slots=True)
class InForce(Ban):
    """`left_s`: how long it still lasts; None: as long as the configuration says so."""

    left_s: float | None


@dataclass(frozen=True, slots=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Export:
    """One export as it was listed: only these names are served, and only under this id."""

    id: str
    folder: Path
    files: tuple[File, ...]

    @classmethod
    def of(cls, folder: Path) -> "Export":
        """Reads every file of `folder`, links and folders excepted."""
        files = []
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    files.append(File(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()))
        listed = json.dumps([asdict(file) for file in files])
        return cls(hashlib.sha256(listed.encode()).hexdigest()[:16], folder, tuple(files))


@dataclass(frozen=True, slots=True)
class Trouble:
    """A sentence of Status.health, and since when it has held, in ms of Unix time."""

    says: str
    since_ms: int


class Answers:
    def __init__(self, operator: Operator, watch: Watch, inbox: Inbox) -> None:
        self._operator = operator
        self._watch = watch
        self._inbox = inbox
        self._export: Export | None = None
        self._exporting = asyncio.Lock()
        reads, changes = self._reads(), self._changes()
        self.routes = (*reads, *changes, *Upkeep(operator).routes, *Peering(operator.contacts).routes)
        self.metrics = next(route for route in reads if route.path == "/metrics")
        self.page = (*reads, *(route for route in changes if route.path in _PAGE))
        """What the dashboard may ask; changes, with a token."""

    def _reads(self) -> tuple[Route, ...]:
        none = HTTPStatus.NOT_FOUND
        return (
            Route("GET", "/livez", "Whether the event loop turns.", self._live, {"live": bool}),
            Route(
                "GET", "/readyz", "Whether this node is a member of a run; 503 if not.", self._ready,
                {"ready": bool}, {"verbose": Flag()}, others=(HTTPStatus.SERVICE_UNAVAILABLE,),
            ),
            Route("GET", "/metrics", "The metrics, in Prometheus' text format or as OpenMetrics.", self._metrics, media="text/plain"),
            Route("GET", "/v1/status", "Everything about this peer at this moment.", self._status, Status),
            Route("GET", "/v1/health", "What is not well, and since when.", self._health, {"healthy": bool, "health": list[Trouble]}),
            Route("GET", "/v1/peers", "The peers, as in the status.", self._peers, {"peers": list[Peer]}),
            Route(
                "GET", "/v1/rounds", "The latest rounds as this node lived them, newest last.", self._rounds,
                {"rounds": list[Story]}, {"limit": Whole(1, ROUNDS, 60)},
            ),
            Route(
                "GET", "/v1/rounds/{number}", "All that is remembered of one round.", self._round,
                {"round": int, "stories": list[Story], "certificate": Certificate | None}, {"number": Whole(0, _ROUND_MAX)}, others=(none,),
            ),
            Route(
                "GET", "/v1/egress", "What was sent and received, by kind and peer, and what the kernel says of it.", self._egress,
                Egress, {"since": Whole(0, limits.INTEGER, 0)},
            ),
            Route("GET", "/v1/version", "The daemon's version and treaty.", self._version, {"version": str, "treaty": int}),
            Route(
                "GET", "/v1/run", "The joined run.", self._run,
                {"id": str, "name": str, "invite": str, "rules_toml": str | None}, others=(none,),
            ),
            Route("GET", "/v1/bans", "The bans in force.", self._bans, {"bans": list[InForce]}),
            Route(
                "GET", "/v1/history", "How numbers went lately: means over `step_s` each, null where there was none.", self._history,
                {"from_ms": int, "step_s": int, "series": dict[str, list[float | None]]},
                {"metric": Names(SERIES), "range": Span(KEPT_S, 3_600)},
            ),
            Route(
                "GET", "/v1/events", "Changes of state, of health, and stories, as they happen, or from the event `since` on.",
                self._events, asks={"since": Text(""), "status": Flag()}, media="text/event-stream",
                others=(HTTPStatus.SERVICE_UNAVAILABLE,),
            ),
        )  # fmt: skip

    def _changes(self) -> tuple[Route, ...]:
        peer = {"peer_id": PeerId()}
        return (
            Route(
                "PUT", "/v1/founded/{name}", "One file of a founder's folder, run.toml first.", self._inbox.receive, {"bytes": int},
                {"name": Text()}, takes="application/octet-stream",
                others=(HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.INSUFFICIENT_STORAGE),
            ),
            Route("PUT", "/v1/run", "Join a run.", self._join, SAID, body={"target": Target()}),
            Route("DELETE", "/v1/run", "Leave the run; what was learned stays.", self._leave, SAID),
            Route(
                "PUT", "/v1/bans/{peer_id}", "Ban a peer, in place of any other ban.", self._ban,
                SAID, peer, {"for_s": Seconds(), "reason": Line(_REASON_CHARS)},
            ),
            Route("DELETE", "/v1/bans/{peer_id}", "End a ban and forget the peer's faults.", self._unban, SAID, peer),
            Route("POST", "/v1/pause", "Stop training.", self._pause, SAID, body={"for_s": Seconds()}),
            Route("POST", "/v1/finish", "Pause behind the round at hand.", self._finish, SAID),
            Route(
                "PUT", "/v1/activity", "What a desktop's session says: of its latest input, and of the network.", self._active,
                SAID, body={"idle_s": Ago(), "metered": Maybe()},
            ),
            Route("POST", "/v1/resume", "Train again.", self._resume, SAID),
            Route(
                "POST", "/v1/mode", "Whether courtesies count: always train, as the policy has it, or never.", self._mode,
                SAID, body={"mode": Choice(tuple(Mode)), "for_s": Seconds()},
            ),
            Route("POST", "/v1/shutdown", "Stop the daemon.", self._shutdown, SAID),
            Route("POST", "/v1/export", "Export the Shared Base.", self._make_export, {"id": str, "files": list[File]}),
            Route(
                "GET", "/v1/export/{name}", "One file of the latest export.", self._send_export,
                asks={"name": Text(), "id": Text()}, media="application/octet-stream",
                others=(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
            ),
        )  # fmt: skip

    async def _live(self) -> Doc:
        return {"live": True}

    async def _ready(self, verbose: bool) -> Doc:
        status = self._operator.status()
        checks = {"run": status.run is not None, "state": status.state in READY}
        told = {"checks": checks, "state": status.state, "reasons": status.reasons} if verbose else {}
        if not all(checks.values()):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join([f"the daemon is {status.state}", *status.reasons]), **told)
        return {"ready": True, **told}

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        text, media = self._watch.metrics.text(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": media})

    async def _status(self) -> Doc:
        return self._operator.status().to_json()

    async def _health(self) -> Doc:
        troubles = [asdict(Trouble(says, since_ms)) for says, since_ms in self._watch.health.items()]
        return {"healthy": not troubles, "health": troubles}

    async def _peers(self) -> Doc:
        return {"peers": self._operator.status().to_json()["peers"]}

    async def _rounds(self, limit: int) -> Doc:
        return {"rounds": [asdict(story) for story in self._operator.rounds(limit)]}

    async def _round(self, number: int) -> Doc:
        stories, certificate = await self._operator.round(number)
        if not stories:
            raise Refusal(HTTPStatus.NOT_FOUND, f"nothing is remembered of round {number}; `tapestry rounds` lists the latest")
        return {"round": number, "stories": [asdict(story) for story in stories], "certificate": certificate and asdict(certificate)}

    async def _egress(self, since: int) -> Doc:
        return asdict(await self._operator.egress(since))

    async def _version(self) -> Doc:
        return {"version": self._operator.status().version, "treaty": TREATY}

    async def _run(self) -> Doc:
        run, rules = self._operator.status().run, self._operator.rules_toml()
        if run is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no run is joined; join one with: tapestry run join INVITE")
        return {"id": run.id, "name": run.name, "invite": run.invite, "rules_toml": rules}

    async def _bans(self) -> Doc:
        def left_s(ban: Ban) -> float | None:
            return None if ban.until_ms is None else round((ban.until_ms - now_ms()) / 1000, 1)

        return {"bans": [asdict(InForce(**asdict(ban), left_s=left_s(ban))) for ban in self._operator.bans()]}

    async def _history(self, metric: tuple[str, ...], range: int) -> Doc:
        return self._watch.trends.of(metric, range, now_ms())

    async def _events(self, request: web.Request, since: str, status: bool) -> web.StreamResponse:
        return await self._watch.events.listen(request, since or request.headers.get("Last-Event-ID", ""), status)

    async def _join(self, target: str) -> Doc:
        return {"said": await self._operator.join(target)}

    async def _leave(self) -> Doc:
        return {"said": await self._operator.leave()}

    async def _ban(self, peer_id: str, for_s: float | None, reason: str) -> Doc:
        return {"said": await self._operator.ban(peer_id, for_s, reason)}

    async def _unban(self, peer_id: str) -> Doc:
        return {"said": await self._operator.unban(peer_id)}

    async def _pause(self, for_s: float | None) -> Doc:
        return {"said": await self._operator.pause(for_s)}

    async def _finish(self) -> Doc:
        return {"said": await self._operator.finish()}

    async def _mode(self, mode: str, for_s: float | None) -> Doc:
        return {"said": await self._operator.choose(Mode(mode), for_s)}

    async def _active(self, idle_s: float | None, metered: bool | None) -> Doc:
        return {"said": await self._operator.active(idle_s, metered)}

    async def _resume(self) -> Doc:
        return {"said": await self._operator.resume()}

    async def _shutdown(self) -> Doc:
        return {"said": await self._operator.shutdown()}

    async def _make_export(self) -> Doc:
        async with self._exporting:
            self._export = await asyncio.to_thread(Export.of, await self._operator.export())
            return {"id": self._export.id, "files": [asdict(file) for file in self._export.files]}

    async def _send_export(self, request: web.Request, name: str, id: str | None) -> web.StreamResponse:
        export = self._export
        if export is None or id not in (None, export.id):
            raise Refusal(HTTPStatus.CONFLICT, "that export was replaced or never made; begin again with POST /v1/export")
        if name not in {file.name for file in export.files}:
            raise Refusal(HTTPStatus.NOT_FOUND, f"the export holds no file {name[:80]!r}")
        return web.FileResponse(export.folder / name)
