import pytest
import torch

from l2c.errors import ConfigError, ScheduleError
from l2c.schedule.forecast import Predictor, combine, lagrange_weights, plan_reuse

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
