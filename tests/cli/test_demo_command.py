from __future__ import annotations

import json

import pytest

import l2c
from l2c.demo import SHIPPED_SCHEDULE, DemoSettings, run_demo, shipped_schedule
from l2c.learning.settings import LearnSettings
from l2c.records import Record
from l2c.testing import tiny_dit

FILES = [
    "cached.png",
    "difference-shipped.png",
    "difference.png",
    "full.png",
    "heatmap-shipped.png",
    "heatmap.png",
    "index.html",
    "record.json",
    "schedule-shipped.safetensors",
    "schedule.safetensors",
    "shipped.png",
]


@pytest.fixture
def small(tmp_path, checkpoint):
    """The demo on a tiny model, with a schedule in place of the shipped one."""
    shipped = tmp_path / "shipped.safetensors"
    l2c.ScheduleFamily([l2c.methods.interval(tiny_dit(), steps=4, every=every) for every in (2, 4)]).save(
        shipped
    )
    return DemoSettings(
        model=str(checkpoint),
        steps=4,
        labels=(1, 2),
        seeds=(1, 2),
        learning=LearnSettings(iterations=2, batch_size=1, num_examples=4, reference_steps=8, trials=2),
        repetitions=2,
        shipped=shipped,
    )


def test_demo_writes_everything_and_measures_in_turn(tmp_path, small):
    folder = tmp_path / "demo"
    folder.mkdir()
    runs = []
    record = run_demo(folder, small, on_sampling=lambda title, repetition: runs.append((repetition, title)))
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [repetition for repetition, _ in runs] == [0, 0, 0, 1, 1, 1, 0]
    assert len(set(runs)) == 7
    assert Record.load(folder / "record.json") == record
    full, fresh, shipped = record.results["variants"]
    assert full["psnr_db"] is None
    assert all(0 < variant["error"] < 1 for variant in (full, fresh, shipped))
    assert full["fraction"] == full["speedup"] == 1.0
    assert shipped["fraction"] < 0.6
    assert fresh["macs"] == round(fresh["fraction"] * full["macs"])
    assert all(len(record.timings[key]) == 2 for key in ("full", "cached", "shipped"))


def test_demo_command(invoke, tmp_path, small, monkeypatch):
    monkeypatch.setattr(DemoSettings, "quick", classmethod(lambda cls: small))
    finished = invoke("demo", "--quick", "--out", tmp_path / "demo")
    assert finished.code == 0, finished.err
    assert "everything computed" in finished.out
    assert "speed-up" in finished.out
    assert "index.html" in finished.err
    data = json.loads(invoke("demo", "--quick", "--out", tmp_path / "demo", "--json").out)
    assert len(data["results"]["variants"]) == 3


def test_the_shipped_schedule_is_for_the_demo(dit):
    path = shipped_schedule()
    if path is None:
        pytest.skip(f"{SHIPPED_SCHEDULE} is not in the package")
    settings = DemoSettings()
    schedule = l2c.ScheduleFamily.load(path).at(settings.budget)
    run = schedule.contract.run
    assert schedule.cost.fraction == pytest.approx(settings.budget, rel=0.01)
    assert (run.solver, run.steps, run.spacing) == (settings.solver, settings.steps, "linspace")
    with l2c.enable_cache(dit, schedule):
        pass


def test_interrupt_while_learning_ends_the_demo(invoke, tmp_path, small, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("l2c.learning.closed_loop.StudentTask.backward", interrupt)
    monkeypatch.setattr(DemoSettings, "quick", classmethod(lambda cls: small))
    assert invoke("demo", "--quick", "--out", tmp_path / "demo").code == 130
    assert not (tmp_path / "demo").exists()


def test_demo_of_the_pipeline_shows_pictures_with_their_prompts(invoke, scenes_pipeline, tmp_path):
    folder = tmp_path / "drawn"
    done = invoke("demo", "--pipeline", "--quick", "-o", folder)
    assert done.code == 0, done.err
    assert "half of the work" in done.out
    assert "4 pictures of prompts that nothing was learned on" in done.out
    assert sorted(path.name for path in folder.iterdir()) == [
        "pictures.png",
        "record.json",
        "schedule.safetensors",
    ]
    full, half = Record.load(folder / "record.json").results["variants"]
    assert half["fraction"] <= 0.5 < full["fraction"] == 1
    assert 0 <= half["adherence"]["objects"] <= 1
    assert l2c.load_schedule(folder / "schedule.safetensors").contract.run.weights is not None


def test_demo_of_a_pipeline_that_is_missing_says_so(invoke, tmp_path, monkeypatch):
    monkeypatch.setattr("l2c.hosts.pipeline.loading.ASSETS", tmp_path)
    done = invoke("demo", "--pipeline", "-o", tmp_path / "drawn")
    assert done.code == 1
    assert "this installation of l2c has no weights of l2c:scenes-sd3" in done.err
