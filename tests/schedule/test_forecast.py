import math
import re

import pytest
import torch

import l2c
from l2c.errors import ConfigError, ScheduleError
from l2c.sampling.sampler import seeded_noise
from l2c.schedule import forecast
from l2c.schedule.forecast import (
    Predictor,
    combine,
    lagrange_weights,
    plan_reuse,
    predictor_kinds,
    register_predictor,
)
from l2c.testing import count_calls, tiny_dit

LOG_SNRS = (-4.0, -2.5, -1.0, 0.5, 1.0, 3.0)


def column(*rows):
    return torch.tensor([[bool(row)] for row in rows])


def test_lagrange_weights_continue_a_polynomial_exactly():
    def cubic(s):
        return 2 * s**3 - s**2 + 3

    nodes = [1.0, 0.5, -1.0, -2.0]
    value = sum(w * cubic(s) for w, s in zip(lagrange_weights(3.0, nodes), nodes, strict=True))
    assert value == pytest.approx(cubic(3.0))


def test_copy_reads_the_last_computed_value():
    plan = plan_reuse(column(1, 1, 0, 0, 1, 0), Predictor(), None)
    assert plan == {(2, 0): ((1, 1.0),), (3, 0): ((1, 1.0),), (5, 0): ((4, 1.0),)}


def test_taylor_falls_back_to_a_lower_order_while_few_values_are_there():
    plan = plan_reuse(column(1, 0, 1, 0, 1, 0), Predictor("taylor", 2), LOG_SNRS)
    assert plan[1, 0] == ((0, 1.0),)
    assert [source for source, _ in plan[3, 0]] == [2, 0]
    assert [source for source, _ in plan[5, 0]] == [4, 2, 0]
    assert [w for _, w in plan[5, 0]] == lagrange_weights(3.0, [1.0, -1.0, -4.0])


def test_linear_uses_the_coefficients_of_its_evaluation_and_layer():
    coefficients = torch.arange(8.0).reshape(4, 1, 2)
    plan = plan_reuse(column(1, 1, 0, 0), Predictor("linear", coefficients=coefficients), None)
    assert plan[2, 0] == ((1, 4.0), (0, 5.0))
    assert plan[3, 0] == ((1, 6.0), (0, 7.0))


def test_coefficients_of_another_shape_are_refused():
    with pytest.raises(ScheduleError, match=r"cover \(3, 1\).*mask covers \(2, 1\)"):
        plan_reuse(column(1, 0), Predictor("linear", coefficients=torch.zeros(3, 1, 2)), None)


def test_taylor_without_log_snrs_is_refused():
    with pytest.raises(ScheduleError, match="needs the log-SNR"):
        plan_reuse(column(1, 0), Predictor("taylor", 1), None)


@pytest.mark.parametrize("text", ["copi", "taylor-x", "copy-2", "linear"])
def test_unknown_predictors_are_refused(text):
    with pytest.raises(ConfigError, match="choose copy, taylor"):
        Predictor.parse(text)


def test_combine_is_a_weighted_sum():
    values = [torch.full((2,), 1.0), torch.full((2,), 10.0)]
    assert torch.equal(combine(values, [3.0, 0.5]), torch.full((2,), 8.0))
    assert combine(values[:1], [1.0]) is values[0]


@pytest.fixture
def near(monkeypatch):
    """A predictor that weighs stored values by how near they are in log-SNR."""
    monkeypatch.setattr(forecast, "_PREDICTORS", dict(forecast._PREDICTORS))

    def weights(now, times, order):
        shares = [math.exp(-order * abs(now - time)) for time in times]
        return [share / sum(shares) for share in shares]

    register_predictor("near", weights)


def test_a_registered_predictor_forecasts_from_file_to_picture(near, tmp_path, monkeypatch):
    model, noise = tiny_dit(in_channels=4), seeded_noise([0], (4, 8, 8))
    schedule = l2c.methods.interval(model, steps=6, predictor="near-2")
    schedule.save(tmp_path / "near.safetensors")
    loaded = l2c.CacheSchedule.load(tmp_path / "near.safetensors")
    assert loaded.predictor == Predictor("near", 2)
    assert loaded.summary()["predictor"] == "near-2"
    (latest, first), (second, last) = loaded.plan[3, 0]
    assert (latest, second) == (2, 0)
    assert first + last == pytest.approx(1)
    assert first > last
    with count_calls(model) as calls:
        sampled = l2c.sample(model, [1], noise=noise, schedule=loaded)
    assert set(calls.values()) == {3}
    copied = l2c.sample(model, [1], noise=noise, schedule=l2c.methods.interval(model, steps=6))
    assert not torch.equal(sampled, copied)
    kinds = {kind: entry for kind, entry in forecast._PREDICTORS.items() if kind != "near"}
    monkeypatch.setattr(forecast, "_PREDICTORS", kinds)
    message = "unknown predictor 'near'; .*, or add it with l2c.register_predictor"
    with pytest.raises(ScheduleError, match=message):
        l2c.CacheSchedule.load(tmp_path / "near.safetensors")


def test_registered_predictors_are_named_and_checked(near):
    assert predictor_kinds() == ("copy", "taylor", "linear", "near")
    assert (Predictor.parse("near").name, Predictor.parse("near-3").name) == ("near-1", "near-3")
    register_predictor(
        "mean-of-all", lambda now, times, order: [1 / len(times)] * len(times), orders=range(1, 2)
    )
    assert Predictor.parse("mean-of-all").name == "mean-of-all"
    register_predictor("short", lambda now, times, order: [1.0], needs_log_snrs=False)
    register_predictor("fitted", lambda now, times, row: row / row.sum(), takes_coefficients=True)
    fitted = Predictor("fitted", coefficients=torch.ones(3, 1, 2))
    assert fitted.name == "fitted-2"
    assert plan_reuse(column(1, 1, 0), fitted, LOG_SNRS[:3])[2, 0] == ((1, 0.5), (0, 0.5))
    for wrong, error, message in (
        (
            lambda: Predictor("neer", 1),
            ConfigError,
            "choose one of copy, taylor, linear, near, mean-of-all, short, fitted,",
        ),
        (lambda: Predictor("near", 5), ConfigError, "a near predictor has an order from 1 to 4, got 5"),
        (lambda: Predictor("taylor", 0), ConfigError, "a Taylor predictor has an order from 1 to 4, got 0"),
        (
            lambda: Predictor("linear"),
            ConfigError,
            "a linear or fitted predictor, and no other, takes coefficients",
        ),
        (lambda: Predictor.parse("near-x"), ConfigError, "near, or near-N of order N"),
        (lambda: register_predictor("copy", max), ConfigError, "there is a predictor 'copy' already"),
        (
            lambda: register_predictor("none", max, orders=range(0)),
            ConfigError,
            "orders of a predictor: List should have at least 1 item",
        ),
        (
            lambda: plan_reuse(column(1, 1, 0), Predictor("short", 1), None),
            ConfigError,
            "the predictor 'short-1' gives 1 weights for 2 stored values; it must give one for each",
        ),
        (
            lambda: plan_reuse(column(1, 0), Predictor("near", 1), None),
            ScheduleError,
            "'near-1' needs the log-SNR",
        ),
    ):
        with pytest.raises(error, match=re.escape(message)):
            wrong()
