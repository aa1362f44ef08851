import itertools
from collections import deque
from dataclasses import replace

import pytest
import torch

from l2c.learning.masks import far_moves, moves, near, search, spread
from l2c.learning.placement import FILLS, Placement, along
from l2c.schedule.cost import CostTable
from l2c.schedule.forecast import Predictor, plan_reuse

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
            plan_reuse(compute, Predictor(), None)  # raises where something was never computed before


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


def gaps_of(places):
    return [after - before for before, after in itertools.pairwise(places)]


def test_what_is_whole_is_spread_evenly_or_denser_at_an_end():
    starts = spread(50, 50 * COSTS.rest + 10 * sum(COSTS.layers), COSTS)
    assert all((len(start.whole), start.partial) == (10, None) for start in starts)
    even, dense, three, two, middles, to_the_end, early, even_middles, late = (
        gaps_of(start.whole) for start in starts
    )
    for alike in (even, three[2:], two[1:], to_the_end):
        assert max(alike) - min(alike) <= 1
    assert dense[:2] == three[:2] == [1, 1]
    assert two[0] == 1
    assert [start.whole[-1] for start in starts] == [48, 48, 48, 48, 49, 49, 49, 49, 49]
    for first in (early, dense):
        assert sum(first[:3]) + 5 < sum(first[-3:])
    assert sum(late[:3]) > sum(late[-3:]) + 5
    for start in (starts[4], starts[7]):
        assert all(place % 2 for place in start.whole[1:])
    assert sum(middles[1:4]) < sum(even_middles[1:4])


@pytest.mark.parametrize("power", [0.5, 0.8, 1.0, 1.25, 3.0])
def test_places_along_a_grid_never_coincide(power):
    for size in range(1, 30):
        for count in range(1, size + 1):
            places = along(range(size), count, power)
            assert len(set(places)) == len(places) == count
            assert places == sorted(places)
            assert 0 == places[0] <= places[-1] < size


@pytest.mark.parametrize("known", [0.17, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("share", [0.17, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("evaluations", [9, 50])
def test_placements_near_another_meet_their_own_budget(evaluations, known, share):
    full = evaluations * COSTS.full
    other = spread(evaluations, known * full, COSTS)[0].mask(evaluations, known * full, COSTS)
    for placement in near(other, share * full, COSTS, count=4):
        compute = placement.mask(evaluations, share * full, COSTS)
        assert compute[0].all()
        assert share * full - max(COSTS.layers) < COSTS.of(compute) <= share * full * (1 + 1e-6)


PLACES = (0, 2, 4, 10, 16, 22, 28, 34, 40, 45, 47, 49)


def near_places(whole, count=1, left=0.0, order=2):
    """Placements of so many whole evaluations, and a part of one, near `PLACES`."""
    budget = 50 * COSTS.rest + (whole + left) * sum(COSTS.layers)
    other = Placement(PLACES, None).mask(50, FULL * 50, COSTS)
    return near(other, budget, COSTS, order, count)


def test_placements_near_another_leave_out_evaluations_that_are_not_neighbours():
    found = near_places(9, count=12)
    assert len(found) > 6
    for placement in found:
        assert len(placement.whole) == 9
        left_out = [rank for rank, place in enumerate(PLACES) if place not in placement.whole]
        assert left_out[0] > 0
        assert len(left_out) == 3
        assert min(gaps_of(left_out)) > 1
    assert near_places(9, count=12) == found
    assert [placement.whole for placement in near_places(1)] == [(0,)]


def test_placements_near_another_compute_one_of_its_evaluations_in_part():
    found = near_places(9, count=12, left=0.9)
    assert len({placement.partial for placement in found}) > 3
    for placement in found:
        assert placement.fill == "last"
        assert {*placement.whole, placement.partial} < set(PLACES)


def test_placements_near_another_add_evaluations_in_gaps():
    (found,) = near_places(23, order=1)
    assert set(PLACES) < set(found.whole)
    assert (len(found.whole), max(gaps_of(found.whole)), found.order) == (23, 3, 1)
    assert near_places(12) == [Placement(PLACES, None, "last")]


def test_middles_of_two_evaluation_steps_come_first_and_then_starts():
    starts = spread(50, 50 * COSTS.rest + 40 * sum(COSTS.layers), COSTS)
    *_, middles = (start.whole for start in starts if set(range(1, 50, 2)) <= set(start.whole))
    gaps = gaps_of([place for place in middles[1:] if place % 2 == 0])
    assert len(gaps) == 13
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
    shifted = {(0, 1, 6), (0, 2, 6), (0, 5, 6), (0, 3, 5), (0, 3, 7), (0, 3, 8)}
    assert {p.whole for p in found if p.partial == 4} == {(0, 3, 6), *shifted}
    swapped = {Placement((0, 4, 6), 3), Placement((0, 3, 4), 6)}  # a whole and the partial one change places
    assert {p for p in found if p.whole != start.whole and p.partial != 4} == swapped
    assert list(moves(Placement((0,), None), EVALUATIONS)) == []
    assert {p.order for p in found} == {2}


def test_far_moves_put_one_whole_evaluation_anywhere_else():
    found = set(far_moves(Placement((0, 3, 6), 8, order=1), EVALUATIONS))
    assert {p.whole for p in found if p.partial == 8} == {(0, 1, 3), (0, 2, 3), (0, 6, 7)}
    assert {p for p in found if p.partial != 8} == {Placement((0, 6, 8), 3, order=1)}
    assert list(far_moves(Placement((0,), None), EVALUATIONS)) == []


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
    """Searches; returns what was found and the placements that were judged."""
    judged = []

    def error(placement):
        judged.append(placement)
        return error_of(mask_of(placement, BUDGET))

    found, *_ = search(starts, error, EVALUATIONS, trials, seed, on_trial)
    return found, judged


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_what_was_hidden(seed):
    planted = Placement((0, 1, 2), 7, "middle")
    error = distance_to(planted, BUDGET)
    assert min(error(mask_of(start, BUDGET)) for start in STARTS) > 4
    found, _ = judge(error, 500, seed)
    assert found == planted


@pytest.mark.parametrize("order", [2, 1, 0])
def test_search_judges_its_starts_with_the_order_that_is_best_for_the_first(order):
    assert len(STARTS) > 1
    for best in STARTS:
        judged = []

        def error(placement, best=best, judged=judged):
            judged.append(placement)
            return float(placement.whole != best.whole) + float(placement.order != order)

        found, *others = search(STARTS, error, EVALUATIONS, len(STARTS) + 2, 0)
        assert found == replace(best, order=order)
        assert [placement.order for placement in judged] == [2, 1, 0, *[order] * (len(STARTS) - 1)]
        ranks = [error(one) for one in others]
        assert ranks == sorted(ranks)


@pytest.mark.parametrize("seed", range(3))
def test_search_tries_another_order_later_on(seed):
    near = next(moves(STARTS[0], EVALUATIONS)).whole

    def error(placement):
        return 2.0 - (placement.whole == near) * (1 + (placement.order == 1))

    found, *_ = search(STARTS, error, EVALUATIONS, 500, seed)
    assert (found.order, found.whole) == (1, near)


def test_search_judges_as_many_masks_as_it_may_and_keeps_the_best():
    errors, reports = [5.0, 6.0, 3.0, 4.0, 2.0, 7.0, 2.5, 9.0], []
    remaining = iter(errors)

    def report(trial, least):
        reports.append((trial, least))
        return False

    found, judged = judge(lambda _: next(remaining), 8, on_trial=report)
    assert len(judged) == 8
    assert found == judged[4]
    assert reports == [(1, 5.0), (2, 5.0), (3, 3.0), (4, 3.0), (5, 2.0), (6, 2.0), (7, 2.0)]


def test_search_stops_when_it_is_told_to():
    falling = iter(range(50, 0, -1))
    found, judged = judge(lambda _: next(falling), 50, on_trial=lambda trial, _: trial == 7)
    assert len(judged) == 7
    assert found == judged[-1]


def test_search_depends_on_its_seed_alone():
    def path(seed):
        falling = iter(range(50, 0, -1))
        return judge(lambda _: next(falling), 16, seed)[1]

    assert path(0) == path(0)
    assert path(0) != path(1)


def test_search_ends_where_there_is_nothing_to_move():
    only = Placement((0,), None)
    found, judged = judge(lambda _: 1.0, 50, starts=[only])
    assert found == only
    assert judged == [replace(only, order=order) for order in (2, 1, 0)]
