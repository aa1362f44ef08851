import json
import re
from dataclasses import replace

import pytest
import safetensors.torch
import torch

import l2c
from l2c.errors import ConfigError, ScheduleError
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_dit, tiny_uvit

RUN = {"solver": "ddim", "steps": 8}


def schedule_of(model, num_computed, generator):
    """A schedule that computes the first evaluation and so many of the others, with learned forecasts."""
    base = l2c.methods.interval(model, **RUN)
    compute = torch.zeros_like(base.compute)
    compute[:num_computed] = True
    coefficients = torch.randn(*compute.shape, 2, generator=generator)
    return replace(
        base,
        compute=compute,
        predictor=Predictor("linear", coefficients=coefficients),
        provenance={"budget": num_computed / 8},
    )


@pytest.fixture
def schedules(generator):
    return [schedule_of(tiny_dit(), number, generator) for number in (2, 6, 4)]


def test_a_budget_takes_the_dearest_schedule_within_it(schedules):
    family = ScheduleFamily(schedules)
    least, most, middle = schedules
    costs = [schedule.cost.fraction for schedule in schedules]
    assert family.at(1.0) is most
    assert family.at(costs[1]) is most
    assert family.at(costs[1] - 0.02) is middle
    assert family.at(costs[2]) is middle
    assert family.at(costs[0]) is least


def test_a_cheaper_schedule_that_makes_better_pictures_is_taken(schedules):
    least, most, middle = (
        replace(schedule, provenance={"held_out_error": error})
        for schedule, error in zip(schedules, (0.03, 0.02, 0.01), strict=True)
    )
    family = ScheduleFamily([least, most, middle])
    assert family.at(1.0) is middle
    assert family.at(least.cost.fraction) is least


def test_errors_of_other_pictures_are_not_compared(schedules):
    """A cheaper schedule that was judged by easier pictures is not the better one."""

    def judged(at, error, count):
        known = {**schedules[at].provenance, "held_out_error": error, "settings": {"num_examples": count}}
        return replace(schedules[at], provenance=known)

    family = ScheduleFamily([judged(1, 0.03, 32), judged(2, 0.02, 64), judged(0, 0.025, 32)])
    assert family.at(0.8).provenance["budget"] == 2 / 8
    assert family.at(0.6).provenance["budget"] == 4 / 8


def test_a_budget_is_met_within_a_hundredth(schedules):
    family = ScheduleFamily(schedules)
    cost = schedules[2].cost.fraction
    assert family.at(cost * 0.992) is schedules[2]
    assert family.at(cost * 0.988) is schedules[0]


def test_a_budget_that_is_too_small_is_one_sentence(schedules):
    least = schedules[0].cost.fraction
    message = (
        f"the cheapest schedule of the family takes {least:.3f} of the MACs, more than the budget of 0.2; ask for "
        f"as much or more, or learn one with l2c learn MODEL --budget 0.2"
    )
    family = ScheduleFamily(schedules)
    with pytest.raises(ConfigError, match=re.escape(message)):
        family.at(0.2)
    assert family.at(float(f"{least:.3f}")) is schedules[0]  # what the sentence says to do


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, float("nan")])
def test_a_budget_is_a_fraction(schedules, budget):
    with pytest.raises(ConfigError, match="budgets are fractions of the MACs"):
        ScheduleFamily(schedules).at(budget)


def test_save_and_load_round_trip(schedules, tmp_path):
    ScheduleFamily(schedules).save(tmp_path / "f.safetensors")
    loaded = ScheduleFamily.load(tmp_path / "f.safetensors")
    assert len(loaded) == 3
    for index, (before, after) in enumerate(zip(ScheduleFamily(schedules), loaded, strict=True)):
        paths = [tmp_path / f"{index}{name}" for name in ("before", "after")]
        before.save(paths[0])
        after.save(paths[1])
        assert paths[0].read_bytes() == paths[1].read_bytes()
    model = tiny_dit()
    first, second = (
        l2c.sample(model, [1], schedule=family.at(0.7)) for family in (loaded, ScheduleFamily(schedules))
    )
    assert torch.equal(first, second)


def test_the_order_of_the_schedules_does_not_matter(schedules, tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, given in zip(paths, (schedules, schedules[::-1]), strict=True):
        ScheduleFamily(given).save(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    costs = [schedule.cost.macs for schedule in ScheduleFamily(schedules)]
    assert costs == sorted(costs, reverse=True)


def test_a_family_and_a_schedule_are_told_apart(schedules, tmp_path):
    family, single = tmp_path / "family.safetensors", tmp_path / "single.safetensors"
    ScheduleFamily(schedules).save(family)
    schedules[0].save(single)
    with pytest.raises(ScheduleError, match=r"family\.safetensors is a family of schedules; .*--budget"):
        CacheSchedule.load(family)
    with pytest.raises(ScheduleError, match=r"single\.safetensors is a schedule; read it with"):
        ScheduleFamily.load(single)


def test_schedules_of_several_models_or_runs_are_refused(schedules, generator):
    for other in (tiny_uvit(), tiny_dit(depth=4), tiny_dit(hidden_size=64)):
        with pytest.raises(ScheduleError):
            ScheduleFamily([schedules[0], schedule_of(other, 2, generator)])
    contract = schedules[0].contract
    for changed in (
        replace(contract, fingerprint=(1.0,) * 6),
        replace(contract, run=replace(contract.run, guidance=4.0)),
    ):
        with pytest.raises(ScheduleError, match="one model and one run"):
            ScheduleFamily([schedules[0], replace(schedules[1], contract=changed)])
    with pytest.raises(ScheduleError, match="at least one schedule"):
        ScheduleFamily([])


def test_schedules_that_were_learned_on_several_machines_are_one_family(schedules, tmp_path):
    """Processors round differently."""
    contract = replace(schedules[0].contract, fingerprint=(0.5,) * 6)
    run = contract.run
    moved = replace(
        contract,
        run=replace(run, log_snrs=tuple(level + 1e-7 for level in run.log_snrs)),
        fingerprint=(0.5 + 1e-6,) * 6,
    )
    here, there = (replace(schedules[at], contract=one) for at, one in enumerate((contract, moved)))
    ScheduleFamily([here, there]).save(tmp_path / "family.safetensors")
    again = ScheduleFamily.load(tmp_path / "family.safetensors")
    assert sorted(one.contract.fingerprint[0] for one in again) == [0.5, 0.5 + 1e-6]
    for change in (
        {"log_snrs": tuple(level + 0.01 for level in run.log_snrs)},
        {"timesteps": tuple(time + 0.01 for time in run.timesteps)},
    ):
        other = replace(there, contract=replace(moved, run=replace(run, **change)))
        with pytest.raises(ScheduleError, match="one model and one run"):
            ScheduleFamily([here, other])


def test_files_that_are_no_family(schedules, tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(ScheduleError, match="there is no schedule file"):
        ScheduleFamily.load(path)
    ScheduleFamily(schedules).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ScheduleError, match="not a whole schedule file"):
        ScheduleFamily.load(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ScheduleError, match="not a schedule written by l2c"):
        ScheduleFamily.load(path)
    for header, message in (
        ({"version": 99}, "format 99.*update l2c"),
        ({}, "malformed"),
        ({"version": 1}, "malformed"),
        ({"version": 1, "schedules": {}}, "malformed"),
        ({"version": 1, "schedules": [{}]}, "malformed"),
        ({"version": 1, "schedules": [3]}, "malformed"),
        ([], "malformed"),
    ):
        safetensors.torch.save_file(
            {"0.compute": torch.ones(1, 1, dtype=torch.uint8)},
            path,
            metadata={"l2c.schedule-family": json.dumps(header)},
        )
        with pytest.raises(ScheduleError, match=message):
            ScheduleFamily.load(path)
