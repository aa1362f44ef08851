"""`l2c profile`, and what learning does with its file."""

from __future__ import annotations

import json

import pytest

from l2c.records import Record
from l2c.schedule.cost import CostTable
from l2c.schedule.schedule import CacheSchedule

QUICK = ("--steps", 5, "--repetitions", 1)


def test_profile_shows_parts_and_checks_and_writes_them(invoke, tmp_path, checkpoint):
    out = tmp_path / "deep" / "costs.json"
    finished = invoke("profile", checkpoint, *QUICK, "--batch-size", 2, "--out", out)
    assert finished.code == 0, finished.err
    for words in (
        "2 pictures at a time, guidance 1.5, engine eager, on cpu",
        "attention",
        "mlp",
        "of it solver",
    ):
        assert words in finished.out
    assert "Random schedules of 5 evaluations" in finished.out
    assert "Decoding" not in finished.out
    assert f"wrote {out}" in finished.err
    record = Record.load(out)
    assert record.command == "profile"
    assert (record.config["engine"], record.config["history"], record.config["steps"]) == ("eager", 3, 5)
    assert record.device["device"] == "cpu"
    costs = CostTable.from_json(record.results["costs"])
    assert (costs.architecture, len(costs.names)) == ("dit", 6)
    assert costs.full == pytest.approx(record.results["full_ms"])
    assert [check["fraction"] for check in record.results["checks"]] == pytest.approx(
        [0.7, 0.5, 0.3], abs=0.15
    )
    assert {"everything computed", "everything reused", "attention", "mlp", "solver"} < set(record.timings)
    assert list(out.parent.iterdir()) == [out]


def test_profile_as_json(invoke, other_checkpoint):
    options = ("--predictor", "copy", "--guidance", 1, "--engine", "eager", "--json")
    finished = invoke("profile", other_checkpoint, *QUICK, *options)
    assert finished.code == 0, finished.err
    found = json.loads(finished.out)
    assert found["file"] is None
    assert found["config"]["history"] == 1
    assert found["results"]["costs"]["architecture"] == "uvit"
    assert set(found["results"]["groups"]) == {"attention", "mlp"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--predictor", "linear"), ("unknown predictor 'linear'",)),
        (("--engine", "steam"), ("unknown engine 'steam'",)),
        (("--engine", "graph"), ("CUDA graphs need a CUDA device", "engine='compile'")),
        (("--steps", 3), ("a run needs at least 4 evaluations, got 3",)),
        (("--out", "costs.txt"), ("--out writes a .json file",)),
        (("--repetitions", 0), ("--repetitions",)),
    ],
)
def test_wrong_usage(invoke, checkpoint, options, words):
    finished = invoke("profile", checkpoint, *options)
    assert finished.code == 2
    assert finished.out == ""
    assert len(finished.err.splitlines()) == 1
    assert all(word in finished.err for word in words), finished.err


@pytest.fixture
def costs_file(tmp_path):
    """Each of six layers takes 1 ms, the rest of an evaluation 0.5 ms."""
    path = tmp_path / "costs.json"
    costs = CostTable("ms", (1.0,) * 6, 0.5)
    Record("profile", {"guidance": 1.5}, results={"costs": costs.to_json()}).save(path)
    return path


def test_learning_for_a_latency_takes_a_written_table(invoke, tmp_path, checkpoint, costs_file):
    out = tmp_path / "out.safetensors"
    options = ("--steps", 6, "--iterations", 1, "--examples", 4, "--reference-steps", 8, "--trials", 2)
    budget = ("--batch-size", 1, "--latency-ms", 20, "--costs", costs_file)
    finished = invoke("learn", checkpoint, *options, *budget, "--out", out)
    assert finished.code == 0, finished.err
    schedule = CacheSchedule.load(out)
    assert int(schedule.compute.sum()) == 17  # 6 evaluations of 0.5 ms, and 17 layers of 1 ms
    assert schedule.provenance["budget_cost"] == 20


def test_learning_refuses_the_table_of_another_model(invoke, tmp_path, costs_file):
    options = ("--steps", 6, "--latency-ms", 20, "--costs", costs_file, "--out", tmp_path / "out.safetensors")
    finished = invoke("learn", "dit-mini-cifar10", *options)
    assert finished.code == 2
    assert "the costs are those of 6 layers, but the model is a dit with 24 layers" in finished.err
    finished = invoke("learn", "dit-mini-cifar10", *options[:4], "--costs", tmp_path / "no.json")
    assert finished.code == 1
    assert "cannot be read: No such file or directory" in finished.err
