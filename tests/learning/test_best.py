"""The best state is kept, not the last, and a run that goes on from a checkpoint keeps the same one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.session import Session
from l2c.testing import tiny_dit

SETTINGS = l2c.LearnSettings(
    iterations=6, batch_size=2, num_examples=8, reference_steps=4, validate_every=2, seed=1
)


def learn(settings=SETTINGS, **options):
    model = tiny_dit()
    mask = l2c.methods.interval(model, solver="dpmsolver++", steps=4)
    return l2c.repair(model, mask, settings=settings, **options)


@pytest.fixture
def judged(monkeypatch):
    """Validation errors to come, and the coefficients that each was given for."""
    coming, seen = [], []

    def judge(loop, student):
        seen.append(student.forecasts.added.detach().clone())
        return coming[len(seen) - 1]

    monkeypatch.setattr(ClosedLoop, "_validate", judge)
    return coming, seen


def test_the_best_state_is_kept(judged):
    coming, seen = judged
    coming += [5.0, 2.0, 3.0, 4.0]  # at 0, 2, 4 and 6
    schedule = learn()
    assert len(seen) == 4
    assert schedule.provenance["iterations"] == 6
    assert schedule.provenance["iterations_kept"] == 2
    seen.clear()
    coming[:] = [5.0, 4.0, 3.0, 2.0]
    last = learn()
    assert last.provenance["iterations_kept"] == 6
    assert not torch.equal(schedule.predictor.coefficients, last.predictor.coefficients)


def test_learning_that_helps_nothing_keeps_the_start(judged):
    coming, _ = judged
    coming += [1.0, 2.0, 3.0, 4.0]
    provenance = learn().provenance
    assert provenance["iterations_kept"] == 0
    assert provenance["held_out_error"] == provenance["held_out_error_before"]


def test_patience_ends_learning(judged):
    coming, seen = judged
    coming += [1.0, 2.0, 3.0]
    provenance = learn(replace(SETTINGS, patience=2)).provenance
    assert (provenance["iterations"], len(seen)) == (4, 3)
    assert not provenance["time_was_up"]
    assert not provenance["interrupted"]


def test_the_last_state_is_kept_without_validation(judged):
    _, seen = judged
    provenance = learn(replace(SETTINGS, validate_every=0)).provenance
    assert provenance["iterations_kept"] == 6
    assert not seen


class Stop(Exception):  # noqa: N818
    """Ends learning like an error of the program."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("iteration", [3, 4])
def test_a_run_that_goes_on_ends_with_the_same_state(tmp_path, error, iteration):
    whole = learn()

    def stop(progress):
        if (progress.stage, progress.iteration) == ("learning", iteration):
            raise error

    session = Session(checkpoint=tmp_path / "checkpoint", save_every_s=0)
    if error is Stop:
        with pytest.raises(Stop):
            learn(session=session, on_progress=stop)
    else:
        assert learn(session=session, on_progress=stop).provenance["iterations"] == iteration
    again = learn(session=session)
    assert again.provenance == whole.provenance
    assert torch.equal(again.predictor.coefficients, whole.predictor.coefficients)


def test_pictures_that_decide_are_neither_learned_on_nor_reported(monkeypatch):
    sets = {}
    init = ClosedLoop.__init__

    def noted(loop, *args):
        init(loop, *args)
        parts = (loop._held_out, loop.training, loop._references.validation)
        sets.update(zip(("held out", "training", "validation"), parts, strict=True))

    monkeypatch.setattr(ClosedLoop, "__init__", noted)
    learn()
    assert [len(part) for part in sets.values()] == [2, 6, 1]
    noise = torch.cat([part.examples.noise for part in sets.values()])
    assert len({tuple(one.flatten().tolist()) for one in noise}) == 9


def test_a_schedule_states_its_worst_picture():
    provenance = learn().provenance
    mean, tail, worst = (provenance[f"held_out_error{end}"] for end in ("", "_p95", "_worst"))
    assert mean <= tail <= worst
    assert provenance["held_out_worst"].startswith("label ")


def test_a_tail_learns_something_else():
    plain, *others = learn(), learn(replace(SETTINGS, tail=4.0)), learn(replace(SETTINGS, tail=0.0))
    for other in others:
        assert not torch.equal(plain.predictor.coefficients, other.predictor.coefficients)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validate_every": -1}, "validate_every must be at least 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"patience": 1, "validate_every": 0}, "validate_every=0 makes none"),
        ({"tail": -0.5}, "tail must be at least 0, got -0.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(SETTINGS, **changes)
