"""The branch as an axis of the mask: what a schedule with it holds, costs, refuses and is written as."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import l2c
from l2c.errors import ConfigError, ScheduleError
from l2c.schedule.branches import branch_masks, join_branches
from l2c.schedule.cost import CostTable
from l2c.schedule.forecast import Predictor

STEPS = 8


@pytest.fixture
def alike(tiny_dit):
    """Every second evaluation, both passes alike."""
    return l2c.methods.interval(tiny_dit, solver="dpmsolver++", steps=STEPS, every=2, predictor="taylor-2")


def apart(schedule, guided=(0, 4), *, forecast=()):
    """The same with an unconditional pass that runs at some evaluations, and is forecast at others."""
    cond = schedule.compute
    runs = torch.zeros(STEPS, dtype=torch.bool)
    runs[[*guided, *forecast]] = True
    uncond = torch.zeros_like(cond)
    uncond[list(guided)] = True
    return replace(schedule, compute=join_branches(cond, uncond, runs))


def test_a_pass_counts_half_and_one_that_is_derived_nothing(alike):
    table = alike.layers
    expected = (4 + 2) * table.layer_macs / 2 + (STEPS + 2) * table.rest_macs / 2
    assert apart(alike).cost.macs == round(expected)
    assert apart(alike, (0, 4), forecast=(5,)).cost.macs == round(expected + table.rest_macs / 2)
    assert CostTable.macs(table).of(apart(alike).compute) == expected


def test_passes_that_do_the_same_cost_what_one_mask_costs(alike):
    both = replace(
        alike, compute=join_branches(alike.compute, alike.compute, torch.ones(STEPS, dtype=torch.bool))
    )
    assert both.cost == alike.cost
    assert both.has_branches
    assert not alike.has_branches


def test_costs_in_milliseconds_know_no_passes(alike):
    costs = replace(CostTable.macs(alike.layers), unit="ms")
    with pytest.raises(ConfigError, match="those of whole evaluations, not of a conditional pass alone"):
        costs.of(apart(alike).compute)


def test_what_is_derived_has_no_forecasts_of_layers(alike):
    schedule, count = apart(alike, (0, 4), forecast=(5,)), len(alike.layers)
    uncond = {evaluation for evaluation, column in schedule.plan if count <= column < 2 * count}
    derived = {evaluation for evaluation, column in schedule.plan if column == 2 * count}
    assert uncond == {5}
    assert derived == {1, 2, 3, 6, 7}
    assert [source for source, _ in schedule.plan[6, 2 * count]] == [5, 4, 0]


def test_masks_come_apart_as_they_were_joined(alike):
    cond, uncond, runs = branch_masks(apart(alike).compute, len(alike.layers))
    assert torch.equal(cond, alike.compute)
    assert runs.nonzero().flatten().tolist() == uncond.any(1).nonzero().flatten().tolist() == [0, 4]
    cond, uncond, runs = branch_masks(alike.compute, len(alike.layers))
    assert cond is uncond
    assert runs.all()


def test_a_first_evaluation_without_an_unconditional_pass_is_refused(alike):
    with pytest.raises(ScheduleError, match="derived at evaluation 0, before there is a difference"):
        apart(alike, (2, 4))


def test_layers_of_a_pass_that_does_not_run_are_refused(alike):
    compute = apart(alike).compute.clone()
    compute[3, len(alike.layers)] = True
    with pytest.raises(ScheduleError, match="computes layers at evaluation 3, where it is derived"):
        replace(alike, compute=compute)


def test_a_mask_of_another_width_is_refused(alike):
    with pytest.raises(ScheduleError, match=r"\(8, 6\) \(evaluations, layers\), or \(8, 13\) with rows"):
        replace(alike, compute=torch.ones(STEPS, 12, dtype=torch.bool))


def test_a_file_says_that_it_needs_a_program_that_knows_passes(alike, tmp_path):
    coefficients = torch.rand(STEPS, 2 * len(alike.layers) + 1, 3)
    learned = replace(apart(alike), predictor=Predictor("linear", coefficients=coefficients))
    for schedule, version in ((alike, 1), (learned, 2)):
        schedule.save(tmp_path / "one.safetensors")
        with safe_open(tmp_path / "one.safetensors", framework="pt") as file:
            assert json.loads(file.metadata()["l2c.cache-schedule"])["version"] == version
        again = l2c.CacheSchedule.load(tmp_path / "one.safetensors")
        assert torch.equal(again.compute, schedule.compute)
        assert again.plan == schedule.plan
        l2c.ScheduleFamily([schedule]).save(tmp_path / "family.safetensors")
        (again,) = l2c.ScheduleFamily.load(tmp_path / "family.safetensors")
        assert again.plan == schedule.plan


def test_a_summary_says_what_each_pass_does(alike):
    summary = apart(alike, (0, 4), forecast=(5,)).summary()
    assert summary["branches"] == ["cond", "uncond"]
    rows = [row["unconditional"] for row in summary["rows"]]
    assert rows == ["111111", None, None, None, "111111", "000000", None, None]
    assert [row["mask"] for row in summary["rows"]] == ["111111", "000000"] * 4
    assert summary["rows"][2]["fraction"] == 0.5
    assert summary["cached"]["kinds"]["mlp"] == {"computed": 2 * 3, "total": 6 * 3 * 2}
    assert alike.summary()["branches"] == ["all"]
    assert "unconditional" not in alike.summary()["rows"][0]
