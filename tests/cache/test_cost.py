import re

import pytest
import torch

from l2c.cache.cost import CostTable
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.testing import tiny_dit

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
