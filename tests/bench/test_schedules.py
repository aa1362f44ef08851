"""`measure_schedules`, from Python: what `l2c bench` finds, for whoever has a model and schedules at hand."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.bench.schedules import EVERYTHING
from l2c.errors import ConfigError, L2CError
from l2c.testing import tiny_dit


def test_schedules_of_one_run_share_a_baseline(tmp_path):
    model, said = tiny_dit(), []
    schedules = {
        f"{steps}, {every}": l2c.methods.interval(model, solver="ddim", steps=steps, every=every)
        for steps, every in ((4, 2), (6, 2), (6, 3))
    }
    record = l2c.measure_schedules(
        model,
        schedules,
        batch_sizes=(2, 1, 2),
        repetitions=1,
        names={"model": "tiny"},
        on_progress=lambda what, *_: said.append(what),
    )
    rows = record.results["rows"]
    assert [row["schedule"] for row in rows] == [EVERYTHING, "4, 2", EVERYTHING, "6, 2", "6, 3"] * 2
    assert [row["images"] for row in rows] == [2] * 5 + [1] * 5
    assert [run["evaluations"] for run in record.config["runs"]] == [4, 6]
    assert (record.config["model"], record.config["batch_sizes"]) == ("tiny", [2, 1])
    assert said[0] == "2 pictures at a time, first calls"
    record.save(tmp_path / "times.json")


def test_what_does_not_fit_into_memory_is_left_out(monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("l2c.bench.schedules.measure_latency", no_memory)
    said = []
    with pytest.raises(L2CError, match=r"out of memory at every batch size \(1,2\); use smaller"):
        l2c.measure_schedules(tiny_dit(), batch_sizes=(1, 2), steps=2, note=said.append)
    assert len(said) == 2
    assert said[0].startswith("out of memory with 1 picture at a time (ddim, 2 evaluations")


def test_batches_have_pictures():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        l2c.measure_schedules(tiny_dit(), batch_sizes=(0,))
