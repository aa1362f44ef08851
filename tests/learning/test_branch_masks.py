"""Placements whose unconditional pass runs at some evaluations only, and the search and learning with them."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.layers import find_layers
from l2c.learning.branch_masks import guided_moves, spread_apart
from l2c.learning.masks import far_moves, moves, search
from l2c.learning.placement import Placement
from l2c.learning.student import Student
from l2c.schedule.branches import branch_masks, check_branches, join_branches
from l2c.schedule.cost import CostTable
from l2c.schedule.forecast import Predictor, plan_reuse
from l2c.testing import tiny_dit

COSTS = CostTable("MACs", (1.0, 2.0, 1.0, 2.0), 0.1)
EVALUATIONS = 12
QUICK = l2c.LearnSettings(
    iterations=1, batch_size=2, num_examples=8, reference_steps=6, trials=12, trial_examples=2
)


@pytest.mark.parametrize("wholes", [2.0, 3.3, 5.0, 7.5, 11.0])
def test_starts_fill_the_budget_to_less_than_a_pass(wholes):
    budget = wholes * COSTS.full
    starts = spread_apart(EVALUATIONS, budget, COSTS)
    assert starts
    for start in starts:
        cost = COSTS.of(start.mask(EVALUATIONS, budget, COSTS))
        assert budget - COSTS.full / 2 < cost <= budget


def test_a_budget_without_room_has_no_starts():
    assert spread_apart(EVALUATIONS, 0.9 * COSTS.full, COSTS) == []


def neighbours(placement):
    return [*moves(placement, EVALUATIONS), *far_moves(placement, EVALUATIONS)]


def test_moves_keep_unconditional_passes_where_conditional_ones_are_and_number_and_cost_of_both():
    budget = 6 * COSTS.full
    for start in spread_apart(EVALUATIONS, budget, COSTS):
        for one in neighbours(start):
            assert one.guided is not None
            assert set(one.guided) <= set(one.whole)
            assert one.guided[0] == one.whole[0] == 0
            assert len(one.whole) + len(one.guided) == len(start.whole) + len(start.guided)
            compute = one.mask(EVALUATIONS, 2 * budget, COSTS)
            check_branches(compute, len(COSTS.layers))
            plan_reuse(compute, Predictor(), None)


def test_moves_exchange_passes_of_one_kind_for_the_other():
    start = Placement((0, 3, 6, 9), None, guided=(0, 6))
    found = {(len(one.whole), len(one.guided)) for one in guided_moves(start, start.guided, EVALUATIONS)}
    assert found == {(4, 2), (3, 3), (5, 1)}


def test_a_pass_may_be_forecast_where_it_is_not_computed():
    derived = Placement((0, 2, 4), None, guided=(0, 4))
    forecast = next(one for one in guided_moves(derived, (0, 4), EVALUATIONS) if not one.derived)
    assert forecast.guided == derived.guided
    (_, uncond, runs), (_, other, some) = (
        branch_masks(one.mask(EVALUATIONS, 9 * COSTS.full, COSTS), len(COSTS.layers))
        for one in (forecast, derived)
    )
    assert torch.equal(uncond, other)
    assert runs.all()
    assert some.nonzero().flatten().tolist() == [0, 4]


def test_moves_without_passes_apart_are_as_before():
    assert all(one.guided is None for one in neighbours(Placement((0, 3, 6, 9), 10)))


def test_the_search_judges_nothing_over_the_budget():
    budget, judged = 5 * COSTS.full, []

    def fits(placement):
        return COSTS.of(placement.mask(EVALUATIONS, budget, COSTS)) <= budget

    def error_of(placement):
        judged.append(placement)
        return -len(placement.whole)

    best, *_ = search(spread_apart(EVALUATIONS, budget, COSTS), error_of, EVALUATIONS, 60, 0, fits=fits)
    assert all(map(fits, judged))
    assert len(best.whole) == max(len(one.whole) for one in judged)
    assert len({len(one.whole) for one in judged}) > 1


def test_a_budget_is_met_with_passes_apart(favoured):
    model = tiny_dit(depth=8, hidden_size=16)
    schedule = l2c.learn(model, solver="dpmsolver++", steps=12, budget=0.5, settings=QUICK)
    assert schedule.has_branches
    assert 0.97 * 0.5 < schedule.cost.fraction <= 0.5
    assert l2c.sample(model, [1, 2], schedule=schedule).isfinite().all()
    again = l2c.repair(model, schedule, settings=QUICK)
    assert torch.equal(again.compute, schedule.compute)
    assert again.provenance["held_out_error_before"] == pytest.approx(
        schedule.provenance["held_out_error"], abs=2e-5
    )


def test_a_family_may_have_schedules_with_passes_apart(favoured, tmp_path):
    family = l2c.learn(tiny_dit(), solver="dpmsolver++", steps=8, budgets=(0.6, 0.4), settings=QUICK)
    family.save(tmp_path / "family.safetensors")
    again = l2c.ScheduleFamily.load(tmp_path / "family.safetensors")
    assert all(schedule.has_branches for schedule in again)


def test_a_solver_is_learned_with_passes_apart(favoured):
    model = tiny_dit()
    schedule = l2c.learn(model, solver="auto", evaluations=3, settings=QUICK)
    assert schedule.provenance["structure"] == "7 evaluations, passes apart"
    assert schedule.has_branches
    assert schedule.cost.fraction * schedule.num_evaluations <= 3


@pytest.mark.parametrize("options", [{"guidance": 1.0}, {"settings": l2c.LearnSettings(branches=False, **{
    "iterations": 1, "batch_size": 2, "num_examples": 8, "reference_steps": 6, "trials": 4,
})}])  # fmt: skip
def test_without_guidance_or_if_asked_passes_stay_together(favoured, options):
    options = {"settings": QUICK, **options}
    assert not l2c.learn(tiny_dit(), solver="dpmsolver++", steps=8, budget=0.5, **options).has_branches
    schedule = l2c.learn(tiny_dit(), solver="auto", evaluations=3, **options)
    assert list(schedule.provenance["structures_before_learning"]) == [
        "3 evaluations", "6 evaluations", "7 evaluations"
    ]  # fmt: skip


def test_passes_stay_together_where_a_budget_has_no_room_for_more(favoured, monkeypatch):
    monkeypatch.setattr("l2c.learning.solver.spread_apart", lambda *_: [])
    schedule = l2c.learn(tiny_dit(), solver="auto", evaluations=3, settings=QUICK)
    assert not schedule.has_branches
    assert list(schedule.provenance["structures_before_learning"]) == [
        "3 evaluations", "6 evaluations", "7 evaluations"
    ]  # fmt: skip


def test_costs_in_milliseconds_keep_passes_together(favoured):
    model = tiny_dit()
    count = len(find_layers(model))
    costs = CostTable("ms", (1.0,) * count, 0.1)
    schedule = l2c.learn(
        model, solver="dpmsolver++", steps=8, budget=4 * costs.full, costs=costs, settings=QUICK
    )
    assert not schedule.has_branches


def test_a_learned_difference_begins_at_a_line_and_has_gradients():
    host = l2c.host_of(tiny_dit()).solver_starts(8)[0]
    cond = torch.zeros(8, len(host.table), dtype=torch.bool)
    cond[[0, 2, 4, 6]] = True
    runs = torch.zeros(8, dtype=torch.bool)
    runs[[0, 2, 4]] = True
    student = Student(host, join_branches(cond, cond, runs), 3, free_solver=True)
    plan, column = student.forecasts.plan(), 2 * len(host.table)
    weights = [weight.item() for _, weight in plan[5, column]]
    assert [source for source, _ in plan[5, column]] == [4, 2, 0]
    assert sum(weights) == pytest.approx(1.0)
    assert weights[2] == 0
    assert len([weight for _, weight in plan[5, 0]]) == 3
    assert plan[5, 0][2][1].item() != 0
    assert {place[1] for place in plan if place[0] in (1, 3, 5)} == {*range(len(host.table)), column}
    with host.prepared(), student.attached():
        student(host.examples(2, 0, "test")).square().mean().backward()
    moved = student.forecasts.added.grad.abs().sum(-1) > 0
    assert moved[[1, 3, 5, 6, 7], column].all()
    uncond = branch_masks(student.compute, len(host.table))[1]
    assert not moved[:, len(host.table) : column].any()
    assert int(uncond.sum()) == 3 * len(host.table)
