"""The loader: precedence, every kind of fault, and that no file whatever makes it fail otherwise than with ConfigFault."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapestryd import layers
from tapestryd.config import Api, DaemonConfig, Network, Node, RunChoice, Storage, TrainerConfig, settings_of
from tapestryd.errors import ConfigFault
from tapestryd.layers import files_at
from tapestryd.settings import parse_duration, parse_share, parse_size

PEER = "12D3KooWAfPDpPRRRBrmqy9is2zjU5srQ4hKuZitiGmh4NTTpS2d"
INVITE = f"tapestry:{'0' * 64}?peer=/ip4/192.0.2.7/tcp/31700/p2p/{PEER}"


def load_daemon(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> DaemonConfig:
    return layers.load_daemon(files_at(path), environ, flags).config


def load_trainer(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> TrainerConfig:
    return layers.load_trainer(files_at(path), environ, flags).config


def written(folder: Path, body: str, head: str = "schema_version = 1\n") -> Path:
    path = folder / "tapestry.toml"
    path.write_text(head + body)
    return path


def test_defaults_are_the_dataclasses() -> None:
    assert load_daemon(None, {}, {}) == DaemonConfig()
    assert load_trainer(None, {}, {}) == TrainerConfig()


def test_last_wins_file_environment_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, '[node]\nname = "file"\nstate_dir = "state"\n[log]\nlevel = "debug"\n[storage]\nmin_free = "5 GiB"\n')
    environ = {"TAPESTRY_NODE__NAME": "environment", "TAPESTRY_LOG__LEVEL": "error", "TAPESTRY_SOCKET": "/elsewhere", "HOME": "/root"}
    config = load_daemon(path, environ, {"node.name": "flag"})
    assert config.node == Node(name="flag", state_dir=tmp_path / "state")
    assert config.log.level == "error"
    assert config.storage == replace(Storage(), min_free_bytes=5 << 30)


def test_everything_can_come_from_the_environment(tmp_path: Path) -> None:
    listen = "/ip4/0.0.0.0/tcp/0, /ip4/0.0.0.0/udp/0/quic-v1"
    environ = {
        "TAPESTRY_NETWORK__LISTEN": listen,
        "TAPESTRY_NETWORK__BOOTSTRAP": f"/dns4/tapestry.example/tcp/31700/p2p/{PEER}",
        "TAPESTRY_TRAINER__ENABLED": "False",
        "TAPESTRY_RUN__JOIN": INVITE,
        "TAPESTRY_STORAGE__KEEP_SNAPSHOTS": "4",
        "TAPESTRY_TRAINER_DATA__PATHS": "/a, b",
        "TAPESTRY_TRAINER_CHECKPOINT__EVERY": "1h30m",
        "TAPESTRY_TRAINER_SCHEDULE__HOURS": '["sat,sun 00:00-24:00", "mon-fri 18:00-08:00"]',
        "TAPESTRY_TRAINER_SCHEDULE__YIELD_TO": "blender, steam",
        "TAPESTRY_TRAINER_SCHEDULE__BATTERY_MIN": "40%",
        "TAPESTRY_TRAINER_GPU__MAX_TEMPERATURE": "90",
        "TAPESTRY_TRAINER_RELEASE__DELTA_CLIP_NORM": "1.5",
        "TAPESTRY_TRAINER_RELEASE__DELTA_NOISE_STD": "1e-3",
    }
    config = load_daemon(None, environ, {})
    assert config.network == Network(("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"), (), (environ["TAPESTRY_NETWORK__BOOTSTRAP"],))
    assert (config.trainer.enabled, config.run.join, config.storage.keep_snapshots) == (False, INVITE, 4)
    trainer = load_trainer(None, environ, {})
    assert trainer.data.paths == (Path("/a"), Path.cwd() / "b")
    assert trainer.checkpoint.every_s == 5400.0
    assert trainer.schedule.hours == ("sat,sun 00:00-24:00", "mon-fri 18:00-08:00")
    assert (trainer.schedule.yield_to, trainer.schedule.battery_min_share) == (("blender", "steam"), 0.4)
    assert trainer.gpu.max_temperature == 90.0
    assert (trainer.release.delta_clip_norm, trainer.release.delta_noise_std) == (1.5, 0.001)


def test_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    path = written(tmp_path, '[run]\njoin = "run.toml"\ndelegation = "later.json"\n[api]\nsocket = "a/b.sock"\n')
    config = load_daemon(path, {}, {})
    assert config.run == RunChoice(str(tmp_path / "run.toml"), str(tmp_path / "later.json"))
    assert config.api == Api(tmp_path / "a/b.sock")


DAEMON_FAULTS = [
    ("[nod]\n", "[nod]: no such section; did you mean node?"),
    (
        "[zzzzzzz]\n",
        "[zzzzzzz]: no such section; there are api, dashboard, log, metrics, network, node, run, sandbox, storage, trainer, trust",
    ),
    ("node = 3\n", "node = 3: must be a section; write [node] on a line of its own"),
    ("state_dir = 3\n", "state_dir = 3: no such key outside a section; did you mean node.state_dir?"),
    ("[node]\nnam = 'x'\n", "node.nam = 'x': no such key; did you mean node.name?"),
    ('[node]\n"a\\nb" = 1\n', "'node.a\\nb' = 1: no such key"),
    ("[node]\nname = 3\n", "node.name = 3: must be text in quotes"),
    ("[node]\nname = 'é\t'\n", "node.name = 'é\\t': must not hold control characters"),
    (f"[node]\nname = '{'n' * 65}'\n", "must be at most 64 characters"),
    ("[node]\nstate_dir = ''\n", "node.state_dir = '': must be a path"),
    ("[node]\nstate_dir = '~/x'\n", "~ is not replaced"),
    ("[node]\nstate_dir = ['x']\n", "must be a path in quotes"),
    ("[run]\njoin = 'tapestry:12'\n", "is not an invite"),
    ("[run]\njoin = 'absent.toml'\n", "run.join = 'absent.toml': is neither an invite (tapestry:…) nor a file that exists"),
    ("[run]\ndelegation = 'absent/x.json'\n", "run.delegation = 'absent/x.json': is not a file in a folder that exists"),
    ("[run]\ndelegation = '.'\n", "run.delegation = '.': is not a file"),
    ("[network]\nlisten = '/ip4/0.0.0.0/tcp/1'\n", "must be a list of text"),
    ("[network]\nlisten = [1]\n", "must be a list of text"),
    ("[network]\nlisten = []\n", "must hold 1 to 8 multiaddrs"),
    ("[network]\nlisten = ['127.0.0.1:31700']\n", "'127.0.0.1:31700' is not a multiaddr"),
    ("[network]\nlisten = ['']\n", "'' has no transport that libp2p speaks"),
    ("[network]\nlisten = ['/ip4/192.0.2.7']\n", "has no transport that libp2p speaks; it needs /tcp/<port> or /udp/<port>/quic-v1"),
    ("[network]\nlisten = ['/ip4/192.0.2.7/udp/31700']\n", "has no transport"),
    ("[network]\nannounce = ['/ip4/192.0.2.7/tcp/0']\n", "nobody can dial port 0"),
    ("[network]\nbootstrap = ['/ip4/192.0.2.7/tcp/31700']\n", "must end in /p2p/<peer id>"),
    ("[network]\nmax_upload = '100 KiB'\n", 'network.max_upload = \'100 KiB\': must be "0", for no limit, or at least "256 KiB"'),
    ("[network]\nlan_exempt = 1\n", "must be true or false"),
    ("[network]\nmetered = 'limit'\n", "network.metered = 'limit': must be pause or run"),
    ("[trainer]\nenabled = 'yes'\n", "trainer.enabled = 'yes': must be true or false"),
    (f"[api]\nsocket = '/{'s' * 107}'\n", "must be at most 107 bytes long"),
    ("[dashboard]\nlisten = '0.0.0.0:8470'\n", "must be of this machine alone, such as 127.0.0.1:8470; from elsewhere go through ssh"),
    ("[dashboard]\nlisten = '[::]:80'\n", "ssh -L 80:127.0.0.1:80 HOST"),
    ("[dashboard]\nlisten = 'localhost:8470'\n", "must be an IP address and a port"),
    ("[dashboard]\nlisten = '127.0.0.1:65536'\n", "must be an IP address and a port"),
    ("[dashboard]\nlisten = '::1:8470'\n", 'write it like "127.0.0.1:8470" or "[::1]:8470"'),
    ("[dashboard]\nlisten = '[127.0.0.1]:8470'\n", "must be an IP address and a port"),
    ("[dashboard]\nlisten = ''\n", "must be an IP address and a port"),
    ("[dashboard]\nallowed_hosts = ['box:8470']\n", "'box:8470' is not the name of a host in small letters, without a port"),
    ("[metrics]\nlisten = '9470'\n", "must be an IP address and a port"),
    ("[dashboard]\nwrites = 'always'\n", "must be token or never"),
    ("[log]\nlevel = 'loud'\n", "must be error, warning, info or debug"),
    ("[log]\nformat = 'xml'\n", "must be auto, text or json"),
    ("[storage]\nkeep_snapshots = true\n", "must be a whole number"),
    ("[storage]\nkeep_snapshots = 0\n", "must be from 1 to 1000"),
    ("[storage]\nmin_free = 5\n", "must be a size in quotes"),
    ("[storage]\nmin_free = '5 Gigs'\n", "must be a size; write it like"),
    ("[storage]\nmin_free_bytes = 5\n", "no such key; did you mean storage.min_free?"),
]
TRAINER_FAULTS = [
    ("[data]\npaths = []\n", "must name at least one file or folder"),
    ("[data]\npaths = ['']\n", "data.paths = ['']: must be a path"),
    ("[data]\ntext_field = ''\n", "must name the field"),
    ("[data]\nseed = -1\n", "must be from 0"),
    ("[compute]\ndevice = 'tpu'\n", "must be auto, cpu, cuda, cuda:N or mps"),
    ("[compute]\nthreads = 1.5\n", "must be a whole number"),
    ("[compute]\nprecision = 'fp16'\n", "must be auto, fp32 or bf16"),
    ("[evaluate]\nevery = -1\n", "must be from 0"),
    ("[evaluate]\ntokens = 0\n", "must be from 1"),
    ("[release]\nmin_steps = -1\n", "release.min_steps = -1: must be from 0"),
    ("[release]\nmin_examples = 1.5\n", "must be a whole number"),
    ("[release]\ndelta_clip_norm = '1.0'\n", "must be a number, without quotes"),
    ("[release]\ndelta_clip_norm = true\n", "must be a number, without quotes"),
    ("[release]\ndelta_clip_norm = nan\n", "must be"),
    (f"[release]\ndelta_clip_norm = 1{'0' * 400}\n", "must be"),
    ("[release]\ndelta_noise_std = -0.5\n", "must be from 0"),
    ("[release]\nmax_per_hour = 0\n", "must be from 1"),
    ("[release]\nmax_param_jump = 0\n", "must be from 0.001"),
    ("[checkpoint]\nevery = 60\n", "must be a duration in quotes"),
    ("[checkpoint]\nevery = '60'\n", 'must be a duration; write it like "90s"'),
    ("[checkpoint]\nevery = '10ms'\n", "must be from 1 to 86400 seconds"),
    ("[schedule]\nhours = ['08:00-08:00']\n", "schedule.hours = ['08:00-08:00']: '08:00-08:00': begins when it ends"),
    ("[schedule]\nhours = ['always']\n", "must be hours of a day, written like"),
    ("[schedule]\nwhen_user_active = 'stop'\n", "must be run, pause or pause-gpu"),
    ("[schedule]\nbattery_min = 40\n", "must be a share in quotes"),
    ("[schedule]\nbattery_min = '140%'\n", 'must be a share from "0%" to "100%"'),
    ("[schedule]\nyield_to = ['/usr/bin/steam']\n", "'/usr/bin/steam' is no name of a program; write it as `ps -e` shows it"),
    ("[schedule]\nresume_delay = 120\n", "must be a duration in quotes"),
    ("[gpu]\nmax_temperature = '83'\n", "must be a number, without quotes"),
    ("[gpu]\nmax_temperature = 70\n", "gpu.resume_temperature = 75 is above gpu.max_temperature = 70: it must not be hotter"),
    ("[cpu]\nmax_load = '0.5'\n", "must be a share from"),
]


@pytest.mark.parametrize(("body", "sentence"), DAEMON_FAULTS)
def test_daemon_faults(tmp_path: Path, body: str, sentence: str) -> None:
    path = written(tmp_path, body)
    with pytest.raises(ConfigFault) as caught:
        load_daemon(path, {}, {})
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("body", "sentence"), TRAINER_FAULTS)
def test_trainer_faults(tmp_path: Path, body: str, sentence: str) -> None:
    with pytest.raises(ConfigFault) as caught:
        load_trainer(written(tmp_path, body), {}, {})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "schema_version is missing; the file must begin with schema_version = 1"),
        (b"schema_version = 2\n[node]\nunheard = 1", "schema_version = 2 is not one this version reads"),
        (b"schema_version = true", "schema_version = True is not one this version reads"),
        (b"schema_version = 1\n[node", "not a TOML file in UTF-8 (Expected ']'"),
        (b"schema_version = 1 # \xff", "not a TOML file in UTF-8"),
        (b"#" * (1 << 20) + b"\n", "larger than 1048576 bytes"),
        (b"schema_version = 1\nx = " + b"[" * 100_000, "not a TOML file"),
        (b"schema_version = 1\nnode = 0x" + b"f" * 10_000, "(too large to show): must be a section"),
    ],
)
def test_files_that_cannot_be_taken(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "tapestry.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigFault) as caught:
        load_daemon(path, {}, {})
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigFault, match=rf"{path}: cannot be read \({why}"):
            load_daemon(path, {}, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.chmod(0)
    with pytest.raises(ConfigFault, match="Permission denied"):
        load_daemon(path, {}, {})


def test_all_faults_at_once_each_with_its_origin(tmp_path: Path) -> None:
    path = written(tmp_path, "[node]\nname = 3\n[log]\nlevel = 'loud'\n")
    environ = {"TAPESTRY_STORAGE__KEEP_SNAPSHOTS": "few", "TAPESTRY_NODE__NMAE": "x"}
    with pytest.raises(ConfigFault) as caught:
        load_daemon(path, environ, {"log.format": "xml"})
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{path}: node.name = 3: must be text in quotes",
        f"{path}: log.level = 'loud': must be error, warning, info or debug",
        "environment: TAPESTRY_NODE__NMAE = 'x': no such key; did you mean node.name?",
        "environment: TAPESTRY_STORAGE__KEEP_SNAPSHOTS = 'few': must be a whole number, without quotes",
        "command line: log.format = 'xml': must be auto, text or json",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("500ms", 0.5), ("1.5h", 5400.0), ("2d", 172_800.0), ("0s", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("5 GiB", 5 << 30), ("512MiB", 512 << 20), ("1.5 KiB", 1536), ("2 GB", 2 * 10**9), ("100 B", 100)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "share"), [("0%", 0.0), ("40%", 0.4), ("99.5%", 0.995), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == share


@given(st.text(alphabet="0123456789.smhdKMGiTB% -e٣", max_size=12))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_share):
        with suppress(ValueError):
            assert parse(text) >= 0


def toml(value: object) -> str:
    """`value` as TOML text; control characters and the like escaped."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in value) + '"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return str(value)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["/ip4/1.2.3.4/tcp/1", "tapestry:", "\0", INVITE, "/p2p"]
)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | TEXTS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("load", [load_daemon, load_trainer])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_values_raise_anything_but_config_faults(tmp_path: Path, load: object, data: st.DataObject) -> None:
    known = sorted(settings_of(DaemonConfig if load is load_daemon else TrainerConfig))
    keys = data.draw(st.lists(st.sampled_from(known), max_size=4, unique=True))
    body: dict[str, dict[str, object]] = {}
    for key in keys:
        section, _, name = key.partition(".")
        body.setdefault(section, {})[name] = data.draw(VALUES)
    whole: dict[str, object] = dict(body) | data.draw(st.dictionaries(TEXTS, VALUES, max_size=1))
    path = tmp_path / "tapestry.toml"
    path.write_text("schema_version = 1\n" + "".join(f"{toml(key)} = {toml(value)}\n" for key, value in whole.items()))
    with suppress(ConfigFault):
        load(path, {f"TAPESTRY_{key}": "x" for key in data.draw(st.lists(TEXTS, max_size=1))}, {})  # type: ignore[operator]


def test_noise_needs_a_norm_that_it_is_a_share_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match=r"release.delta_noise_std = 0.5 is a share of release.delta_clip_norm, which is 0: set both"):
        load_trainer(written(tmp_path, "[release]\ndelta_noise_std = 0.5\n"), {}, {})
    assert load_trainer(written(tmp_path, "[release]\ndelta_noise_std = 0.5\ndelta_clip_norm = 1\n"), {}, {}).release.delta_clip_norm == 1
