"""How much work learning takes, in three sizes."""

from __future__ import annotations

import pytest

import l2c
from l2c.errors import ConfigError
from l2c.learning.effort import effort_settings
from l2c.learning.prices import Prices, stage_seconds
from l2c.testing import tiny_dit


def test_efforts_are_settings_that_rise():
    quick, default, best = (
        l2c.LearnSettings(**effort_settings(name)) for name in ("quick", "default", "best")
    )
    assert default == l2c.LearnSettings()
    prices = Prices(run_s=0, evaluation_s=1, sample_s=8, step_s=28, attach_s=0)
    host = l2c.host_of(tiny_dit(), solver="ddim", steps=16)
    work = [sum(stage_seconds(prices, settings, host, 1).values()) for settings in (quick, default, best)]
    assert work[0] < 0.7 * work[1]
    assert work[2] > 2 * work[1]


def test_an_unknown_effort_is_refused():
    with pytest.raises(
        ConfigError, match="unknown effort 'most'; did you mean 'best'. choose one of quick, default, best"
    ):
        effort_settings("most")
