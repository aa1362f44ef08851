"""The preset on the embedded text-to-image pipeline, in small."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

from l2c.compare.choices import Base, MethodChoice, Reference
from l2c.compare.config import CompareConfig
from l2c.compare.hosts import Hosts
from l2c.compare.plan import plan
from l2c.compare.runner import Comparison
from l2c.errors import ConfigError
from l2c.methods.learned import learned
from l2c.report.comparison_folder import FAILED
from l2c.scenes import scene_prompts
from l2c.testing import tiny_dit

QUICK = {"iterations": 1, "batch_size": 1, "num_examples": 4, "reference_steps": 6, "trials": 1}


def test_preset_asks_for_what_is_to_be_shown():
    config = CompareConfig.preset("embedded-t2i")
    learned = [v.settings for v in plan(config) if v.method == "learned" and v.budget is None]
    for cost in (12, 10, 8, 6, 4):
        assert {s.get("per_computed") for s in learned if s["evaluations"] == cost} == {None, 1}
    assert {v.budget for v in plan(config) if v.method == "learned"} == {None, 0.5, 0.3333}
    assert config.images == 64 == len(set(config.pipeline.prompts))
    assert set(config.metrics) == {"rmse", "psnr", "ssim", "adherence"}


def test_it_learns_on_other_prompts_and_is_judged_by_adherence(scenes_pipeline, tmp_path):
    auto = {"evaluations": 2, "per_computed": 1, **QUICK}
    config = replace(
        CompareConfig.preset("embedded-t2i"),
        images=2,
        timing_images=1,
        repetitions=1,
        reference=Reference("", 6, ""),
        bases=(Base(steps=4, budgets=(0.5,)),),
        methods=(
            MethodChoice("fewer-steps", ({"to_solver": "unipc, shift 3"},)),
            MethodChoice("learned", (auto,), budgets=()),
            MethodChoice("cache-dit", ({"Fn_compute_blocks": 1, "max_warmup_steps": 1},), optional=True),
            MethodChoice("diffusers-taylorseer", ({"cache_interval": 2, "max_order": 1},)),
        ),
    )
    judged, learns = (
        Hosts(config, "cpu").base(config.bases[0]),
        Hosts(config, "cpu").to_learn_on(config.bases[0]),
    )
    assert [one["prompt"] for one in judged.conditions] == scene_prompts(64, held_out=True)
    assert [one["prompt"] for one in learns.conditions] == scene_prompts(64)
    records = Comparison(config, tmp_path / "compared", "cpu").run()
    assert [record.results[FAILED] for record in records if FAILED in record.results] == []
    assert all(len(record.results["metrics"]["adherence"]) == 2 for record in records)
    ours = next(record.results for record in records if record.results["method"] == "learned")
    assert ours["macs"] == pytest.approx(ours["full_macs"] / 2)
    assert ours["evaluations"] == 2


def test_learning_without_a_file_needs_a_cost():
    with pytest.raises(ConfigError, match="needs the path of a schedule file, .* or a budget or evaluations"):
        learned(tiny_dit())
