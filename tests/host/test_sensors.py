"""Each sensor on trees of files as the kernel documents them, on this machine's own, and on trees of nonsense."""

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapestryd.host.policy import Gpu, Policy, Readings
from tapestryd.host.sensors import amd, desktop, power, programs, wall
from tapestryd.host.sensors.load import TICKS, WINDOW_S, Load, cpu_s
from tapestryd.host.sensors.machine import IDLE_LOOK_S, Machine, Ours
from tapestryd.host.sensors.power import Power


def grow(root: Path, tree: Mapping[str, str]) -> Path:
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


# Power.

MAINS = {"type": "Mains", "online": "1"}
BATTERY = {"type": "Battery", "present": "1", "status": "Discharging", "capacity": "63", "energy_now": "30870000"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "15", "online": "1"}


@pytest.mark.parametrize(
    ("supplies", "found"),
    [
        ({}, Power(False, None)),
        ({"AC": MAINS}, Power(False, None)),
        ({"hidpp_battery_0": MOUSE}, Power(False, None)),
        ({"AC": MAINS | {"online": "0"}, "BAT0": BATTERY}, Power(True, 0.63)),
        ({"AC": MAINS, "BAT0": BATTERY | {"status": "Charging"}}, Power(False, 0.63)),
        ({"AC": MAINS, "BAT0": BATTERY}, Power(False, 0.63)),  # it draws more than the mains adapter gives
        ({"AC": MAINS | {"online": "0"}, "BAT0": BATTERY, "BAT1": BATTERY | {"capacity": "37"}}, Power(True, 0.5)),
        ({"AC": MAINS | {"online": "0"}, "BAT0": BATTERY | {"present": "0"}}, Power(False, None)),
        ({"ucsi-source-psy-USBC000:001": {"type": "USB", "online": "0"}, "AC": MAINS, "BAT0": BATTERY}, Power(False, 0.63)),
        ({"ucsi-source-psy-USBC000:001": {"type": "USB", "online": "1"}, "BAT0": BATTERY}, Power(False, 0.63)),
        ({"BAT0": BATTERY}, Power(True, 0.63)),
        ({"BAT0": BATTERY | {"status": "Not charging"}}, Power(False, 0.63)),
        ({"BAT0": BATTERY | {"status": "Unknown"}}, Power(None, 0.63)),
        ({"BAT0": {"type": "Battery", "status": "Full"}}, Power(False, None)),
        ({"ups": {"type": "UPS", "status": "Discharging", "capacity": "99"}}, Power(True, 0.99)),
        ({"BAT0": BATTERY | {"capacity": "many"}}, Power(True, None)),
    ],
)
def test_power(tmp_path: Path, supplies: Mapping[str, Mapping[str, str]], found: Power) -> None:
    (tmp_path / "sys/class/power_supply").mkdir(parents=True)
    for name, files in supplies.items():
        grow(tmp_path, {f"sys/class/power_supply/{name}/{file}": content for file, content in files.items()})
    assert power.read(tmp_path) == found


def test_without_that_folder_power_is_not_known(tmp_path: Path) -> None:
    assert power.read(tmp_path) == Power(None, None)


# Processors.

STAT = "cpu  {user} 50 {system} {idle} 40 10 20 {stolen} 7 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 1"


def stat(root: Path, *, user: int = 0, system: int = 0, idle: int = 0, stolen: int = 0) -> Path:
    return grow(root, {"proc/stat": STAT.format(user=1000 + user, system=200 + system, idle=9000 + idle, stolen=5 + stolen)})


@pytest.mark.parametrize(
    ("spent", "ours_s", "share"),
    [
        ({"user": 500, "idle": 1500}, 0.0, 0.25),
        ({"user": 500, "idle": 1500}, 2.0, 0.15),
        ({"user": 500, "idle": 1500}, 5.0, 0.0),
        ({"user": 500, "idle": 1500}, 99.0, 0.0),
        ({"user": 500, "system": 300, "idle": 1200}, 0.0, 0.4),
        ({"user": 500, "idle": 500, "stolen": 1000}, 0.0, 0.25),
        ({"user": 500, "idle": 1500}, -3.0, 0.25),
        ({"idle": 2000}, 0.0, 0.0),
        ({}, 0.0, None),
    ],
)
def test_load(tmp_path: Path, spent: dict[str, int], ours_s: float, share: float | None) -> None:
    load = Load(stat(tmp_path))
    assert load.read(100.0, 50.0) is None
    stat(tmp_path, **spent)
    assert load.read(110.0, 50.0 + ours_s) == (pytest.approx(share) if share is not None else None)


def test_load_is_that_of_the_latest_window(tmp_path: Path) -> None:
    """A look every 5 s for three minutes, all of which is work in the second minute: an oracle over the same looks."""
    load, busy, idle = Load(stat(tmp_path)), 0, 0
    looks: list[tuple[float, int]] = []
    for now_s in range(0, 181, 5):
        stat(tmp_path, user=busy, idle=idle)
        looks.append((now_s, busy))
        found = load.read(float(now_s), 0.0)
        before = [look for look in looks if now_s - look[0] >= WINDOW_S] or looks[:1]
        if now_s:
            assert found == pytest.approx((busy - before[-1][1]) / (now_s - before[-1][0]) / TICKS)
        working = 60 <= now_s < 120
        busy, idle = busy + 500 * working, idle + 500 * (not working)


@pytest.mark.parametrize("content", ["", "cpu", "cpu 1 2 3 4 5 6 7", "cpu a b c d e f g h", "cpu 1 2 3 4 5 6 7 -8"])
def test_what_is_no_stat_is_not_known(tmp_path: Path, content: str) -> None:
    load = Load(grow(tmp_path, {"proc/stat": content}))
    assert [load.read(now_s, 0.0) for now_s in (0.0, 10.0)] == [None, None]


def test_cpu_seconds_are_those_that_the_kernel_tells_the_process_itself() -> None:
    before = os.times()
    found = cpu_s(Path("/"), [os.getpid()])
    after = os.times()
    assert sum(before[:4]) - 4 / TICKS <= found <= sum(after[:4]) + 4 / TICKS
    assert cpu_s(Path("/"), [2**22 + 1]) == 0.0


def test_a_name_does_not_mislead_the_reader_of_stat(tmp_path: Path) -> None:
    words = "4242 (a) 9 (b c)) S 1 4242 4242 0 -1 4194560 1 2 3 4 700 300 40 60 20 0 1 0 5 6 7"
    assert cpu_s(grow(tmp_path, {"proc/4242/stat": words}), [4242]) == 11.0


# Programs, and the clock on the wall.


def test_programs(tmp_path: Path) -> None:
    grow(tmp_path, {"proc/1/comm": "systemd", "proc/77/comm": "gnome-session-b", "proc/self/comm": "python3", "proc/stat": "cpu"})
    assert programs.running(tmp_path) == {"systemd", "gnome-session-b"}
    assert programs.known_as("gnome-session-binary") == "gnome-session-b"
    assert programs.known_as("ärger-mit-umlauten") == "ärger-mit-umla"


def test_hidden_programs_are_not_known(tmp_path: Path) -> None:
    assert programs.running(grow(tmp_path, {"proc/77/comm": "python3"})) is None


def test_the_programs_of_this_machine() -> None:
    own = Path("/proc/self/comm").read_text().strip()
    assert own in (programs.running(Path("/")) or ())


def test_the_zone_is_that_of_localtime(tmp_path: Path) -> None:
    zones = Path("/usr/share/zoneinfo/Asia/Kathmandu")
    if not zones.exists():
        pytest.skip("there are no zones on this machine")
    assert wall.zone(tmp_path) is UTC
    (tmp_path / "etc").mkdir()
    shutil.copy(zones, tmp_path / "etc/localtime")
    assert datetime.fromtimestamp(0, wall.zone(tmp_path)).isoformat() == "1970-01-01T05:30:00+05:30"
    (tmp_path / "etc/localtime").write_bytes(b"TZif")
    assert wall.zone(tmp_path) is UTC


# The desktop: D-Bus by way of a busctl of ours, which says what the real one says; X11 by a real server.


def says(folder: Path, script: str) -> str:
    program = folder / "busctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'u 1'", True),
        ("echo 'u 2'", False),
        ("echo 'u 3'", True),
        ("echo 'u 4'", False),
        ("echo 'u 0'", None),
        ("echo 'u 1'; exit 1", None),
        ("echo 'Failed to get property Metered: The name is not activatable' >&2; exit 1", None),
    ],
)
def test_metered(tmp_path: Path, script: str, found: bool | None) -> None:
    assert desktop.metered(says(tmp_path, script)) is found


@pytest.mark.parametrize(("script", "found"), [("echo 't 61234'", 61.234), ("echo 't 0'", 0.0), ("echo 's idle'", None), ("exit 1", None)])
def test_idle_by_gnome(tmp_path: Path, script: str, found: float | None) -> None:
    assert desktop.gnome_idle_s(says(tmp_path, script)) == found


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'b true'; echo 't 1795780700000000'", 100.0),
        ("echo 'b false'; echo 't 1795780700000000'", 0.0),
        ("echo 'b false'; echo 't 0'", None),  # nobody has ever given a hint
        ("echo 'b true'; echo 't 1795780900000000'", 0.0),
        ("echo 'b true'", None),
        ("exit 1", None),
    ],
)
def test_idle_by_logind(tmp_path: Path, script: str, found: float | None) -> None:
    assert desktop.logind_idle_s(1_795_780_800.0, says(tmp_path, script)) == found


def test_without_busctl_nothing_is_known() -> None:
    absent = "/nonexistent/busctl"
    assert (desktop.metered(absent), desktop.gnome_idle_s(absent), desktop.logind_idle_s(0.0, absent)) == (None, None, None)


@pytest.fixture
def display(tmp_path: Path) -> Iterator[str]:
    """A real X server without a screen."""
    program = shutil.which("Xvfb")
    if program is None or ctypes.util.find_library("Xss") is None or shutil.which("xdotool") is None:
        pytest.skip("Xvfb, libXss and xdotool are not installed")
    ours, theirs = os.pipe()
    words = [program, "-displayfd", str(theirs), "-screen", "0", "320x240x24", "-nolisten", "tcp", "-noreset"]
    with (tmp_path / "xvfb.log").open("wb") as said, subprocess.Popen(words, pass_fds=(theirs,), stderr=said) as server:
        os.close(theirs)
        with os.fdopen(ours) as told:
            yield f":{told.readline().strip()}"
        server.terminate()


def test_idle_by_x11(display: str) -> None:
    saver = desktop.ScreenSaver(display)
    began = time.monotonic()
    first = saver.idle_s()
    assert first is not None
    time.sleep(1.0)
    later = saver.idle_s()
    assert later is not None
    assert later - first == pytest.approx(time.monotonic() - began, abs=0.5)
    subprocess.run(["xdotool", "mousemove", "10", "10", "key", "a"], check=True, env={"DISPLAY": display, "PATH": os.environ["PATH"]})
    touched = saver.idle_s()
    assert touched is not None
    assert touched < later


def test_without_an_x_server_there_is_a_sentence() -> None:
    with pytest.raises(OSError, match=r"no X server answers on :4711|not installed"):
        desktop.ScreenSaver(":4711")


# GPUs of AMD.

CARD = "sys/class/drm/card1/device"
RADEON = {
    f"{CARD}/vendor": "0x1002",
    f"{CARD}/uevent": "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:47:00.0\nMODALIAS=pci:v00001002",
    f"{CARD}/gpu_busy_percent": "93",
    f"{CARD}/mem_info_vram_total": "25753026560",
    f"{CARD}/mem_info_vram_used": "19327352832",
    f"{CARD}/hwmon/hwmon5/name": "amdgpu",
    f"{CARD}/hwmon/hwmon5/temp1_label": "edge",
    f"{CARD}/hwmon/hwmon5/temp1_input": "61000",
    f"{CARD}/hwmon/hwmon5/temp2_label": "junction",
    f"{CARD}/hwmon/hwmon5/temp2_input": "78000",
    f"{CARD}/hwmon/hwmon5/power1_average": "287000000",
    "sys/class/drm/card1-DP-1/status": "connected",
    "sys/class/drm/renderD128/dev": "226:128",
    "sys/class/drm/card0/device/vendor": "0x8086",
    "sys/class/kfd/kfd/topology/nodes/0/gpu_id": "0",
    "sys/class/kfd/kfd/topology/nodes/0/properties": "cpu_cores_count 32\nlocation_id 0\ndomain 0",
    "sys/class/kfd/kfd/topology/nodes/1/gpu_id": "51545",
    "sys/class/kfd/kfd/topology/nodes/1/properties": "simd_count 192\nlocation_id 18176\ndomain 0\nvendor_id 4098",
    "sys/class/kfd/kfd/proc/700/vram_51545": "16106127360",
    "sys/class/kfd/kfd/proc/700/pasid": "32770",
    "sys/class/kfd/kfd/proc/800/vram_51545": "1073741824",
    "sys/class/kfd/kfd/proc/900/vram_51545": "0",
}


def test_a_radeon_with_another_program_beside_us(tmp_path: Path) -> None:
    (gpu,) = amd.read(grow(tmp_path, RADEON), [700])
    assert gpu == Gpu(78.0, 1, None, 0.93, 19327352832, 25753026560, 287.0, "pci:0000:47:00.0", "AMD GPU")


def test_a_radeon_that_others_have_to_themselves_or_nobody(tmp_path: Path) -> None:
    (gpu,) = amd.read(grow(tmp_path, RADEON), [])
    assert (gpu.others, gpu.others_util) == (2, 0.93)
    shutil.rmtree(tmp_path / "sys/class/kfd/kfd/proc/800")
    (gpu,) = amd.read(tmp_path, [700])
    assert (gpu.others, gpu.others_util) == (0, 0.0)


def test_a_radeon_of_which_little_is_known(tmp_path: Path) -> None:
    grow(tmp_path, {f"{CARD}/vendor": "0x1002", f"{CARD}/hwmon/hwmon0/temp1_input": "55000"})
    assert amd.read(tmp_path, []) == (Gpu(temperature_c=55.0, id="pci:", name="AMD GPU"),)


def test_a_radeon_that_sleeps_is_left_asleep(tmp_path: Path) -> None:
    grow(tmp_path, RADEON | {f"{CARD}/power/runtime_status": "suspended"})
    assert amd.read(tmp_path, []) == (Gpu(others=0, others_util=0.0, id="pci:0000:47:00.0", name="AMD GPU"),)


def test_without_a_card_there_is_none(tmp_path: Path) -> None:
    assert amd.read(tmp_path, []) == ()


# GPUs of NVIDIA: its binding, on a library of our own (nvml_stub.c), in a process of its own, because a library is loaded once.


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_stub.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)], check=True)
    return folder


def nvidia(library: Path | None, said: str = "") -> list[Gpu]:
    code = (
        "import json, dataclasses; from tapestryd.host.sensors.nvidia import Nvidia; sensor = Nvidia()\n"
        "found = sensor.read(1.0, [100]); sensor.close(); again = sensor.read(1.0, [100])\n"
        "print(json.dumps([[dataclasses.asdict(gpu) for gpu in each] for each in (found, again)]))"
    )
    environment = {"PATH": os.environ["PATH"], "NVML_STUB": said} | ({"LD_LIBRARY_PATH": str(library)} if library else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=Path.cwd())
    found, again = ([Gpu(**gpu) for gpu in each] for each in json.loads(done.stdout))
    # A real card's power and heat are not the same twice.
    assert again == found if library else [gpu.id for gpu in again] == [gpu.id for gpu in found]
    return found


def test_two_cards_of_nvidia(stub: Path) -> None:
    first, second = nvidia(stub)
    assert first == Gpu(77, 2, 0.28, 0.95, 20 << 30, 24 << 30, 318.5, "GPU-11111111-0000-0000-0000-000000000000", "NVIDIA Stub")
    assert (second.temperature_c, second.others, second.others_util, second.power_w) == (41, 0, 0.0, None)


@pytest.mark.parametrize(
    ("said", "first"),
    [("bare", Gpu(77, 2, None, 0.95, 20 << 30, 24 << 30, 318.5)), ("lost", Gpu())],
)
def test_a_card_of_which_little_is_known(stub: Path, said: str, first: Gpu) -> None:
    found, _ = nvidia(stub, said)
    assert found == Gpu(*(getattr(first, name) for name in Gpu.__slots__[:7]), id=found.id, name=found.name)


def test_without_a_driver_there_is_no_card(stub: Path) -> None:
    assert nvidia(stub, "none") == []


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a driver here")
def test_without_the_library_there_is_no_card() -> None:
    assert nvidia(None) == []


@pytest.mark.gpu
def test_a_card_that_is_there() -> None:
    """The same processes as nvidia-smi shows, and numbers that a card can have."""
    found = nvidia(None)
    assert found
    for gpu in found:
        assert gpu.id.startswith("GPU-")
        assert gpu.temperature_c is not None
        assert 10 < gpu.temperature_c < 110
        assert gpu.memory_bytes
    words = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    pids = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert sum(gpu.others or 0 for gpu in found) == len(pids)


# All of them together.


def test_no_more_is_read_than_the_policy_asks_for() -> None:
    machine = Machine(Path("/"), Policy())
    found = machine.read(0.0, 0.0, Ours([os.getpid()]), 5.0)
    assert (found.on_battery, found.load, found.running, found.input_s) == (None, None, None, 5.0)


def test_all_that_the_policy_asks_for_is_read(tmp_path: Path) -> None:
    grow(tmp_path, RADEON | {"proc/1/comm": "systemd", "proc/70/comm": "steam", "proc/70/stat": "70 (x) S" + " 0" * 10 + " 100" * 4})
    grow(tmp_path, {f"sys/class/power_supply/BAT0/{name}": content for name, content in BATTERY.items()})
    stat(tmp_path)
    machine = Machine(tmp_path, Policy(on_battery="pause", max_load=0.5, yield_to=frozenset({"steam"})))
    ours = Ours([70, 700], elsewhere_s=1.0, training=True)
    assert machine.read(0.0, 0.0, ours, None).load is None
    stat(tmp_path, user=1000, idle=1000)
    found = machine.read(10.0, 10.0, Ours([70, 700], elsewhere_s=3.0, training=True), None)
    assert (found.on_battery, found.battery, found.load, found.running) == (True, 0.63, 0.4, frozenset({"systemd", "steam"}))
    assert [gpu.others for gpu in found.gpus] == [1]


def test_while_we_do_not_train_the_gpus_are_left_alone_for_a_while(tmp_path: Path) -> None:
    machine, hot = Machine(grow(tmp_path, RADEON), Policy()), f"{CARD}/hwmon/hwmon5/temp2_input"

    def look(clock_s: float, training: bool) -> float | None:
        return machine.read(clock_s, clock_s, Ours([], training=training), None).gpus[0].temperature_c

    assert look(0.0, False) == 78.0
    grow(tmp_path, {hot: "50000"})
    assert look(IDLE_LOOK_S - 1, False) == 78.0
    assert look(IDLE_LOOK_S, False) == 50.0
    grow(tmp_path, {hot: "60000"})
    assert look(IDLE_LOOK_S + 5, True) == 60.0


def test_this_machine() -> None:
    """Whatever it has; twice, because some sensors compare."""
    machine = Machine(Path("/"), Policy(on_battery="pause", max_load=0.5, yield_to=frozenset({"x"})))
    for _ in range(2):
        found = machine.read(time.time(), time.monotonic(), Ours([os.getpid()], training=True), None)
        assert isinstance(found, Readings)
        assert found.load is None or 0 <= found.load <= 1


NONSENSE = st.sampled_from(["", "-1", "1e9", "99999999999999999999999", "\x00", "Battery", "UPS", "cpu 1", "0x1002", "NaN", "ä"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_tree_makes_a_sensor_raise(tmp_path: Path, data: st.DataObject) -> None:
    files = {**RADEON, "proc/stat": "", "proc/1/comm": "", "etc/localtime": "", "sys/class/power_supply/BAT0/type": ""}
    files |= {f"sys/class/power_supply/BAT0/{name}": "" for name in BATTERY}
    chosen = data.draw(st.dictionaries(st.sampled_from(sorted(files)), NONSENSE, max_size=8))
    root = grow(tmp_path / str(time.monotonic_ns()), RADEON | chosen)
    machine = Machine(root, Policy(on_battery="pause", max_load=0.5, yield_to=frozenset({"x"})))
    for now_s in (0.0, 10.0):
        found = machine.read(now_s, now_s, Ours([1, 700], training=True), None)
        Policy(on_battery="pause", battery_min=0.5, max_load=0.5, other_gpu_process="pause", max_temperature_c=83).decide(now_s, found, {})
    shutil.rmtree(root)
