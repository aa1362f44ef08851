"""How much work learning takes, in three sizes."""

from __future__ import annotations

import pytest

import l2c
from l2c.errors import ConfigError
from l2c.learning.effort import effort_settings, seconds_per_evaluation, stage_evaluations
from l2c.testing import tiny_dit


def work_of(settings, wholes, **more):
    return sum(stage_evaluations(settings, wholes, 3.5, **more).values())


def test_efforts_are_settings_that_rise():
    quick, default, best = (
        l2c.LearnSettings(**effort_settings(name)) for name in ("quick", "default", "best")
    )
    assert default == l2c.LearnSettings()
    work = [work_of(settings, 8, searches=3) for settings in (quick, default, best)]
    assert work[0] < 0.7 * work[1]
    assert work[2] > 3 * work[1]


def test_an_unknown_effort_is_refused():
    with pytest.raises(
        ConfigError, match="unknown effort 'most'; did you mean 'best'. choose one of quick, default, best"
    ):
        effort_settings("most")


def test_work_is_counted_in_evaluations_of_a_picture():
    settings = l2c.LearnSettings(
        iterations=10,
        batch_size=2,
        num_examples=8,
        reference_steps=5,
        trials=3,
        trial_examples=4,
        validate_every=0,
    )
    assert work_of(settings, 6) == 8 * 5 + 6 * (3 * 4 + 10 * 2 * 3.5 + 2 * 2)
    per_budget = 6 * (2 * 3 * 4 + 10 * 2 * 3.5 + 2 * 2)
    assert work_of(settings, 6, budgets=2, searches=2) == 8 * 5 + 2 * per_budget


def test_an_evaluation_is_timed_by_a_short_run(monkeypatch):
    times = iter([10.0, 16.0])
    monkeypatch.setattr("l2c.learning.effort.time.monotonic", lambda: next(times))
    assert seconds_per_evaluation(l2c.host_of(tiny_dit(), solver="ddim", steps=50), 3) == 6 / (2 * 3)
