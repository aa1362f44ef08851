"""The benchmark of learning through a pipeline, at a size that says nothing about the figures."""

import pytest
import torch

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

import l2c
from l2c.records import Record

SMALL = {
    "steps": 4, "evaluations": 2, "images": 2, "fine_steps": 2, "examples": 4, "batch_size": 1, "iterations": 1,
    "trials": 2, "reference_steps": 2,
}  # fmt: skip


@pytest.fixture
def parity(load_benchmark):
    return load_benchmark("pipeline_parity")


def test_both_ways_are_learned_once_and_judged_by_the_same_pictures(parity, tmp_path, monkeypatch, capsys):
    work, out = tmp_path / "work", tmp_path / "record.json"
    small = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    arguments = [*small, "--learning-seeds", "7", "--work", str(work), "--out", str(out)]
    assert parity.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "% apart; the target is 1%" in printed
    assert "% apart; the target is 2%" in printed
    first = Record.load(out)
    errors, rows = first.results["errors"], first.results["errors_by_learning_seed"]["7"]
    assert {len(values) for values in rows.values()} == {SMALL["images"]}
    for what in (parity.FIXED, parity.FREE):
        ratio = first.results["ratios"][what]["value"]
        assert ratio == pytest.approx(errors[f"{what}, pipeline"] / errors[f"{what}, native"])
        assert ratio == pytest.approx(
            1, abs=0.02
        )  # even here: from the same noise, towards the same pictures
        assert rows[f"{what}, pipeline"] != rows[f"{what}, native"]

    def refuse(*_, **__):
        raise AssertionError("learned again")

    monkeypatch.setattr(l2c, "learn", refuse)
    benchmark = parity.Benchmark(parity.Plan(**SMALL), work)
    for host in benchmark.hosts():
        for what in (parity.FIXED, parity.FREE):
            assert benchmark.learn(host, what, 7).provenance["iterations"] == SMALL["iterations"]


def test_both_ways_begin_with_the_same_examples_references_and_run(parity, tmp_path):
    native, piped = parity.Benchmark(parity.Plan(**SMALL), tmp_path).hosts()
    assert native.run.timesteps == piped.run.timesteps
    assert native.run.log_snrs == pytest.approx(piped.run.log_snrs)
    ours, theirs = (host.examples(2, 0, "pictures") for host in (native, piped))
    with torch.no_grad():
        for one, other in ((native, piped), (native.reference(3), piped.reference(3))):
            torch.testing.assert_close(one.sample(ours), other.sample(theirs), atol=2e-3, rtol=1e-3)
    one, other = native.solver_starts(4)[0].run, piped.solver_starts(4)[0].run
    assert one.log_snrs == pytest.approx(other.log_snrs, abs=1e-5)
    assert one.timesteps == pytest.approx(other.timesteps, abs=0.5)  # rounded until they are learned
