"""Memory that is worked out without numbers is that of small models with numbers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import l2c
from l2c.learning.memory import AliveBytes
from l2c.learning.student import Student
from l2c.records import Record
from l2c.testing import tiny_call, tiny_pipeline

ROOT = Path(__file__).resolve().parents[2]


def kept_by_learning(pipe, name, recompute, steps):
    """Bytes that a run keeps whose every second evaluation is computed, and the calls of an evaluation."""
    call = {
        key: value for key, value in tiny_call(name, steps).items() if key not in ("generator", "output_type")
    }
    host = l2c.host_of(pipe, **call)
    mask = torch.ones(steps, len(host.table), dtype=torch.bool)
    mask[1::2] = False
    student = Student(host, mask, 1, recompute=recompute)
    with host.prepared(), student.attached(), AliveBytes() as alive:
        made = student(host.seeded([0]))
    assert made.requires_grad
    return alive.nbytes, host.rows_and_calls[1]


def call_of(pipe, name):
    """What the pipeline calls its transformer with, but for the timestep."""
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given), with_kwargs=True
    )
    pipe(**tiny_call(name))
    hook.remove()
    return {key: value for key, value in seen[0].items() if key not in ("timestep", "return_dict")}


@pytest.mark.parametrize("recompute", [False, True, "evaluations"])
@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "qwen"])
def test_a_pair_of_evaluations_keeps_what_learning_measures(load_benchmark, name, recompute):
    module, pipe = load_benchmark("large_memory"), tiny_pipeline(name)
    pair = module.kept_by_a_pair(pipe.transformer, call_of(pipe, name), recompute)
    (long, calls), (short, _) = (kept_by_learning(pipe, name, recompute, steps) for steps in (12, 6))
    within = 0.2 if (name, recompute) == ("qwen", "evaluations") else 0.1  # for the latents of its guidance
    assert long - short == pytest.approx(3 * calls * pair, rel=within)


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "qwen"])
def test_sizes_without_numbers_are_those_of_numbers(load_benchmark, monkeypatch, name):
    module, pipe = load_benchmark("large_memory"), tiny_pipeline(name)
    call = call_of(pipe, name)
    meta = {
        key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in call.items()
    }
    measured = [
        module.kept_by_a_pair(pipe.transformer, call, False),
        module.kept_by_one(pipe.transformer, call),
    ]
    with module.on_meta():
        monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float32)
        model = copy.deepcopy(pipe.transformer).to("meta")
        found = [module.kept_by_a_pair(model, meta, False), module.kept_by_one(model, meta)]
    assert found == pytest.approx(measured, rel=0.05)


def test_a_table_is_made_of_what_is_worked_out(load_benchmark, monkeypatch, tmp_path, capsys):
    module = load_benchmark("large_memory")
    tiny = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    size = module.Size("FluxTransformer2DModel", tiny, (4096, 64), module.flux, 1, 1, 28)
    monkeypatch.setattr(module, "SIZES", {"small": size})
    assert module.main(["--out", str(tmp_path / "record.json")]) == 0
    found = Record.load(tmp_path / "record.json").results["small"]
    assert module.table({"small": found}) in capsys.readouterr().out
    assert (
        found["nothing"] > found["evaluations"] > found["offload"] > found["sampling"] >= found["weights"] > 0
    )


def test_the_document_has_the_figures(load_benchmark):
    results = Record.load(ROOT / "results/large-memory.json").results
    assert load_benchmark("large_memory").table(results) in (ROOT / "docs/large-models.md").read_text(
        encoding="utf-8"
    )
