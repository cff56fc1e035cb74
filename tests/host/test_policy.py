"""When to train: each rule in a table, the waiting against a dumb oracle, and whole days of machines on a virtual clock."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestryd.host.hours import Window
from tapestryd.host.policy import LASTING, Gpu, Hold, Moved, Policy, Readings, Reason, month_of
from tapestryd.host.will import COURTESIES, Mode, Will
from tests.host.day import DAYS, live, read, timeline

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
NIGHT = (Window.parse("18:00-08:00"),)


def reasons(policy: Policy, readings: Readings, memory: dict[Reason, float] | None = None, now_s: float = NOON) -> list[str]:
    return [hold.reason for hold in policy.decide(now_s, readings, memory or {}).holds]


@pytest.mark.parametrize(
    ("policy", "readings", "found"),
    [
        ({}, {}, []),
        ({"hours": NIGHT}, {}, ["schedule"]),
        ({"hours": NIGHT}, {"zone": ZoneInfo("Asia/Tokyo")}, []),  # where it is 21:00
        ({"when_user_active": "pause"}, {"input_s": NOON - 179}, ["user_active"]),
        ({"when_user_active": "pause"}, {"input_s": NOON - 180}, []),
        ({"when_user_active": "pause"}, {"input_s": None}, []),
        ({"when_user_active": "run"}, {"input_s": NOON}, []),
        ({"when_user_active": "pause-gpu"}, {"input_s": NOON}, []),
        ({"when_user_active": "pause-gpu"}, {"input_s": NOON, "gpus": (Gpu(),)}, ["user_active"]),
        ({"on_battery": "pause"}, {"on_battery": True}, ["battery"]),
        ({"on_battery": "pause"}, {"on_battery": False, "battery": 0.01}, []),
        ({"on_battery": "pause"}, {"on_battery": None, "battery": 0.01}, []),
        ({"battery_min": 0.4}, {"on_battery": True, "battery": 0.39}, ["battery"]),
        ({"battery_min": 0.4}, {"on_battery": True, "battery": 0.4}, []),
        ({"battery_min": 0.4}, {"on_battery": True, "battery": None}, []),
        ({"battery_min": 0.4}, {"on_battery": False, "battery": 0.1}, []),
        ({"metered": "pause"}, {"metered": True}, ["metered"]),
        ({"metered": "pause"}, {"metered": None}, []),
        ({"metered": "run"}, {"metered": True}, []),
        ({"other_gpu_process": "pause"}, {"gpus": (Gpu(others=0), Gpu(others=1))}, ["other_gpu_process"]),
        ({"other_gpu_process": "pause"}, {"gpus": (Gpu(others=0, others_util=0.9),)}, []),
        ({"other_gpu_process": "pause"}, {"gpus": (Gpu(others=None),)}, []),
        ({"other_gpu_process": "pause", "other_gpu_util": 0.2}, {"gpus": (Gpu(others=3, others_util=0.2),)}, []),
        ({"other_gpu_process": "pause", "other_gpu_util": 0.2}, {"gpus": (Gpu(others=3, others_util=0.21),)}, ["other_gpu_process"]),
        ({"other_gpu_process": "pause", "other_gpu_util": 0.2}, {"gpus": (Gpu(others=3),)}, []),
        ({"other_gpu_process": "run"}, {"gpus": (Gpu(others=3, others_util=1.0),)}, []),
        ({"max_temperature_c": 83}, {"gpus": (Gpu(82.9), Gpu(None))}, []),
        ({"max_temperature_c": 83}, {"gpus": (Gpu(60), Gpu(83))}, ["gpu_temperature"]),
        ({}, {"gpus": (Gpu(110),)}, []),
        ({"max_load": 0.5}, {"load": 0.5}, []),
        ({"max_load": 0.5}, {"load": 0.51}, ["cpu_load"]),
        ({}, {"load": 1.0}, []),
        ({"yield_to": frozenset({"steam"})}, {"running": frozenset({"bash", "steam"})}, ["exclusive_app"]),
        ({"yield_to": frozenset({"steam"})}, {"running": frozenset({"bash"})}, []),
        ({"yield_to": frozenset({"steam"})}, {"running": None}, []),
        ({"min_free_bytes": 5}, {"free_bytes": 4}, ["disk_low"]),
        ({"min_free_bytes": 5}, {"free_bytes": 5}, []),
        ({"transfer_cap_bytes": 9}, {"moved": Moved("2026-11", 8)}, []),
        ({"transfer_cap_bytes": 9}, {"moved": Moved("2026-11", 9)}, ["transfer_cap"]),
        ({"transfer_cap_bytes": 9}, {"moved": Moved("2026-10", 9)}, []),
        ({}, {"moved": Moved("2026-11", 9)}, []),
        (
            {"hours": NIGHT, "on_battery": "pause", "metered": "pause", "max_load": 0.1},
            {"on_battery": True, "metered": True, "load": 0.2},
            ["schedule", "cpu_load", "battery", "metered"],
        ),
    ],
)
def test_every_rule(policy: dict[str, Any], readings: dict[str, Any], found: list[str]) -> None:
    assert reasons(Policy(**policy), Readings(**readings)) == found


def test_a_gpu_that_was_hot_cools_down_first() -> None:
    policy = Policy(max_temperature_c=83, resume_temperature_c=75)
    hot = {Reason.GPU_TEMPERATURE: float("inf")}
    assert policy.decide(NOON, Readings(gpus=(Gpu(75.5),)), hot).memory == hot
    cool = policy.decide(NOON, Readings(gpus=(Gpu(75),)), hot)
    assert cool.holds == (Hold(Reason.GPU_TEMPERATURE, NOON + 120, over=True),)
    assert cool.memory == {Reason.GPU_TEMPERATURE: NOON}
    assert reasons(policy, Readings(gpus=(Gpu(75.5),))) == []


def test_a_clock_that_is_set_back_makes_nothing_wait_longer() -> None:
    verdict = Policy().decide(NOON, Readings(), {Reason.BATTERY: NOON + 86_400})
    assert verdict.changes_s == NOON + 120
    ahead = Policy(when_user_active="pause").decide(NOON, Readings(input_s=NOON + 86_400), {})
    assert ahead.changes_s == NOON + 180


@pytest.mark.parametrize(
    ("hold", "sentence"),
    [
        (Hold(Reason.BATTERY, measured=0.315), "this machine is on battery at 32%"),
        (Hold(Reason.BATTERY, measured=0.31, limit=0.4), "this machine is on battery at 31%, below schedule.battery_min of 40%"),
        (Hold(Reason.GPU_TEMPERATURE, measured=84.2, limit=75), "the GPU is hot: 84 °C, and goes on at 75 °C"),
        (Hold(Reason.CPU_LOAD, measured=0.71, limit=0.5), "other programs use the CPUs (71%, above cpu.max_load of 50%)"),
        (Hold(Reason.OTHER_GPU_PROCESS, measured=0.93), "another program computes on the GPU (93%)"),
        (
            Hold(Reason.OTHER_GPU_PROCESS, measured=0.93, limit=0.1),
            "another program computes on the GPU (93%, above schedule.other_gpu_util of 10%)",
        ),
        (Hold(Reason.DISK_LOW, measured=2**30, limit=5 * 2**30), "less free disk than storage.min_free: 1.0 of 5.0 GiB free"),
        (
            Hold(Reason.TRANSFER_CAP, measured=101 * 2**30, limit=100 * 2**30),
            "network.transfer_cap is used up: 101.0 of 100.0 GiB this month",
        ),
        (Hold(Reason.METERED, over=True), "the network is metered (network.metered), until a moment ago: it has to stay away for a while"),
    ],
)
def test_sentences_with_their_numbers(hold: Hold, sentence: str) -> None:
    assert hold.sentence == sentence


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_sentence_without_numbers(reason: Reason) -> None:
    assert Hold(reason).sentence.isprintable()
    assert Hold(reason).sentence != Hold(reason, over=True).sentence


# Properties.

SHARES = st.none() | st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.99, 1.0])
GPUS = st.builds(Gpu, st.none() | st.floats(20, 110), st.none() | st.integers(0, 2), SHARES)
READINGS = st.builds(
    Readings,
    zone=st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/Havana")]),
    input_s=st.none() | st.floats(NOON - 600, NOON),
    on_battery=st.none() | st.booleans(),
    battery=SHARES,
    metered=st.none() | st.booleans(),
    gpus=st.lists(GPUS, max_size=2).map(tuple),
    load=SHARES,
    running=st.none() | st.frozensets(st.sampled_from(["bash", "steam"])),
    free_bytes=st.none() | st.integers(0, 10),
    moved=st.none() | st.builds(Moved, st.sampled_from(["2026-11", "2026-10"]), st.integers(0, 10)),
)
POLICIES = st.builds(
    Policy,
    hours=st.sampled_from([(), NIGHT, (Window.parse("fri 12:00-12:02"),), (Window.parse("mon 00:00-24:00"),)]),
    when_user_active=st.sampled_from(["run", "pause", "pause-gpu"]),
    idle_after_s=st.sampled_from([0.0, 60.0, 180.0]),
    on_battery=st.sampled_from(["run", "pause"]),
    battery_min=st.sampled_from([0.0, 0.4]),
    metered=st.sampled_from(["run", "pause"]),
    other_gpu_process=st.sampled_from(["run", "pause"]),
    other_gpu_util=st.sampled_from([0.0, 0.2]),
    max_temperature_c=st.sampled_from([0.0, 83.0]),
    resume_temperature_c=st.just(75.0),
    max_load=st.sampled_from([0.0, 0.4]),
    yield_to=st.sampled_from([frozenset(), frozenset({"steam"})]),
    min_free_bytes=st.sampled_from([0, 5]),
    transfer_cap_bytes=st.sampled_from([0, 5]),
    resume_delay_s=st.sampled_from([0.0, 5.0, 120.0, 600.0]),
)
TRANSIENT = [reason for reason in Reason if reason not in LASTING]
MEMORIES = st.dictionaries(st.sampled_from(TRANSIENT), st.floats(NOON - 900, NOON + 60) | st.just(float("inf")), max_size=4)


@given(POLICIES, READINGS, MEMORIES, st.floats(0.001, 0.999))
def test_a_verdict_says_when_it_changes(policy: Policy, readings: Readings, memory: dict[Reason, float], part: float) -> None:
    """The same parameters give the same verdict, which holds until `changes_s`, and at that very instant no longer."""
    verdict = policy.decide(NOON, readings, memory)
    assert verdict == policy.decide(NOON, readings, dict(memory))
    held = [hold.reason for hold in verdict.holds]
    later_s = NOON + 40 * 86_400 if verdict.changes_s is None else verdict.changes_s
    assert later_s > NOON
    between = policy.decide(NOON + part * (later_s - NOON), readings, verdict.memory)
    assert [hold.reason for hold in between.holds] == held
    if verdict.changes_s is not None:
        for remembered in (verdict.memory, between.memory):
            assert reasons(policy, readings, dict(remembered), later_s) != held


@given(POLICIES, READINGS, MEMORIES)
def test_no_reason_is_in_the_way_of_another(policy: Policy, readings: Readings, memory: dict[Reason, float]) -> None:
    """What holds is what each rule alone would say."""
    whole = policy.decide(NOON, readings, memory).holds
    none = Policy(resume_delay_s=policy.resume_delay_s, idle_after_s=policy.idle_after_s)
    rules: dict[Reason, dict[str, Any]] = {
        Reason.SCHEDULE: {"hours": policy.hours},
        Reason.USER_ACTIVE: {"when_user_active": policy.when_user_active},
        Reason.EXCLUSIVE_APP: {"yield_to": policy.yield_to},
        Reason.OTHER_GPU_PROCESS: {"other_gpu_process": policy.other_gpu_process, "other_gpu_util": policy.other_gpu_util},
        Reason.CPU_LOAD: {"max_load": policy.max_load},
        Reason.BATTERY: {"on_battery": policy.on_battery, "battery_min": policy.battery_min},
        Reason.METERED: {"metered": policy.metered},
        Reason.GPU_TEMPERATURE: {"max_temperature_c": policy.max_temperature_c, "resume_temperature_c": 75.0},
        Reason.DISK_LOW: {"min_free_bytes": policy.min_free_bytes},
        Reason.TRANSFER_CAP: {"transfer_cap_bytes": policy.transfer_cap_bytes},
    }
    alone = [
        hold
        for reason, rule in rules.items()
        for hold in replace(none, **rule).decide(NOON, readings, {key: at for key, at in memory.items() if key is reason}).holds
    ]
    assert set(whole) == set(alone)


@given(
    st.sampled_from([0.0, 7.0, 60.0, 120.0]),
    st.lists(st.tuples(st.sampled_from([0.5, 5.0, 30.0, 200.0]), st.sampled_from([None, False, True])), max_size=60),
)
def test_what_comes_and_goes_is_waited_out(delay_s: float, looks: list[tuple[float, bool | None]]) -> None:
    """The oracle: it holds while it is there, and then until `delay_s` after the first look at which it was gone. So it never
    holds for less than `delay_s`, and two returns are at least so far apart."""
    policy, memory = Policy(on_battery="pause", resume_delay_s=delay_s), dict[Reason, float]()
    now_s, gone_s, begun_s = NOON, -1e9, None
    before = False
    for step_s, there in looks:
        now_s += step_s
        verdict = policy.decide(now_s, Readings(on_battery=there), memory)
        memory = dict(verdict.memory)
        if not there and before:
            gone_s = now_s
        before = bool(there)
        expected = bool(there) or now_s < gone_s + delay_s
        assert bool(verdict.holds) is expected
        if expected and begun_s is None:
            begun_s = now_s
        elif not expected and begun_s is not None:
            assert now_s - begun_s >= delay_s
            begun_s = None


@given(POLICIES, READINGS, MEMORIES, st.none() | st.floats(NOON + 1, NOON + 1e6))
def test_modes(policy: Policy, readings: Readings, memory: dict[Reason, float], until_s: float | None) -> None:
    holds = policy.decide(NOON, readings, memory).holds
    assert Will().judge(holds) == holds
    never = Will().choose(Mode.NEVER, until_s)
    assert never.judge(holds) == (Hold(Reason.USER, until_s), *holds)
    assert Will().pause(until_s).judge(holds) == (Hold(Reason.USER, until_s), *holds)
    always = Will().choose(Mode.ALWAYS, until_s)
    assert set(always.judge(holds)) == {hold for hold in holds if hold.reason not in COURTESIES}
    for will in (never, always):
        over = will.at(NOON if until_s is None else until_s)
        assert over == (will if until_s is None else Will())


# Days.


@pytest.mark.parametrize("name", sorted(path.name for path in DAYS.glob("*.txt")))
def test_days(name: str) -> None:
    assert timeline(read(DAYS / name)) == list(read(DAYS / name).timeline)


@pytest.mark.parametrize("name", ["heat.txt", "player.txt", "laptop.txt"])
def test_who_looks_every_five_seconds_sees_the_same_a_little_later(name: str) -> None:
    day = read(DAYS / name)
    exact, looked = live(day), live(day, 5.0)
    assert [[hold.reason for hold in holds] for _, holds, _ in exact] == [[hold.reason for hold in holds] for _, holds, _ in looked]
    for (exact_s, _, _), (looked_s, _, _) in zip(exact, looked, strict=True):
        assert 0 <= looked_s - exact_s <= 10  # the cause was gone up to one look before it was seen, and the wait ends between two


@settings(max_examples=20)
@given(st.datetimes(datetime(2000, 1, 1), datetime(2035, 1, 1)), st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo"]))
def test_a_month_ends_where_the_next_begins(when: datetime, zone: str) -> None:
    where = ZoneInfo(zone)
    now_s = when.replace(tzinfo=where).timestamp()
    policy = Policy(transfer_cap_bytes=1)
    ends_s = policy.decide(now_s, Readings(zone=where, moved=Moved(month_of(now_s, where), 1)), {}).changes_s
    assert ends_s is not None
    assert month_of(ends_s, where) != month_of(now_s, where) == month_of(ends_s - 1, where)
    assert timedelta(seconds=ends_s - now_s) <= timedelta(days=31, hours=1)
