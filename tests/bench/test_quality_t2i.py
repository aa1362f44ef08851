"""The benchmark of the text-to-image pipeline, at a size that says nothing about the figures."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

import l2c
from l2c.records import Record
from l2c.scenes import scene_prompts

SMALL = ("--images", "2", "--iterations", "1", "--examples", "4", "--trials", "1", "--fine-evaluations", "4")


@pytest.fixture
def quality(load_benchmark):
    return load_benchmark("quality_t2i")


def point(kind, name, cost, errors, right=(2, 1)):
    figures = {"latents": errors, "pictures": errors, "ssim": [1 - e for e in errors]}
    return {
        "kind": kind, "name": name, "schedule": "", "cost": cost, "learning_s": 100.0 if kind == "learned" else None,
        **figures, "objects_right": list(right), "objects": [2, 2],
    }  # fmt: skip


def test_verdicts_compare_on_the_same_pictures(quality):
    report = quality.report
    points = [
        point("default", "28 steps", 28, [0.2, 0.4]),
        point("plain", "euler, 8", 8, [0.5, 0.7]),
        point("plain", "unipc, 8", 8, [0.4, 0.6]),
        point("learned", "learned, 8", 7.9, [0.2, 0.2]),
        point("own", "own, 0.50", 14.0, [0.1, 0.2], right=(2, 0)),
    ]
    found = report.verdicts(points)
    plain = found["error relative to the best plain solver"]["8"]
    assert plain["best plain solver"] == "unipc, 8"
    assert plain["ratio"] == pytest.approx(0.4)
    assert plain["met"]
    half = found["half of the work of the default"]["own, 0.50"]
    assert half["points of adherence lost"] == pytest.approx(25)
    assert half["ratio"] == pytest.approx(0.5)
    assert not half["met"]
    assert found["seconds of learning"]["longest"] == 100
    assert "cost 8: learned 0.2000, best plain 0.5000 (unipc, 8): 0.400" in report.text(points)
    assert "adherence -25.0 points" in report.text(points)


@pytest.mark.slow
def test_every_point_is_recorded_and_nothing_is_done_again(
    quality, scenes_pipeline, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("quality_t2i_variants.SHIFTS", (1.0,))
    out = tmp_path / "record.json"
    where = ("--threads", "1", "--work", str(tmp_path / "work"), "--out", str(out))
    arguments = ["--quick", "--costs", "2", *SMALL, *where]
    assert quality.main(arguments) == 0
    first = Record.load(out)
    points = {point["name"]: point for point in first.results["points"]}
    assert {"28 steps", "own, 0.50", "heun, shift 1, 2", "learned, 2", "solver, 2"} <= set(points)
    assert points["own, 0.50"]["cost"] <= 14.01
    assert points["learned, 2"]["cost"] <= 2.01
    assert first.results["prompts"] == scene_prompts(2, held_out=True)
    assert not set(first.results["prompts"]) & set(first.results["learning_prompts"])
    assert out.with_suffix(".png").is_file()
    assert (tmp_path / "record-pictures.png").is_file()
    assert "longest learning" in capsys.readouterr().out

    def refuse(*_, **__):
        raise AssertionError("learned again")

    monkeypatch.setattr(l2c, "learn", refuse)
    assert quality.main(arguments) == 0
    assert Record.load(out).results["points"] == first.results["points"]
