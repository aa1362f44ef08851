"""The benchmark of everything that needs a GPU: every part runs on small models, is recorded and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from l2c.records import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_part_runs_records_and_resumes(load_benchmark, tmp_path, capsys):
    module = load_benchmark("gpu")
    options = ["--tiny", "--out", str(tmp_path), "--minutes", "60"]
    assert module.main([*options, "--part", "scaling"]) == 0
    first = Record.load(tmp_path / "gpu.json").results["scaling"]
    different = {tuple(part.tiny): part for part in module.PARTS}.values()
    assert module.main([*options, *(word for part in different for word in ("--part", part.name))]) == 0
    results = Record.load(tmp_path / "gpu.json").results
    assert set(results) == {"scaling", *(part.name for part in different)}
    assert {found["status"] for found in results.values()} == {"done"}
    assert results["scaling"] == first  # not taken again
    for part in different:
        if part.writes:
            assert Record.load(tmp_path / results[part.name]["record"]).command.startswith("benchmarks/")
    capsys.readouterr()
    assert module.main(["--show", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == module.show(results)


def test_a_part_that_takes_too_long_is_stopped_and_the_others_go_on(
    load_benchmark, monkeypatch, tmp_path, capsys
):
    module = load_benchmark("gpu")
    slow = replace(
        module.PARTS[0], name="slow", limit_s=0.05, tiny=[module.PYTHON, "-c", "import time; time.sleep(60)"]
    )
    wrong = replace(
        slow, name="wrong", limit_s=60, tiny=[module.PYTHON, "-c", "raise SystemExit('no such thing')"]
    )
    good = replace(wrong, name="good", tiny=[module.PYTHON, "-c", "print('fine')"])
    monkeypatch.setattr(module, "PARTS", (slow, wrong, good))
    assert module.main(["--tiny", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "slow: stopped in 0 s: not done within 0 s" in shown
    assert ": no such thing" in shown
    results = Record.load(tmp_path / "gpu.json").results
    assert [found["status"] for found in results.values()] == ["stopped", "failed", "done"]
    assert results["good"]["output"] == ["fine"]


def test_parts_that_lack_something_say_what(load_benchmark, monkeypatch, tmp_path, capsys):
    module = load_benchmark("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run = module.Run(tmp_path, None, tiny=False)
    reasons = {part.name: run.missing(part) for part in module.PARTS}
    assert reasons["latency"] == "needs --routers, the folder of the published router files"
    assert reasons["processes"] == "needs 2 CUDA devices, there is 1"
    assert reasons["learning"] is None
    assert module.main(["--show", "--out", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_limits_of_the_parts_fit_into_the_whole(load_benchmark):
    module = load_benchmark("gpu")
    assert sum(part.limit_s for part in module.PARTS[:6]) <= module.TOTAL_S


def test_the_document_shows_what_has_run(load_benchmark):
    record = Record.load(ROOT / "results/gpu.json")
    assert load_benchmark("gpu").show(record.results) in (ROOT / "docs/engine.md").read_text(encoding="utf-8")
