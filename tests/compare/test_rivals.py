"""Rivals that search, learn or calibrate, in a comparison from its file to its page."""

from __future__ import annotations

import json

import pytest

from l2c.compare.config import CompareConfig
from l2c.compare.runner import FAILED, Comparison
from l2c.models import save_model
from l2c.report.compare_page import compare_page
from l2c.report.comparison_folder import read_comparison
from l2c.testing import tiny_dit

SHORT = "iterations = 1, batch_size = 1, num_examples = 4, reference_steps = 4"
METHODS = f"""
[[method]]
name = "foca"

[[method]]
name = "dmd"
settings = [{{ num_images = 1 }}]

[[method]]
name = "budcache"
settings = [
    {{ annealing = 2, climbing = 1 }},
    {{ annealing = 2, climbing = 1, refine = 1, batch_size = 1, num_examples = 1 }},
]

[[method]]
name = "bespoke"
settings = [{{ {SHORT} }}]

[[method]]
name = "neuralsolver"
settings = [{{ {SHORT} }}]

[[method]]
name = "freqca"
settings = [{{ interval = 3 }}]
"""
MODEL = """
model = "{model}"
images = 2
batch_size = 2
timing_images = 1
repetitions = 1
shown_images = 1
metrics = ["rmse"]
reference = {{ solver = "dpmsolver++3", steps = 6, spacing = "logsnr" }}

[[base]]
solver = "ddim"
steps = 8
budgets = [0.5]
"""
PIPELINE = """
images = 1
timing_images = 1
repetitions = 1
shown_images = 1
metrics = ["rmse"]
reference = {{ steps = 6 }}

[model]
pipeline = "tiny:sd3"

[[base]]
steps = 8
budgets = [0.5]
"""


@pytest.mark.parametrize("head", [MODEL, PIPELINE], ids=["model", "pipeline"])
def test_every_rival_is_compared_and_shown(head, tmp_path):
    save_model(tiny_dit(), tmp_path / "tiny.safetensors")
    path = tmp_path / "rivals.toml"
    path.write_text(head.format(model=tmp_path / "tiny.safetensors") + METHODS)
    Comparison(CompareConfig.load(path), tmp_path / "out", "cpu").run()
    records = [
        json.loads(record.read_text())["results"] for record in (tmp_path / "out/records").glob("*.json")
    ]
    found = {record["method"]: record for record in records}
    assert set(found) == {"full", "foca", "dmd", "budcache", "bespoke", "neuralsolver", "freqca"}
    assert len(records) == 8
    for record in records:
        assert FAILED not in record, record[FAILED]
        assert all(error > 0 for error in record["metrics"]["rmse"])
    full = found["full"]["macs"]
    for name in ("foca", "dmd", "budcache", "bespoke", "neuralsolver"):
        assert found[name]["macs"] / full == pytest.approx(0.5, abs=0.15), name
    assert found["freqca"]["macs"] / full == pytest.approx(4 / 8, abs=0.15)  # 0, 1, 2 and 5
    page = compare_page(read_comparison(tmp_path / "out"))
    for title in ("FoCa", "DMD", "BudCache", "bespoke non-stationary solver", "NeuralSolver", "FreqCa"):
        assert title in page, title
