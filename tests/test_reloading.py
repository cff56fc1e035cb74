"""What a running daemon takes up of a changed file; and that a wrong file changes nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tapestryd.config import DaemonConfig, settings_of
from tapestryd.errors import ConfigFault
from tapestryd.layers import Loaded, files_at, load_daemon
from tapestryd.reloading import LIVE, Choices


def choices(path: Path) -> tuple[Choices, Callable[[str], object]]:
    def load() -> Loaded[DaemonConfig]:
        return load_daemon(files_at(path), {}, {})

    def write(body: str) -> None:
        path.write_text("schema_version = 1\n" + body)

    write("")
    return Choices(load), write


def test_live_keys_are_taken_up_and_others_named(tmp_path: Path) -> None:
    held, write = choices(tmp_path / "t.toml")
    write('[node]\nname = "aspen"\n[network]\nmax_upload = "1 MiB"\n[storage]\nkeep_snapshots = 5\n')
    done = asyncio.run(held.reload())
    assert (done.changed, done.restart) == (("node.name", "network.max_upload"), ("storage.keep_snapshots",))
    assert done.said == "Taken up: node.name, network.max_upload. Needs a restart of tapestryd: storage.keep_snapshots."
    assert (held.config.node.name, held.config.network.max_upload_bytes, held.config.storage.keep_snapshots) == ("aspen", 1 << 20, 2)
    origins = {setting.key: (setting.value, setting.origin, setting.live) for setting in held.settings()}
    assert origins["network.max_upload"] == ("1 MiB", str(tmp_path / "t.toml"), True)
    assert origins["storage.keep_snapshots"] == (2, "built-in", False)
    write("")
    assert asyncio.run(held.reload()).changed == ("node.name", "network.max_upload")
    assert held.config == DaemonConfig()
    assert asyncio.run(held.reload()).said == "Nothing has changed."


def test_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    held, write = choices(tmp_path / "t.toml")
    write('[node]\nname = "aspen"\n[log]\nlevel = "loud"\n')
    with pytest.raises(ConfigFault):
        asyncio.run(held.reload())
    assert held.config == DaemonConfig()
    assert "log.level = 'loud'" in held.trouble
    assert "the old one holds" in held.trouble
    write("")
    asyncio.run(held.reload())
    assert held.trouble == ""


def test_live_names_keys_that_exist() -> None:
    assert set(settings_of(DaemonConfig)) >= LIVE
