"""`load_schedule`: one way to open everything that holds a schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest

import l2c
from l2c.errors import ConfigError, ScheduleError
from l2c.schedule.open import open_schedule
from l2c.schedule.schedule import mask_of_scores
from l2c.testing import tiny_dit

SHIPPED = "dit-mini-cifar10-ddim-20"


@pytest.fixture(scope="module")
def schedule():
    return l2c.methods.interval(tiny_dit(), solver="ddim", steps=6, every=2)


@pytest.fixture(scope="module")
def family(schedule):
    return l2c.ScheduleFamily([schedule, l2c.methods.interval(tiny_dit(), solver="ddim", steps=6, every=3)])


def test_a_file_a_folder_and_what_is_open_already(schedule, tmp_path):
    schedule.save(tmp_path / "one.safetensors")
    folder = schedule.save_pretrained(tmp_path / "folder")
    for source in (tmp_path / "one.safetensors", str(tmp_path / "one.safetensors"), folder):
        assert l2c.load_schedule(source).compute.equal(schedule.compute)
    assert l2c.load_schedule(schedule) is schedule


def test_a_budget_takes_one_of_a_family(family, tmp_path):
    dearest, cheapest = family
    family.save(tmp_path / "family.safetensors")
    for source in (family, tmp_path / "family.safetensors"):
        assert len(open_schedule(source)) == 2
        assert l2c.load_schedule(source, 1.0).compute.equal(dearest.compute)
        budget = cheapest.cost.fraction
        assert l2c.load_schedule(source, budget=budget).compute.equal(cheapest.compute)
        with pytest.raises(ScheduleError, match=r"is a family of schedules; take one with a budget"):
            l2c.load_schedule(source)
        with pytest.raises(ConfigError, match="the cheapest schedule of the family takes"):
            l2c.load_schedule(source, budget=0.01)


def test_a_family_in_a_folder(family, tmp_path):
    family.save(tmp_path / "schedule.safetensors")
    assert l2c.load_schedule(tmp_path, budget=1.0).compute.equal(next(iter(family)).compute)


def test_one_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert l2c.load_schedule(SHIPPED, budget=0.5).cost.fraction <= 0.505
    with pytest.raises(
        ScheduleError, match=rf"there is no schedule file dit; .*these come with l2c: .*{SHIPPED}"
    ):
        l2c.load_schedule("dit")


def test_a_budget_needs_a_family(schedule, tmp_path):
    schedule.save(tmp_path / "one.safetensors")
    for source, name in ((schedule, "this"), (tmp_path / "one.safetensors", r"one\.safetensors")):
        with pytest.raises(ConfigError, match=f"{name} is not a family of schedules"):
            l2c.load_schedule(source, budget=0.5)


@pytest.fixture(scope="module")
def routed(schedule):
    scores = schedule.compute.float() * 0.6 + 0.2
    scores[0] = float("nan")
    return replace(schedule, scores=scores)


def test_a_threshold_decides_anew(routed):
    everything, nothing = (l2c.load_schedule(routed, threshold=threshold) for threshold in (0.1, 0.9))
    assert everything.compute.all()
    assert nothing.compute.sum() == 6  # where there is no score, all six layers
    assert nothing.provenance["threshold"] == 0.9
    assert l2c.load_schedule(routed, threshold=0.5).compute.equal(routed.compute)


def test_a_threshold_that_has_nothing_to_decide_on(schedule, routed):
    with pytest.raises(ConfigError, match="no router scores"):
        l2c.load_schedule(schedule, threshold=0.5)
    with pytest.raises(ConfigError, match="the threshold must be at most 1, got 1.5"):
        mask_of_scores(routed.scores, 1.5)
    learned = l2c.load_schedule(SHIPPED, budget=0.5)
    with pytest.raises(ConfigError, match="forecasts were learned for this mask"):
        l2c.load_schedule(replace(learned, scores=learned.compute.float()), threshold=0.5)


def test_a_published_router(shared):
    path = shared / "routers/DDIM50_router.pt"
    assert l2c.load_schedule(path).compute.equal(l2c.import_router(path).compute)
    other = l2c.load_schedule(path, threshold=0.3)
    assert other.compute.equal(l2c.import_router(path, threshold=0.3).compute)
    assert other.provenance == l2c.import_router(path, threshold=0.3).provenance


def test_a_repository_is_asked_for_by_user_and_name_only(monkeypatch, schedule, tmp_path):
    asked = []

    def fetch(name, **options):
        asked.append(name)
        raise ScheduleError("no network")

    monkeypatch.setattr("l2c.schedule.hub.fetch", fetch)
    monkeypatch.chdir(tmp_path)
    for name in ("user/half", "user/half.safetensors", "half", "a/b/c", "/user/half", "../half"):
        with pytest.raises(ScheduleError):
            l2c.load_schedule(name)
    assert asked == ["user/half"]
