"""The configuration in force: what of another one a running daemon takes up, and what has to wait until it is started anew."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from protocols.control import Reloaded, Setting
from tapestryd.config import DaemonConfig, settings_of
from tapestryd.errors import ConfigFault
from tapestryd.layers import Loaded
from tapestryd.settings import written

LIVE = frozenset(
    {
        "node.name",
        "network.bootstrap",
        "network.max_serve",
        "network.max_upload",
        "network.max_download",
        "network.lan_exempt",
        "network.transfer_cap",
        "network.metered",
        "log.level",
        "storage.min_free",
        "trust.score_disconnect",
        "trust.score_ban",
        "trust.score_halflife",
        "trust.ban_time",
        "trust.deny",
    }
)
"""Keys that the daemon looks at anew. The others name what is opened, bound or founded once."""


class Choices:
    """`load` reads the configuration as it is now, or raises ConfigFault. `trouble`: why that is not what holds, a sentence."""

    def __init__(self, load: Callable[[], Loaded[DaemonConfig]]) -> None:
        self._load = load
        self._loaded = load()
        self._reloading = asyncio.Lock()
        self.trouble = ""

    @property
    def config(self) -> DaemonConfig:
        return self._loaded.config

    @property
    def files(self) -> tuple[Path, ...]:
        return self._loaded.files

    def settings(self) -> list[Setting]:
        loaded = self._loaded
        return [
            Setting(key, written(setting.kind, loaded.value(key)), loaded.origins[key], key in LIVE)
            for key, setting in settings_of(DaemonConfig).items()
        ]

    async def reload(self) -> Reloaded:
        """Whole or not at all: raises ConfigFault with everything as it was."""
        async with self._reloading:
            try:
                new = await asyncio.to_thread(self._load)
            except ConfigFault as fault:
                self.trouble = f"the configuration was not taken up, the old one holds: {fault}"
                raise
            self.trouble = ""
            keys = changed(self._loaded, new)
            now, later = [key for key in keys if key in LIVE], [key for key in keys if key not in LIVE]
            self._loaded = taken(self._loaded, new, now)
            return Reloaded(_said(now, later), tuple(now), tuple(later))


def changed(old: Loaded[DaemonConfig], new: Loaded[DaemonConfig]) -> list[str]:
    """Keys whose values differ, in the order of the file."""
    return [key for key in settings_of(DaemonConfig) if old.value(key) != new.value(key)]


def taken(old: Loaded[DaemonConfig], new: Loaded[DaemonConfig], keys: Sequence[str]) -> Loaded[DaemonConfig]:
    """`old`, but for `keys`."""
    config = old.config
    for key in keys:
        setting = settings_of(DaemonConfig)[key]
        section: Any = replace(getattr(config, setting.section), **{setting.field: new.value(key)})
        config = replace(config, **{setting.section: section})
    return Loaded(config, {**old.origins, **{key: new.origins[key] for key in keys}}, new.files)


def _said(now: Sequence[str], later: Sequence[str]) -> str:
    if not now and not later:
        return "Nothing has changed."
    taken = f"Taken up: {', '.join(now)}." if now else ""
    waits = f"Needs a restart of tapestryd: {', '.join(later)}." if later else ""
    return " ".join(filter(None, (taken, waits)))
