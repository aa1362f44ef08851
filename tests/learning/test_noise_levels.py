"""Noise levels by search: moved to where errors are least, the first left alone, in no more trials than allowed."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.hosts.native import ModelHost
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.noise_levels import room, search_levels
from l2c.learning.references import solve
from l2c.learning.trainer import Trainer
from l2c.testing import tiny_dit


def even(count: int) -> torch.Tensor:
    return torch.linspace(-4, 4, count, dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 5, 8, 20])
def test_levels_move_to_where_the_error_is_least(count):
    start = even(count)
    wanted = start + 0.8 * torch.sin(torch.linspace(0, 3.14159, count, dtype=torch.float64)).square()
    wanted[-1] += 0.5

    def error_of(levels):
        assert (levels.diff() > 0).all()
        assert levels[0] == start[0]
        return (levels - wanted).square().mean().item() + 0.01

    found, error, tried = search_levels(start, error_of, 200)
    assert error == error_of(found)
    assert error - 0.01 < 0.1 * (error_of(start) - 0.01)
    assert tried <= 200


@pytest.mark.parametrize("trials", [0, 3])
def test_no_more_levels_are_tried_than_allowed(trials):
    calls = []

    def error_of(levels):
        calls.append(levels)
        return float(len(calls))  # each worse than the one before

    found, error, tried = search_levels(even(6), error_of, trials)
    assert torch.equal(found, even(6))
    assert (error, tried, len(calls)) == (1.0, trials, trials + 1)


def test_a_move_that_gets_closer_is_made_again_and_longer():
    def error_of(levels):
        return float(9 - levels[3])  # the nearer to its neighbour at 4, the better

    found, _error, tried = search_levels(torch.arange(6.0, dtype=torch.float64), error_of, 7)
    moves = 3 + 0.3 + 0.45 * 0.7 + 0.6 * (1 - 0.3 - 0.45 * 0.7)
    assert found.tolist() == pytest.approx([0, 1, 2, moves, 4, 5])
    assert tried == 7  # two sides of each of the levels before, and three of its own


def test_the_best_of_several_beginnings_is_gone_on_with():
    def error_of(levels):
        return (levels - wanted).square().mean().item()

    wanted = even(6) + torch.tensor([0, 0.1, 0.2, 0.3, 0.2, 0.1])
    others = [even(6) - 0.5, wanted + 0.1, even(6) + 0.7]
    found, error, tried = search_levels(even(6), error_of, 3, others=others)
    assert torch.equal(found, others[1])
    assert (error, tried) == (error_of(others[1]), 3)
    assert search_levels(even(6), error_of, 40, others=others)[1] < error
    assert torch.equal(
        search_levels(even(6), error_of, 1, others=others)[0], even(6)
    )  # no time for the second


def test_room_is_the_distance_to_the_nearer_neighbour():
    assert room(torch.tensor([-3.0, -1.0, 0.0, 4.0])).tolist() == [0.0, 1.0, 1.0, 4.0]


def test_searched_levels_are_closer_and_kept_for_going_on(tmp_path):
    host = ModelHost.of(tiny_dit(), "ddim", 20)
    settings = l2c.LearnSettings(
        iterations=1, batch_size=2, num_examples=8, reference_steps=20, trials=1, level_trials=12, tail=0
    )
    trainer = Trainer("schedule and solver", host, settings)
    own = ClosedLoop(trainer, host, solve(trainer, host, settings, fit_solver=True), settings, "")
    loop = own.on(host.solver_starts(4)[0])
    everything = torch.ones(4, len(host.table), dtype=torch.bool)

    def begun():
        student = loop.student(everything, solver=True)
        fit = loop._solver_fit(student)
        fit.begin(student, "", 1.0, None)
        return student, fit.trial_error(student)

    student, error = begun()
    assert error < loop.trial_error(loop.student(everything, solver=True))
    kept = trainer.kept["noise levels"]
    assert torch.equal(kept, student.log_snrs)
    trainer.kept["noise levels"] = kept + 0.01
    assert torch.equal(begun()[0].log_snrs, kept + 0.01)  # as a checkpoint gives them
