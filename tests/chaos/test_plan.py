"""Plans of chaos: all from the seed, every kind in them, and mostly a majority left in peace."""

from tests.chaos.plan import CUTS, DEATHS, Kind, plan

HOUR_S, PERIOD_S, MACHINES = 3600.0, 8.0, 6


def test_one_seed_is_one_plan() -> None:
    assert plan(7, MACHINES, HOUR_S, PERIOD_S) == plan(7, MACHINES, HOUR_S, PERIOD_S)
    assert plan(7, MACHINES, HOUR_S, PERIOD_S) != plan(8, MACHINES, HOUR_S, PERIOD_S)


def test_an_hour_has_every_kind_often() -> None:
    for seed in range(20):
        faults = plan(seed, MACHINES, HOUR_S, PERIOD_S)
        counts = [sum(fault.kind is kind for fault in faults) for kind in Kind]
        assert min(counts) >= 20
        assert max(counts) - min(counts) <= 1
        assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
        assert all(fault.lasts_s > PERIOD_S for fault in faults if fault.kind not in DEATHS)


def test_mostly_a_majority_is_left_in_peace() -> None:
    for seed in range(20):
        faults = plan(seed, MACHINES, HOUR_S, PERIOD_S)
        for second in range(0, int(HOUR_S), 5):
            ailing = [fault for fault in faults if fault.at_s <= second < fault.over_s]
            out = [machine for fault in ailing for machine in fault.machines]
            assert len(out) == len(set(out)), "one fault at a time for one machine"
            halves = any(fault.kind in CUTS and 2 * len(fault.machines) == MACHINES for fault in ailing)
            assert 2 * len(out) < MACHINES or halves
            assert sum(fault.kind in CUTS for fault in ailing) <= 1
