"""One frozen picture of this peer, the same for CLI, dashboard, systemd and log. Reads everything, changes nothing."""

import os
import shutil
import time

from protocols import control
from protocols.rounds import IN_ROUND, Member, State
from tapestryd import __version__
from tapestryd.config import DaemonConfig
from tapestryd.doorkeeper import Doorkeeper
from tapestryd.host.clock import now_ms
from tapestryd.host.web import Web
from tapestryd.isolation import Isolation
from tapestryd.session import Session

_WINDOW = 60

_STATES = {
    State.JOINING: "joining", State.SYNCING: "syncing", State.TRAINING: "training", State.PAUSED: "paused", State.LEFT: "stopping",
    **dict.fromkeys(IN_ROUND, "averaging"),
}  # fmt: skip

_HEALTH = {
    "clock": "the clock differs too much from the swarm's median; set it right (NTP), averaging waits",
    "disk_low": "less free disk than storage.min_free; make room, training waits",
    "disk_full": "too little free disk to catch up; make room, it is tried every 30 s",
    "twin": "another daemon runs with this node's identity: stop one of them for good, or both are banned for voting twice",
    "no_donor": "no peer could show the lineage that it announced; trying again",
}


def picture(
    config: DaemonConfig, session: Session | None, door: Doorkeeper, isolation: Isolation, policy: control.Policy,
    gpus: tuple[control.Gpu, ...], webs: tuple[Web, Web],
    peer_id: str, began: float, trouble: str, stopping: bool
) -> control.Status:  # fmt: skip
    """`webs`: of the dashboard, and of the metrics. `began`: time.monotonic() of the daemon's start. `trouble`: its own."""
    trainer = control.Trainer(state="off")
    state = "idle"
    reasons: tuple[str, ...] = ()
    health = [said for said in (trouble,) if said] + isolation.trouble() + [web.trouble for web in webs if web.trouble]
    if session is not None:
        state, reasons = _state(session.member, trains=config.trainer.enabled)
        health += [_HEALTH[reason] for reason in reasons if reason in _HEALTH]
        if session.roll and session.roll.trouble:
            health.append(session.roll.trouble)
        if session.supervisor:
            trainer = session.supervisor.status(session.member is not None and session.member.stepping)
            health += session.supervisor.health
    stories = session.history.rounds[-_WINDOW:] if session else []
    return control.Status(
        version=__version__,
        self=control.Self(peer_id, config.node.name, tuple(session.addresses) if session else (), os.getpid(), *(web.url for web in webs)),
        uptime_s=round(time.monotonic() - began, 1),
        state="stopping" if stopping else state,
        reasons=reasons,
        health=tuple(health),
        run=_run(session) if session else None,
        trainer=trainer,
        network=_network(session),
        averaging=control.Averaging(
            stories[-1] if stories else None, len(stories), sum(story.result in ("committed", "replayed") for story in stories)
        ),
        traffic=_traffic(session),
        refusals=dict(session.node.refusals) if session else {},
        isolation=isolation.status(),
        peers=session.neighbours.status(_base(session), door.score) if session else (),
        declined=dict(session.node.declined) if session else {},
        bans=len(door.bans()),
        policy=policy,
        gpus=gpus,
        contribution=session.history.contribution if session else control.Contribution(),
        disk=control.Disk(shutil.disk_usage(config.node.state_dir).free, config.storage.min_free_bytes),
    )


def _state(member: Member | None, *, trains: bool) -> tuple[str, tuple[str, ...]]:
    """With the reasons for not training. Who is not to train waits for nothing once it has a base, and serves the others."""
    if member is None:
        return "joining", ("no_rules",)
    if not trains and member.state is State.JOINING and set(member.reasons) <= {"no_peers", "trainer"}:
        return "serving", ()
    return _STATES[member.state], member.reasons


def _base(session: Session) -> str:
    tip = session.keeper.base.tip if session.member else None
    return tip.base if tip else ""


def _run(session: Session) -> control.Run:
    rules, member = session.rules, session.member
    if rules is None or member is None:
        return control.Run(session.store.run_id, rules.name if rules else "", "fetching", 0, 0, "", 0.0, session.invite(), 0, 0, 0)
    schedule, tip, now = rules.schedule, session.keeper.base.tip, now_ms()
    round = schedule.round_at(now)
    return control.Run(
        id=rules.run_id,
        name=rules.name,
        phase=member.state.value,
        round=round,
        height=tip.height if tip else 0,
        base_digest=tip.base if tip else "",
        boundary_in_s=(schedule.boundary(round) - now) / 1000,
        invite=session.invite(),
        elements=session.keeper.base.layout.elements,
        fragments=rules.averaging.fragments,
        min_peers=rules.averaging.min_peers,
        fetching=session.keeper.fetching,
    )


def _network(session: Session | None) -> control.Network:
    if session is None:
        return control.Network(0, "unknown", None)
    return control.Network(session.neighbours.count(), _REACHABLE[session.reach.reachable], session.neighbours.clock()[1])


_REACHABLE = {None: "unknown", True: "yes", False: "no"}


def _traffic(session: Session | None) -> control.Traffic:
    if session is None:
        return control.Traffic(0, 0, {})
    meter = session.node.meter
    sent, received = meter.totals()
    kinds = sorted({*meter.sent, *meter.received})
    by_kind = {kind: {"sent": meter.sent.get(kind, 0), "received": meter.received.get(kind, 0)} for kind in kinds}
    return control.Traffic(sent, received, by_kind)
