"""What learning would do, said beforehand."""

from __future__ import annotations

import time

import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.learning.estimate import _size
from l2c.learning.mask_search import FINALISTS
from l2c.learning.memory import kept_bytes
from l2c.learning.prices import RECALLED, Prices, Structures, stage_seconds
from l2c.testing import tiny_call, tiny_dit, tiny_pipeline

QUICK = {"batch_size": 1, "num_examples": 4, "reference_steps": 8, "trials": 3}


def pipeline_call(name):
    return {key: value for key, value in tiny_call(name).items() if key not in ("generator", "output_type")}


def test_a_pipeline_is_left_as_it_was_and_its_memory_is_that_of_the_formula():
    pipe, settings = tiny_pipeline("sd3"), l2c.LearnSettings(recompute="evaluations", **QUICK)
    given = pipeline_call("sd3")
    estimate = l2c.estimate_learning(pipe, budget=0.5, settings=settings, **given)
    assert (estimate.target, estimate.num_evaluations) == ("StableDiffusion3Pipeline", 6)
    host = l2c.host_of(pipe, **given)
    everything = kept_bytes(host, torch.ones(6, len(host.table), dtype=torch.bool), 3)
    assert estimate.kept_bytes > everything  # which no forecast reads
    assert estimate.weights_bytes == sum(weight.nbytes for weight in pipe.transformer.parameters())
    l2c.learn(
        pipe, budget=0.5, settings=l2c.LearnSettings(iterations=1, **QUICK), **given
    )  # nothing is enabled


def test_learning_by_layers_keeps_less_than_without():
    pipe, given = tiny_pipeline("sd3"), pipeline_call("sd3")
    kept = [
        l2c.estimate_learning(pipe, settings=l2c.LearnSettings(recompute=how, **QUICK), **given).kept_bytes
        for how in ("evaluations", True, False)
    ]
    assert kept == sorted(kept)


@pytest.mark.slow
def test_minutes_are_about_those_that_learning_takes(monkeypatch):
    monkeypatch.setattr(time, "monotonic", time.process_time)  # whatever else runs on the machine
    model = l2c.load_target("dit-mini-cifar10")
    settings = l2c.LearnSettings(iterations=3, batch_size=1, num_examples=4, reference_steps=6, trials=2)
    run = {"solver": "ddim", "steps": 4}
    estimate = l2c.estimate_learning(model, budget=0.5, settings=settings, **run)
    begun = time.monotonic()
    l2c.learn(model, budget=0.5, settings=settings, **run)
    took = (time.monotonic() - begun) / 60
    assert took / 3 < estimate.total_minutes < 3 * took


def test_stages_add_up_and_budgets_count():
    settings = l2c.LearnSettings(iterations=2, **QUICK)
    run = {"settings": settings, "solver": "ddim", "steps": 6}
    one, three = (l2c.estimate_learning(tiny_dit(), num_budgets=count, **run) for count in (1, 3))
    assert one.to_json()["total_minutes"] == pytest.approx(sum(one.minutes.values()))
    assert three.checkpoint_bytes > one.checkpoint_bytes
    assert "6 evaluations, 50% of the work, 1 schedule\n" in str(one)
    assert "3 schedules" in str(three)


def test_a_learned_solver_is_estimated_for_its_evaluations():
    settings = l2c.LearnSettings(iterations=2, **QUICK)
    estimate = l2c.estimate_learning(tiny_dit(), evaluations=3, settings=settings)
    assert (estimate.num_evaluations, estimate.computed) == (6, 0.5)
    whole = l2c.estimate_learning(tiny_dit(), evaluations=3, per_computed=1, settings=settings)
    assert (whole.num_evaluations, whole.computed) == (3, 1.0)
    assert whole.minutes["searching masks"] < estimate.minutes["searching masks"] / 3


def seconds_of(budgets=1, solver=None, **changed):
    settings = l2c.LearnSettings(
        **{
            "iterations": 10,
            "batch_size": 2,
            "num_examples": 8,
            "reference_steps": 5,
            "trials": 3,
            "trial_examples": 4,
            "fit_examples": 5,
            "validate_every": 0,
            **changed,
        }
    )
    prices = Prices(run_s=0.5, evaluation_s=1, sample_s=3, step_s=10, attach_s=0.25, path_s=0.75, fit_s=2)
    host = l2c.host_of(tiny_dit(), solver="ddim", steps=6)
    return list(stage_seconds(prices, settings, host, budgets, solver).values())


def test_seconds_are_those_of_runs_masks_and_steps():
    solved, searched, learned = seconds_of()
    assert solved == 8 * 5.5 + 2 * 6.5
    again = 0.25 + 6 * 3  # a mask by all that a solver would be fitted to, of which there are six
    assert searched == 3 * (0.25 + 4 * 3) + 3 * again
    assert learned == 10 * 2 * 10 + 2 * 2 * 3
    assert seconds_of(2) == [solved, 2 * searched, 2 * learned]
    assert seconds_of(trial_examples=40)[1] == 6 * again  # there are no more
    assert seconds_of(trials=9)[1] == 9 * (0.25 + 4 * 3) + FINALISTS * again
    assert seconds_of(trials=1)[1] == 0.25 + 4 * 3


def test_a_learned_solver_is_fitted_for_each_mask_and_each_trial_of_noise_levels():
    solver = Structures(searched=2, whole=1, starts=1, known=[3, 4])
    known, free = seconds_of(2), seconds_of(2, solver)
    assert free[0] - known[0] == 6 * (5 * 0.75 - 5.5)  # all that there are to learn on, made together
    trial, compared, crossed = 0.25 + 4 * 2, 0.25 + 8 * 2, 0.25 + 2 * 6 * 2
    # all three compared, a look at two of them, these compared again, the best and the whole one by more pictures, and
    # the rest of the trials for the best
    assert free[1] == 2 * (3 * trial + (3 + 2) * compared + 2 * crossed)
    more = 2 * (3.5 + 4.5)
    tried = 2 + 16 * (1 - RECALLED)  # the first noise levels, those of the search, and the last
    assert free[2] - known[2] == pytest.approx(2 * (tried * 6 * 2 + more))
    reused = Structures(searched=2, whole=0, starts=1, known=[3, 4])
    assert seconds_of(2, reused)[2] - known[2] == 2 * ((2 + 4) * 6 * 2 + more)
    assert seconds_of(2, solver, level_trials=0)[2] - known[2] == 2 * (2 * 6 * 2 + 2 * (3.5 + 4.5))
    assert seconds_of(1, solver, reference_steps=None)[0] == seconds_of(reference_steps=None)[0]


def test_where_a_solver_may_begin_at_several_noise_levels_is_tried():
    one, three = (
        seconds_of(1, Structures(searched=1, whole=1, starts=starts, known=[])) for starts in (1, 3)
    )
    assert three[1] - one[1] == ((3 + 1) + 3) * (0.25 + 4 * 2)


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(ConfigError, match="computes everything"):
        l2c.estimate_learning(tiny_dit(), budget=1.0, steps=4, solver="ddim")


def test_too_little_memory_is_a_sentence(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("l2c.learning.estimate._step", full)
    with pytest.raises(ConfigError, match="more memory than cpu has; take recompute='evaluations'"):
        l2c.estimate_learning(tiny_dit(), steps=4, solver="ddim")


def test_sizes_are_told_in_units():
    assert [_size(count) for count in (0, 999, 85_000, 1_600_000_000_000)] == [
        "0 B",
        "999 B",
        "85 kB",
        "1.6 TB",
    ]
