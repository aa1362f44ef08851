"""The whole stack as one layer: the same model, the same cost, less to store."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from l2c.layers import find_layers
from l2c.learning.settings import LearnSettings
from l2c.records import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark(load_benchmark) -> ModuleType:
    return load_benchmark("whole_stack")


def test_the_view_is_the_same_model_with_one_layer(benchmark, tiny_dit):
    view = benchmark.whole_stack(tiny_dit)
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 5])
    with torch.no_grad():
        torch.testing.assert_close(view(x, t, y), tiny_dit(x, t, y), rtol=1e-4, atol=1e-5)
    table, own = find_layers(view), find_layers(tiny_dit)
    assert table.names == ("stack",)
    assert (table.full_macs, table.rest_macs) == (own.full_macs, own.rest_macs)
    assert len(tiny_dit.blocks) == 3  # the model itself is as it was


def test_both_forms_are_learned_at_the_same_cost(benchmark, tiny_dit):
    settings = LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=4, trial_examples=1)
    record = benchmark.measure(tiny_dit, 6, 2, settings, 2, [3, 4])
    forms = record.results
    assert list(forms) == ["layers, history 3", "stack, history 3", "stack, history 4"]
    assert len({form["cost"] for form in forms.values()}) == 1
    layers, stack, _ = forms.values()
    assert layers["store_bytes"] == 6 * stack["store_bytes"]
    assert set(stack["before_by_order"]) == {"0", "1", "2"}


def test_what_the_page_says_is_what_was_measured():
    results = Record.load(ROOT / "results" / "whole-stack.json").results
    page = (ROOT / "docs" / "learning.md").read_text()
    names = {"layers": "one per layer", "stack": "one of the whole stack"}
    for key, form in results.items():
        name, depth = key.split(", history ")
        figures = [form["before_by_order"]["2"], form["error"], form["p95"], form["worst"]]
        cells = [
            names[name],
            depth,
            *(f"{figure:.4f}" for figure in figures),
            f"{form['store_bytes'] / 1e6:.1f}",
        ]
        row = f"| {' | '.join(cells)} |"
        assert row in page, row
