import json
import re

import pytest
import torch

from l2c.errors import ConfigError, DataError
from l2c.layers import find_layers
from l2c.schedule.cost import CostTable
from l2c.testing import tiny_dit, tiny_uvit

COSTS = CostTable("ms", (1.0, 2.0, 4.0), 0.5)


def test_the_cost_of_a_mask_by_hand():
    compute = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    assert COSTS.of(compute) == 4 * 0.5 + (1 + 2 + 4) + 2 + 0 + (1 + 4)
    assert COSTS.full == 7.5
    assert COSTS.of(torch.ones(4, 3, dtype=torch.bool)) == 4 * COSTS.full


def test_macs_are_those_of_the_layers_and_the_rest():
    table = find_layers(tiny_dit())
    costs = CostTable.macs(table)
    assert costs.unit == "MACs"
    assert costs.full == table.full_macs
    only = torch.zeros(3, len(table), dtype=torch.bool)
    only[1, 2] = True
    assert costs.of(only) == 3 * table.rest_macs + table.layers[2].macs


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            30.5,
            "a budget of 30.5 ms is more than the 30 ms of computing everything; no schedule is needed",
        ),
        (
            8.5,
            "a budget of 8.5 ms cannot be met: the first evaluation has to compute every layer, and with what no "
            "schedule can save the run takes at least 9 ms (30.0%); allow more, or take more steps",
        ),
        (-1.0, "a budget of -1 ms cannot be met"),
        (float("inf"), "is more than the 30 ms"),
    ],
)
def test_a_budget_that_cannot_be_met_is_one_sentence(budget, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        COSTS.check_budget(budget, 4)


@pytest.mark.parametrize("budget", [9, 15.0, 30])
def test_a_budget_that_can_be_met_passes(budget):
    COSTS.check_budget(budget, 4)


def test_a_budget_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="budget"):
        COSTS.check_budget(float("nan"), 4)


def test_costs_are_shown_with_their_unit():
    assert COSTS.show(12.3456) == "12.35 ms"
    assert CostTable.macs(find_layers(tiny_dit())).show(2.5e12) == "2500 GMACs"


def test_forecasts_of_fewer_values_cost_less():
    costs = CostTable("ms", (1.0, 2.0), 1.0, history=3, per_value=0.1)
    compute = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 0], [1, 0], [0, 0]], dtype=torch.bool)
    missing = 2 + 1 + 0 + 5 * 2  # the first layer has been computed once, twice, three times; the second once
    assert costs.of(compute) == pytest.approx(6 * 1.0 + 3 * 1.0 + 2.0 - 0.1 * missing)
    first = torch.zeros(6, 2, dtype=torch.bool)
    first[0] = True
    costs.check_budget(costs.of(first), 6)
    with pytest.raises(ConfigError, match="cannot be met"):
        costs.check_budget(costs.of(first) * 0.98, 6)


def test_a_table_in_plain_data_and_back():
    costs = CostTable("ms", (1.0, 2.5), 0.5, "dit", ("a", "b"), 3, 0.25)
    assert CostTable.from_json(json.loads(json.dumps(costs.to_json()))) == costs


@pytest.mark.parametrize(
    "change",
    [
        {"layers": None},
        {"layers": []},
        {"layers": [1.0]},
        {"rest": "much"},
        {"rest": float("nan")},
        {"names": 3},
    ],
)
def test_a_malformed_table_is_refused(change):
    data = {**CostTable("ms", (1.0, 2.5), 0.5, "dit", ("a", "b")).to_json(), **change}
    with pytest.raises(DataError, match="the table of costs is malformed"):
        CostTable.from_json(data)
    with pytest.raises(DataError, match="the table of costs is malformed"):
        CostTable.from_json({key: value for key, value in data.items() if key != "rest"})


def test_costs_of_another_model_are_refused():
    table = find_layers(tiny_dit())
    CostTable.macs(table).check_layers(table)
    CostTable("ms", (1.0,) * 6, 0.5).check_layers(table)
    message = (
        "the costs are those of 6 layers of a dit, but the model is a uvit with 6 layers; measure this one"
    )
    with pytest.raises(ConfigError, match=message):
        CostTable.macs(table).check_layers(find_layers(tiny_uvit()))
    with pytest.raises(ConfigError, match="the costs are those of 3 layers, but the model is a dit with 6"):
        COSTS.check_layers(table)
    with pytest.raises(ConfigError, match=r"those of 3 layers but the mask is \(4, 6\)"):
        COSTS.of(torch.ones(4, 6, dtype=torch.bool))


def test_where_reusing_saves_nothing_no_budget_can_be_met():
    with pytest.raises(ConfigError, match="no layer saves any time"):
        CostTable("ms", (0.0, 0.0), 2.0).check_budget(20.0, 10)
