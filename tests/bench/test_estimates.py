"""The benchmark of what is foretold of learning, on a tiny pipeline."""

import time
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

from l2c.records import Record

RECORD = Path(__file__).resolve().parents[2] / "results/estimates.json"


@pytest.mark.slow
def test_what_is_foretold_is_held_against_what_happens(load_benchmark, tmp_path, capsys):
    module, out = load_benchmark("estimates"), tmp_path / "record.json"
    clock = time.monotonic
    given = ["--targets", "pixart", "--out", str(out)]
    assert module.main(given) == 0
    assert time.monotonic is clock
    assert "pixart, solver: foretold" in capsys.readouterr().out
    first = Record.load(out).results
    assert set(first) == {"pixart, budget", "pixart, solver"}
    for found in first.values():
        assert found["took_s"] / 2 < found["foretold_s"] < 2 * found["took_s"]
        assert sum(found["stages_s"].values()) == pytest.approx(found["foretold_s"])
    paths = first["pixart, solver"]  # next to which what a checkpoint has besides is nothing
    assert paths["foretold_bytes"] == pytest.approx(paths["stored_bytes"], rel=0.25)
    assert module.main([*given, "--budget", "0.7"]) == 0
    second = Record.load(out).results
    assert second["pixart, budget"]["asked"] == {"budget": 0.7}
    assert second["pixart, solver"] == first["pixart, solver"]


def test_what_was_foretold_of_every_target_is_within_a_quarter(load_benchmark):
    found = Record.load(RECORD).results
    assert set(found) == {
        f"{n}, {way}" for n in load_benchmark("estimates").TARGETS for way in ("budget", "solver")
    }
    for name, figures in found.items():
        assert figures["foretold_s"] == pytest.approx(figures["took_s"], rel=0.25), name
        if figures["stored_bytes"] > 50_000:
            assert figures["foretold_bytes"] == pytest.approx(figures["stored_bytes"], rel=0.25), name
