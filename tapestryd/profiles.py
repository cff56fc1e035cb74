"""Kinds of machines, and what tapestryd does otherwise on each than its built-in values say. Values are as a file writes them.

A profile is a layer beneath the files (layers.py), so whatever a file says still holds. Each side's file names its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Profile:
    """`what`: for whom. `daemon`, `trainer`: key → value, of either side."""

    what: str
    daemon: Mapping[str, object] = field(default_factory=dict)
    trainer: Mapping[str, object] = field(default_factory=dict)


PROFILES: Mapping[str, Profile] = {
    "none": Profile("the built-in values"),
    "volunteer": Profile(
        "somebody's own machine that helps when it is free: makes way for people and their programs, and stays cool",
        {"network.max_serve": "1 MiB", "network.lan_exempt": True, "storage.keep_snapshots": 1},
        {"schedule.when_user_active": "pause-gpu", "cpu.max_load": "40%", "gpu.max_temperature": 78, "gpu.resume_temperature": 68},
    ),
    "laptop": Profile(
        "as volunteer, and nothing at all while somebody is at it",
        {"network.max_serve": "1 MiB", "network.lan_exempt": True, "storage.keep_snapshots": 1},
        {
            "schedule.when_user_active": "pause",
            "schedule.idle_after": "5m",
            "cpu.max_load": "25%",
            "gpu.max_temperature": 75,
            "gpu.resume_temperature": 65,
        },
    ),
    "workstation": Profile(
        "a desktop machine that its user lends: the GPU is theirs while they are there, and after others' programs",
        {"network.lan_exempt": True},
        {"schedule.when_user_active": "pause-gpu", "cpu.max_load": "60%"},
    ),
    "server": Profile(
        "a machine for this alone: goes on whatever a battery (a UPS) or the uplink says, and comes back at once",
        {"network.metered": "run", "storage.keep_snapshots": 3},
        {"schedule.on_battery": "run", "schedule.resume_delay": "30s"},
    ),
    "lab": Profile(
        "one machine of many people: no page that all of them can read, and their work comes first",
        {"dashboard.enabled": False, "network.lan_exempt": True, "network.metered": "run"},
        {"schedule.on_battery": "run", "cpu.max_load": "25%", "schedule.resume_delay": "10m"},
    ),
    "bootstrap": Profile(
        "a machine that is always there for a run's other peers: it trains nothing, and serves base, log and addresses",
        {"trainer.enabled": False, "dashboard.enabled": False, "network.metered": "run", "storage.keep_snapshots": 4},
    ),
}
