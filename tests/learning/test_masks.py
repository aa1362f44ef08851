import itertools
from collections import deque

import pytest
import torch

from l2c.cache.cost import CostTable
from l2c.cache.predictors import Predictor, plan_stand_ins
from l2c.learning.masks import FILLS, Placement, moves, search, spread

COSTS = CostTable("ms", (1.0, 2.0, 1.0, 2.0, 1.5, 0.5), 0.4)
EVALUATIONS = 9
FULL = EVALUATIONS * COSTS.full
LEAST = COSTS.full + (EVALUATIONS - 1) * COSTS.rest


def mask_of(placement, budget):
    return placement.mask(EVALUATIONS, budget, COSTS)


def reachable(starts, most):
    """Placements that moves lead to, the nearest first."""
    found = dict.fromkeys(starts)
    waiting = deque(starts)
    while waiting and len(found) < most:
        for move in moves(waiting.popleft(), EVALUATIONS):
            if move not in found:
                found[move] = None
                waiting.append(move)
    return list(found)


def test_a_budget_is_met_within_one_layer_wherever_the_search_goes():
    for budget in torch.linspace(LEAST, FULL, 40, dtype=torch.float64).tolist():
        starts = spread(EVALUATIONS, budget, COSTS)
        assert starts
        for placement in reachable(starts, 40):
            compute = mask_of(placement, budget)
            assert budget - max(COSTS.layers) < COSTS.of(compute) <= budget * (1 + 1e-5)
            assert compute[0].all()
            plan_stand_ins(compute, Predictor(), None)  # raises where something was never computed before


@pytest.mark.parametrize("evaluations", [1, 2, 3, 50])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99, 1.0])
def test_runs_of_any_length_have_somewhere_to_start(evaluations, share):
    least = COSTS.full + (evaluations - 1) * COSTS.rest
    budget = max(least, share * evaluations * COSTS.full)
    starts = spread(evaluations, budget, COSTS)
    assert len(set(starts)) == len(starts) >= 1
    for start in starts:
        compute = start.mask(evaluations, budget, COSTS)
        assert compute[0].all()
        assert budget - max(COSTS.layers) < COSTS.of(compute) <= budget * (1 + 1e-6)
        assert bool(compute.all()) == (share == 1.0 or evaluations == 1)


def test_what_is_whole_is_spread_evenly():
    *starts, middles = spread(50, 50 * COSTS.rest + 10 * sum(COSTS.layers), COSTS)
    for start in starts:
        gaps = [after - before for before, after in itertools.pairwise(start.whole)]
        assert (len(start.whole), start.partial) == (10, None)
        assert max(gaps) - min(gaps) <= 2
    assert [start.whole[-1] for start in starts] == [48, 49, 47, 49]
    assert (len(middles.whole), middles.partial) == (10, None)
    assert all(place % 2 for place in middles.whole[1:])


def test_middles_of_two_evaluation_steps_come_first_and_then_starts():
    middles = spread(50, 50 * COSTS.rest + 40 * sum(COSTS.layers), COSTS)[-1].whole
    assert set(range(1, 50, 2)) <= set(middles)
    starts = [place for place in middles[1:] if place % 2 == 0]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert len(starts) == 14
    assert max(gaps) - min(gaps) <= 2


def test_more_than_half_an_evaluation_takes_an_even_place():
    budget = 50 * COSTS.rest + 9.6 * sum(COSTS.layers)
    start = spread(50, budget, COSTS)[0]
    gaps = [after - before for before, after in itertools.pairwise(sorted([*start.whole, start.partial]))]
    assert len(start.whole) == 9
    assert max(gaps) - min(gaps) <= 1


def test_a_partial_evaluation_takes_up_what_is_left():
    budget = EVALUATIONS * COSTS.rest + 3 * sum(COSTS.layers) + 3.2
    rows = {fill: mask_of(Placement((0, 3, 6), 4, fill), budget)[4] for fill in FILLS}
    assert rows["first"].tolist() == [True, True, False, False, False, False]
    assert rows["last"].tolist() == [False, False, True, False, True, True]
    assert rows["middle"].tolist() == [False, False, True, True, False, False]


def test_moves_change_one_thing_and_leave_the_first_evaluation():
    start = Placement((0, 3, 6), 4)
    found = list(moves(start, EVALUATIONS))
    assert start not in found
    assert {p.fill for p in found if p.whole == start.whole and p.partial == 4} == {"last", "middle"}
    assert {p.partial for p in found if p.whole == start.whole} == {4, 2, 5}  # 3 and 6 are whole
    assert {p.whole for p in found if p.partial == 4} == {(0, 3, 6), (0, 2, 6), (0, 3, 5), (0, 3, 7)}
    swapped = {Placement((0, 4, 6), 3), Placement((0, 3, 4), 6)}  # a whole and the partial one change places
    assert {p for p in found if p.whole != start.whole and p.partial != 4} == swapped
    assert list(moves(Placement((0,), None), EVALUATIONS)) == []


def distance_to(planted, budget):
    """An error that only one mask has none of, and that every move towards it lowers."""

    def places(compute):
        whole = compute.all(1).nonzero().flatten().tolist()
        (partial,) = (compute.any(1) & ~compute.all(1)).nonzero().flatten().tolist()
        return whole, partial, compute[partial].tolist()

    want = places(mask_of(planted, budget))

    def error(compute):
        whole, partial, layers = places(compute)
        apart = sum(abs(a - b) for a, b in zip(whole, want[0], strict=True)) + abs(partial - want[1])
        return float(apart + (layers != want[2]))

    return error


BUDGET = EVALUATIONS * COSTS.rest + 3 * sum(COSTS.layers) + 3.2


STARTS = spread(EVALUATIONS, BUDGET, COSTS)


def judge(error_of, trials, seed=0, on_trial=None, starts=STARTS):
    """Searches; returns what was found and the masks that were judged."""
    judged = []

    def error(compute):
        judged.append(compute)
        return error_of(compute)

    found = search(starts, lambda p: mask_of(p, BUDGET), error, EVALUATIONS, trials, seed, on_trial)
    return found, judged


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_what_was_hidden(seed):
    planted = Placement((0, 1, 2), 7, "middle")
    error = distance_to(planted, BUDGET)
    assert min(error(mask_of(start, BUDGET)) for start in STARTS) > 4
    found, _ = judge(error, 500, seed)
    assert found == planted


def test_search_begins_at_the_best_of_its_starts():
    assert len(STARTS) > 1
    for best in STARTS:
        wanted = mask_of(best, BUDGET)
        found, judged = judge(lambda compute, wanted=wanted: float(not compute.equal(wanted)), len(STARTS))
        assert found == best
        assert all(map(torch.equal, judged, [mask_of(start, BUDGET) for start in STARTS]))


def test_search_judges_as_many_masks_as_it_may_and_keeps_the_best():
    errors, reports = [5.0, 6.0, 3.0, 4.0, 2.0, 7.0, 2.5, 9.0], []
    remaining = iter(errors)

    def report(trial, least):
        reports.append((trial, least))
        return False

    found, judged = judge(lambda _: next(remaining), 8, on_trial=report)
    assert len(judged) == 8
    assert torch.equal(mask_of(found, BUDGET), judged[4])
    assert reports == [(1, 5.0), (2, 5.0), (3, 3.0), (4, 3.0), (5, 2.0), (6, 2.0), (7, 2.0)]


def test_search_stops_when_it_is_told_to():
    falling = iter(range(50, 0, -1))
    found, judged = judge(lambda _: next(falling), 50, on_trial=lambda trial, _: trial == 7)
    assert len(judged) == 7
    assert torch.equal(mask_of(found, BUDGET), judged[-1])


def test_search_depends_on_its_seed_alone():
    def path(seed):
        falling = iter(range(50, 0, -1))
        return torch.stack(judge(lambda _: next(falling), 12, seed)[1])

    assert torch.equal(path(0), path(0))
    assert not torch.equal(path(0), path(1))


def test_search_ends_where_there_is_nothing_to_move():
    only = Placement((0,), None)
    found, judged = judge(lambda _: 1.0, 50, starts=[only])
    assert found == only
    assert len(judged) == 1
