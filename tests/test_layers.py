"""Layers of configuration: which wins, where each value came from, drop-ins, profiles; and values as files write them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.config import DaemonConfig, TrainerConfig, settings_of
from tapestryd.errors import ConfigFault
from tapestryd.layers import daemon_at_hand, files_at, load_daemon, load_trainer, trainer_at_hand, usual
from tapestryd.profiles import PROFILES
from tapestryd.settings import convert, parse_duration, parse_share, parse_size, written


def file(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(body)
    return path


def test_every_layer_wins_over_those_before_it_and_says_so(tmp_path: Path) -> None:
    path = file(tmp_path, "t.toml", 'schema_version = 1\n[node]\nprofile = "laptop"\nname = "file"\n[log]\nlevel = "error"\n')
    first = file(tmp_path, "t.toml.d/10-a.toml", '[node]\nname = "a"\nstate_dir = "state"\n[log]\nformat = "text"\n')
    second = file(tmp_path, "t.toml.d/20-b.toml", 'schema_version = 1\n[node]\nname = "b"\n[storage]\nmin_free = "2 GiB"\n')
    file(tmp_path, "t.toml.d/30-c.toml.off", "nonsense")
    loaded = load_daemon(files_at(path), {"TAPESTRY_LOG__LEVEL": "warning"}, {"storage.min_free": "3 GiB"})
    for key, value, origin in (
        ("node.profile", "laptop", str(path)),
        ("node.name", "b", str(second)),
        ("node.state_dir", tmp_path / "t.toml.d" / "state", str(first)),
        ("log.level", "warning", "environment TAPESTRY_LOG__LEVEL"),
        ("log.format", "text", str(first)),
        ("storage.min_free", 3 << 30, "command line"),
        ("storage.keep_snapshots", 1, "profile laptop"),
        ("storage.snapshot_every", 8, "built-in"),
    ):
        assert (loaded.value(key), loaded.origins[key]) == (value, origin), key
    assert list(loaded.origins) == list(settings_of(DaemonConfig))


def test_a_profile_may_be_chosen_in_any_layer_and_lies_beneath_them_all(tmp_path: Path) -> None:
    path = file(tmp_path, "t.toml", 'schema_version = 1\n[node]\nprofile = "laptop"\n[cpu]\nmax_load = "90%"\n')
    loaded = load_trainer(files_at(path), {"TAPESTRY_TRAINER_NODE__PROFILE": "workstation"}, {})
    assert loaded.config.schedule.when_user_active == "pause-gpu"
    assert loaded.config.cpu.max_load_share == 0.9
    assert loaded.config.gpu.max_temperature == TrainerConfig().gpu.max_temperature


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_a_good_configuration_and_says_only_what_is_not_built_in(name: str) -> None:
    daemon = load_daemon((), {}, {"node.profile": name})
    trainer = load_trainer((), {}, {"node.profile": name})
    for loaded, said, built_in in (
        (daemon, PROFILES[name].daemon, load_daemon((), {}, {})),
        (trainer, PROFILES[name].trainer, load_trainer((), {}, {})),
    ):
        for key, origin in loaded.origins.items():
            assert (origin == f"profile {name}") == (key in said), key
            if key != "node.profile":
                assert (loaded.value(key) != built_in.value(key)) == (key in said), key  # type: ignore[attr-defined]


def test_a_profile_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, "t.toml", 'schema_version = 1\n[node]\nprofile = "labtop"\n')
    with pytest.raises(ConfigFault, match=r"node.profile = 'labtop': must be none, volunteer, laptop, workstation, server, lab or boot"):
        load_daemon(files_at(path), {}, {})
    with pytest.raises(ConfigFault, match=r"node.profile = \['lab'\]: must be text"):
        load_daemon(files_at(file(tmp_path, "u.toml", 'schema_version = 1\n[node]\nprofile = ["lab"]\n')), {}, {})


def test_faults_in_drop_ins_and_what_cannot_be_read(tmp_path: Path) -> None:
    path = file(tmp_path, "t.toml", "schema_version = 1\n")
    one = file(tmp_path, "t.toml.d/1.toml", "[node]\nname = 3\n")
    two = file(tmp_path, "t.toml.d/2.toml", "schema_version = 2\n")
    (tmp_path / "t.toml.d/3.toml").mkdir()
    with pytest.raises(ConfigFault) as caught:
        load_daemon(files_at(path), {}, {})
    assert str(caught.value).splitlines() == [
        f"{two}: schema_version = 2 is not one this version reads; the file must begin with schema_version = 1",
        f"{tmp_path}/t.toml.d/3.toml: cannot be read (Is a directory); name another file with --config, or copy the example from deploy/",
        f"{one}: node.name = 3: must be text in quotes",
    ]


@pytest.mark.parametrize("config", [DaemonConfig, TrainerConfig])
def test_built_in_values_as_files_write_them_are_themselves(config: type) -> None:
    for key, setting in settings_of(config).items():
        assert convert(setting.kind, written(setting.kind, setting.default), Path("/")) == setting.default, key


@given(st.integers(0, 10**15 - 1))
def test_sizes_as_files_write_them(size: int) -> None:
    assert parse_size(written("size", size)) == size


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})?(ms|s|m|h|d)", fullmatch=True))
def test_durations_as_files_write_them(text: str) -> None:
    assert parse_duration(written("duration", parse_duration(text))) == pytest.approx(parse_duration(text), rel=1e-12, abs=1e-9)


@given(st.from_regex(r"(100|[0-9]{1,2}(\.[0-9]{1,4})?)%", fullmatch=True))
def test_shares_as_files_write_them(text: str) -> None:
    assert parse_share(written("share", parse_share(text))) == pytest.approx(parse_share(text), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [("size", 0, "0"), ("size", 3 << 20, "3 MiB"), ("size", 1500, "1500"), ("duration", 43_200.0, "12h"), ("duration", 0.25, "0.25s"),
     ("duration", 0.0, "0s"), ("duration", 90.0, "90s"), ("share", 0.4, "40%"), ("share", 0.07, "7%"), ("path", Path("/a"), "/a"),
     ("paths", (Path("/a"),), ["/a"]), ("flag", True, True), ("number", 1.5, 1.5)],
)  # fmt: skip
def test_values_as_people_write_them(kind: str, value: object, text: object) -> None:
    assert written(kind, value) == text


@pytest.mark.skipif(Path("/etc/tapestry").exists(), reason="a service is installed here")
def test_whoever_runs_a_daemon_of_their_own_needs_to_name_no_file(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert usual(environ) == Path("/etc/tapestry/tapestryd.toml")
    assert (daemon_at_hand(environ), trainer_at_hand(environ)) == (DaemonConfig(), TrainerConfig())
    folder = tmp_path / ".config" / "tapestry"
    folder.mkdir(parents=True)
    (folder / "tapestryd.toml").write_text('schema_version = 1\n[node]\nstate_dir = "/mine"\n')
    (folder / "trainer.toml").write_text('schema_version = 1\n[checkpoint]\ndir = "/mine too"\n')
    assert daemon_at_hand(environ).node.state_dir == Path("/mine")
    assert trainer_at_hand(environ).checkpoint.dir == Path("/mine too")
    assert usual({**environ, "XDG_CONFIG_HOME": str(tmp_path)}) == Path("/etc/tapestry/tapestryd.toml")
