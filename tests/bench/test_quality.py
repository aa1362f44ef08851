from dataclasses import replace

import pytest
from PIL import Image

import l2c
from l2c.records import Record
from l2c.schedule.family import ScheduleFamily


@pytest.fixture
def quality(load_benchmark, monkeypatch, tmp_path, dit):
    """The benchmark with runs of a few evaluations, and a family and a schedule that are at hand."""
    module = load_benchmark("quality")
    pair = module.report.Pair("dit-mini-cifar10", "ddim", 4, {0.5: 2.0})
    monkeypatch.setattr(module, "REFERENCE", {"solver": "dpmsolver++3", "spacing": "logsnr", "steps": 6})
    monkeypatch.setattr(module.report, "PAIRS", (pair,))
    monkeypatch.setattr(module, "BUDGETS", (0.5,))
    monkeypatch.setattr(module.report, "COSTS", (6,))
    monkeypatch.setattr(module, "RIVALS", [("ddim", "linspace"), ("unipc", "linspace")])
    monkeypatch.setattr(module, "GUIDED_RIVALS", [("ddim", "linspace")])
    monkeypatch.setattr(module.report, "GUIDANCE_SCALES", (1.5, 3.0))
    monkeypatch.setattr(module.report, "GUIDED_COST", 4)
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    monkeypatch.setattr(module, "LEARNED", tmp_path)
    half = l2c.methods.interval(dit, solver="ddim", steps=4, every=2, predictor="taylor-2")
    provenance = {"budget": 0.5, "method": "of a test"}
    ScheduleFamily(
        [type(half)(half.compute, half.layers, half.contract, half.predictor, None, provenance)]
    ).save(tmp_path / "dit-mini-cifar10-ddim-4.safetensors")
    return module


def test_quality_goes_on_where_it_was(quality, tmp_path, capsys):
    out = tmp_path / "quality.json"
    common = ["--images", "2", "--out", str(out), "--part"]
    assert quality.main([*common, "dit-mini-cifar10-ddim-4", "--limit", "2"]) == 0
    first = Record.load(out).results["points"]
    assert [point["kind"] for point in first] == ["everything", "learned"]
    assert first[1]["cost"] == pytest.approx(2, abs=0.05)
    capsys.readouterr()
    assert quality.main([*common, "dit-mini-cifar10-ddim-4"]) == 0
    points = Record.load(out).results["points"]
    assert points[:2] == first
    assert {point["kind"] for point in points} == {
        "everything", "learned", "fewer steps", "interval, copy", "interval, taylor-2",
    }  # fmt: skip
    assert f"{first[1]['error'] / first[0]['error']:.2f} of that (target 2.00)" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 1000


def test_quality_measures_a_schedule_anew_that_has_changed(quality, tmp_path, dit):
    out, path = tmp_path / "quality.json", tmp_path / "dit-mini-cifar10-ddim-4.safetensors"
    command = ["--images", "2", "--out", str(out), "--part", "dit-mini-cifar10-ddim-4", "--limit", "2"]
    assert quality.main(command) == 0
    everything, before = Record.load(out).results["points"]
    copies = l2c.methods.interval(dit, solver="ddim", steps=4, every=2)
    ScheduleFamily([replace(copies, provenance={"budget": 0.5})]).save(path)
    assert quality.main(command) == 0
    kept, after = Record.load(out).results["points"]
    assert kept == everything
    assert (after["name"], after["cost"]) == (before["name"], before["cost"])
    assert after["schedule"] != before["schedule"]
    assert after["error"] > before["error"]


def rival(cost, error, kind="fewer steps"):
    return {"kind": kind, "name": f"at {cost:g}", "cost": cost, "error": error}


def test_quality_says_which_rivals_are_not_beaten(quality):
    pair = quality.report.Pair("dit-mini-cifar10", "ddim", 10, {})
    learned = [rival(5, 0.02, "learned"), rival(8, 0.03, "learned")]
    beaten = [rival(5, 0.021), rival(9, 0.021), rival(10, 0.001, "everything"), rival(2, 0.001)]
    line = quality.report._beaten(pair, [*learned, *beaten])
    assert line.endswith("of 2 rivals from cost 0.3 to 0.9, closer than learned at no more cost: none")
    assert quality.report._beaten(pair, [*learned, rival(6, 0.019)]).endswith(": at 6")
    assert quality.report._beaten(pair, [*learned, rival(4, 0.5)]).endswith(
        ": at 4"
    )  # nothing learned costs so little


def test_quality_compares_with_the_best_rival(quality, tmp_path, capsys):
    out = tmp_path / "quality.json"
    assert quality.main(["--images", "2", "--out", str(out), "--part", "solvers", "--pictures"]) == 0
    with Image.open(tmp_path / "quality-pictures.png") as sheet:
        assert sheet.width > 400
    rivals = Record.load(out).results["points"]
    best = min(rivals, key=lambda point: point["error"])
    assert f"cost 6: best of fewer steps {best['error']:.4f} ({best['name']})" in capsys.readouterr().out


def test_quality_shows_in_short_what_it_has(quality, tmp_path, capsys):
    assert quality.main(["--images", "2", "--out", str(tmp_path / "q.json"), "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "guidance 1.5: best of fewer steps" in out
    assert "guidance 3: best of fewer steps" in out
    *_, solvers = out.split("\n\n")
    heading, _, known, alone, learned = (row.split(" | ") for row in solvers.splitlines())
    assert heading[1] == "6 |"
    assert 0 < float(known[1].rstrip("| ")) < 1
    assert alone[1] == "- |"
    assert learned[1] == "- |"


def test_quality_names_what_is_wrong(quality, tmp_path, capsys):
    (tmp_path / "dit-mini-cifar10-ddim-4.safetensors").write_bytes(b"half a fi")
    out = tmp_path / "q.json"
    assert quality.main(["--images", "2", "--out", str(out), "--part", "dit-mini-cifar10-ddim-4"]) == 1
    assert "is not a whole schedule file" in capsys.readouterr().err
