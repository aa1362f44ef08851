"""The benchmark of learning through a pipeline, at a size that says nothing about the figures."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

import l2c
from l2c.records import RunRecord

SMALL = {
    "steps": 4, "images": 2, "fine_steps": 2, "pictures": 3, "batch_size": 1, "iterations": 1, "reference_steps": 2
}  # fmt: skip


@pytest.fixture
def parity(load_benchmark):
    return load_benchmark("pipeline_parity")


def test_both_ways_are_learned_once_and_judged_by_the_same_pictures(parity, tmp_path, monkeypatch, capsys):
    work, out = tmp_path / "work", tmp_path / "record.json"
    small = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    arguments = [*small, "--learning-seeds", "7", "--work", str(work), "--out", str(out)]
    assert parity.main(arguments) == 0
    assert "% apart; the target is 3%" in capsys.readouterr().out
    first = RunRecord.load(out)
    errors, rows = first.results["errors"], first.results["errors_by_learning_seed"]["7"]
    assert {len(values) for values in rows.values()} == {SMALL["images"]}
    assert first.results["ratios"]["pipeline"]["value"] == pytest.approx(
        errors["pipeline"] / errors["native"]
    )
    # the pipeline samples as l2c does, so that only what was learned can differ
    np.testing.assert_allclose(rows["pipeline"], rows["pipeline, sampled natively"], rtol=1e-3)
    assert rows["pipeline"] != rows["native"]

    def refuse(*_, **__):
        raise AssertionError("learned again")

    monkeypatch.setattr(l2c, "fit_predictor", refuse)
    monkeypatch.setattr(l2c.hosts.pipeline, "fit_predictor", refuse)
    benchmark = parity.Benchmark(parity.Plan(**SMALL), work)
    assert benchmark.learn_natively(7).provenance["iterations"] == SMALL["iterations"]
    assert benchmark.learn_through_pipeline(7).provenance["iterations"] == SMALL["iterations"]


def test_both_ways_begin_with_the_same_mask_solver_and_coefficients(parity, tmp_path):
    plan = parity.Plan(**SMALL)
    benchmark = parity.Benchmark(plan, tmp_path)
    native = benchmark.mask()
    piped = l2c.hosts.pipeline.interval(benchmark.pipe, class_labels=[0], every=2, **benchmark.call)
    assert torch.equal(native.compute, piped.compute)
    assert native.contract.run.timesteps == piped.contract.run.timesteps
    assert native.contract.run.log_snrs == pytest.approx(piped.contract.run.log_snrs)
    assert native.cost.fraction == pytest.approx(0.5, abs=0.02)
