from __future__ import annotations

import time

import pytest

from l2c.bench.timing import Timing, interleave
from l2c.errors import ConfigError


def test_every_variant_takes_its_turn_after_a_warm_up():
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = interleave(variants, 3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_warm_ups_can_be_others():
    calls: list[str] = []
    interleave({"a": lambda: calls.append("a")}, 1, warm_ups={"a": lambda: calls.append("warm")})
    assert calls == ["warm", "a"]


def test_seconds_are_seconds():
    timings = interleave({"slow": lambda: time.sleep(0.03), "fast": lambda: None}, 3)
    assert timings["slow"].min_s >= 0.03
    assert timings["fast"].median_s < timings["slow"].median_s


def test_no_repetition_is_begun_that_would_end_too_late():
    timings = interleave({"a": lambda: time.sleep(0.02)}, 50, warm_ups={}, time_limit_s=0.11)
    assert 1 <= len(timings["a"].seconds) <= 5
    assert len(interleave({"a": lambda: None}, 3, time_limit_s=0.0)["a"].seconds) == 1


def test_median_and_range():
    timing = Timing((3.0, 1.0, 2.0))
    assert (timing.median_s, timing.min_s, timing.max_s) == (2.0, 1.0, 3.0)


def test_runs_are_announced():
    seen: list[tuple[str, int]] = []
    interleave({"a": int, "b": int}, 2, on_run=lambda name, repetition: seen.append((name, repetition)))
    assert seen == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]


@pytest.mark.parametrize(("variants", "repetitions"), [({}, 1), ({"a": int}, 0)])
def test_nothing_to_time_is_refused(variants, repetitions):
    with pytest.raises(ConfigError, match="must be at least 1"):
        interleave(variants, repetitions)
