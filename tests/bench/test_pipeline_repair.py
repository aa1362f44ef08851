"""The benchmark of repairing a schedule, at a size that says nothing about the figures."""

import pytest

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

from l2c.records import Record

SMALL = {
    "steps": 4,
    "iterations": 1,
    "examples": 4,
    "trials": 2,
    "repair_iterations": 1,
    "repair_examples": 4,
}


@pytest.mark.slow
def test_a_lora_moves_the_pictures_and_a_schedule_is_judged_before_and_after(
    load_benchmark, tmp_path, monkeypatch, capsys
):
    module = load_benchmark("pipeline_repair")
    monkeypatch.setattr(module, "SEEDS", range(1))
    small = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert module.main([*small, "--out", str(tmp_path / "record.json")]) == 0
    assert "the LoRA changes what the pipeline makes by" in capsys.readouterr().out
    found = Record.load(tmp_path / "record.json").results
    assert set(found["errors"]) == {"without the LoRA", "with the LoRA", "repaired", "learned anew"}
    assert found["errors"]["with the LoRA"] != found["errors"]["without the LoRA"]
    assert found["errors"]["repaired"] != found["errors"]["with the LoRA"]
    assert found["change_by_the_lora"] > 0
    assert found["cost"] <= 0.5
