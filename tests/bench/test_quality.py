import importlib.util
from pathlib import Path

import pytest

import l2c
from l2c.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quality(monkeypatch):
    spec = importlib.util.spec_from_file_location("quality", ROOT / "benchmarks" / "quality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "REFERENCE", ("dpmsolver++3", "logsnr", 6))
    monkeypatch.setattr(module, "RIVALS", [("ddim", "linspace")])
    return module


def test_quality_goes_on_where_it_was(quality, dit, tmp_path, capsys):
    schedule = tmp_path / "half.safetensors"
    l2c.methods.interval(dit, "ddim", 4, 2).save(schedule)
    out = tmp_path / "quality.json"
    common = ["--images", "2", "--out", str(out), "--schedule", str(schedule)]
    assert quality.main([*common, "--steps", ""]) == 0
    first = RunRecord.load(out).results["points"]
    assert [point["name"] for point in first] == ["ddim, linspace, 4", "half"]
    assert first[1]["cost"] == pytest.approx(2, abs=0.05)
    capsys.readouterr()
    assert quality.main([*common, "--steps", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    points = RunRecord.load(out).results["points"]
    assert points[:2] == first
    assert points[2]["name"] == "ddim, linspace, 2"
    assert out.with_suffix(".png").stat().st_size > 1000


def test_quality_names_what_is_wrong(quality, tmp_path, capsys):
    assert (
        quality.main(["--schedule", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "q.json")])
        == 1
    )
    assert "there is no schedule file" in capsys.readouterr().err
