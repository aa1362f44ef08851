from __future__ import annotations

import json

import pytest
from PIL import Image

import l2c
from l2c.learning.paper import RouterSettings
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_dit, tiny_pipeline


def open_picture(path):
    """A picture that holds no file open."""
    with Image.open(path) as file:
        return file.copy()


@pytest.mark.parametrize(
    ("name", "computed", "total", "removed", "kinds"),
    [
        ("DDIM50_router.pt", 736, 1400, 47.43, {"attention": 371, "mlp": 365}),
        ("DDIM20_router.pt", 312, 560, 44.29, {"attention": 157, "mlp": 155}),
        ("dpm50_router.pth", 88, 1392, 93.68, None),
        ("dpm20_router.pth", 189, 522, 63.79, None),
    ],
)
def test_published_routers(invoke, shared, name, computed, total, removed, kinds):
    finished = invoke("inspect", shared / "routers" / name, "--json")
    assert finished.code == 0, finished.err
    cached = json.loads(finished.out)["cached"]
    assert (cached["computed"], cached["total"]) == (computed, total)
    assert round(100 * cached["removed"], 2) == removed
    if kinds is not None:
        assert {kind: counts["computed"] for kind, counts in cached["kinds"].items()} == kinds


@pytest.mark.parametrize(
    ("name", "row", "full", "left"),
    [
        ("DDIM50_router.pt", "linear layers only", "5.72 T", "4.36 T"),
        ("dpm50_router.pth", "with attention products", "6.66 T", "3.88 T"),
        ("dpm20_router.pth", "with attention products", "2.66 T", "1.94 T"),
    ],
)
def test_published_costs_are_printed(invoke, shared, name, row, full, left):
    out = invoke("inspect", shared / "routers" / name).out
    (line,) = [line for line in out.splitlines() if row in line]
    assert full in line
    assert left in line


def test_the_table_has_a_line_per_evaluation(invoke, schedule):
    finished = invoke("inspect", schedule)
    assert finished.code == 0
    assert "dpmsolver++, 4 steps, logsnr spacing" in finished.out
    assert "any weights" in finished.out
    lines = [line.split() for line in finished.out.splitlines()]
    rows = [words for words in lines if words and words[0] in "0123" and words[1].replace(".", "").isdigit()]
    assert [words[2:4] for words in rows] == [["3/3", "3/3"], ["0/3", "0/3"], ["3/3", "3/3"], ["0/3", "0/3"]]


def test_json_has_the_mask(invoke, schedule):
    data = json.loads(invoke("inspect", schedule, "--json").out)
    assert [row["mask"] for row in data["rows"]] == ["111111", "000000", "111111", "000000"]
    assert data["layer_names"][:2] == ["blocks.0.attn", "blocks.0.mlp"]
    assert data["file"] == str(schedule)


@pytest.fixture
def learned(tmp_path):
    path = tmp_path / "learned.safetensors"
    settings = RouterSettings(iterations=2, batch_size=1)
    l2c.learn(
        tiny_dit(), pattern="alternate", solver="ddim", steps=4, settings=settings, model_name="tiny"
    ).save(path)
    return path


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_threshold_decides_anew_and_can_be_saved(invoke, tmp_path, learned, threshold, share):
    saved = tmp_path / "saved.safetensors"
    finished = invoke("inspect", learned, "--threshold", threshold, "--save", saved, "--json")
    assert finished.code == 0, finished.err
    cached = json.loads(finished.out)["cached"]
    assert cached["computed"] == share * cached["total"]
    again = CacheSchedule.load(saved)
    assert again.summary()["cached"] == cached
    assert again.provenance["threshold"] == threshold


def test_a_published_router_saved_is_the_same_schedule(invoke, tmp_path, shared):
    saved = tmp_path / "saved.safetensors"
    router = shared / "routers/DDIM20_router.pt"
    assert invoke("inspect", router, "--save", saved).code == 0
    assert CacheSchedule.load(saved).compute.equal(l2c.import_router(router).compute)


def test_threshold_needs_scores(invoke, schedule):
    finished = invoke("inspect", schedule, "--threshold", "0.5")
    assert finished.code == 2
    assert "no router scores" in finished.err


def test_threshold_out_of_range(invoke, learned):
    assert invoke("inspect", learned, "--threshold", "1.5").code == 2


def test_plot(invoke, tmp_path, learned):
    plot = tmp_path / "plots" / "map.png"
    finished = invoke("inspect", learned, "--plot", plot)
    assert finished.code == 0, finished.err
    assert open_picture(plot).size[0] > 600
    assert "map.png" in finished.err


def test_plot_is_refused_before_anything_is_read(invoke, tmp_path):
    assert invoke("inspect", "missing.safetensors", "--plot", tmp_path / "map.svg").code == 2
    (tmp_path / "file").write_text("")
    finished = invoke("inspect", "missing.safetensors", "--plot", tmp_path / "file" / "map.png")
    assert finished.code == 1
    assert "cannot write" in finished.err


def test_inspect_shows_the_layers_of_a_model(invoke, checkpoint):
    finished = invoke("inspect", checkpoint)
    assert finished.code == 0, finished.err
    assert "model, architecture dit, 6 layers" in " ".join(finished.out.split())
    found = json.loads(invoke("inspect", checkpoint, "--json").out)["models"]["model"]
    table = l2c.layers.find_layers(tiny_dit())
    assert sum(kind["macs"] for kind in found["kinds"].values()) == table.layer_macs
    assert {name: kind["layers"] for name, kind in found["kinds"].items()} == {"attention": 3, "mlp": 3}


def test_inspect_shows_the_layers_of_a_pipeline(invoke, tmp_path):
    pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")
    tiny_pipeline("pixart").save_pretrained(tmp_path)
    finished = invoke("inspect", tmp_path)
    assert finished.code == 0, finished.err
    assert "transformer, architecture pixart" in " ".join(finished.out.split())
    assert "cross-attention" in finished.out
    assert "l2c profile measures it" in finished.err


def test_passes_of_guidance_apart_are_shown(invoke, tmp_path):
    from dataclasses import replace

    import torch

    from l2c.schedule.branches import join_branches

    schedule = l2c.methods.interval(tiny_dit(), solver="dpmsolver++", steps=6)
    runs = torch.zeros(6, dtype=torch.bool)
    runs[[0, 4]] = True
    compute = join_branches(schedule.compute, schedule.compute & runs[:, None], runs)
    replace(schedule, compute=compute).save(tmp_path / "apart.safetensors")
    finished = invoke("inspect", tmp_path / "apart.safetensors", "--plot", tmp_path / "apart.png")
    assert finished.code == 0, finished.err
    text = " ".join(finished.out.split())
    assert "passes apart: the unconditional one runs at 2 of 6 evaluations" in text
    assert text.count("derived") == 1 + 4
    assert open_picture(tmp_path / "apart.png").width > 1000


def test_a_family_of_learned_solvers_is_shown_in_whole_evaluations(invoke, tmp_path):
    once = l2c.LearnSettings(
        iterations=1, batch_size=1, num_examples=4, reference_steps=4, trials=1, branches=False
    )
    family = l2c.learn(tiny_dit(), solver="auto", budgets=(2, 3), per_computed=2, settings=once)
    family.save(tmp_path / "solvers.safetensors")
    shown = " ".join(invoke("inspect", tmp_path / "solvers.safetensors").out.split())
    assert "each with a learned solver of its own" in shown
    assert "of 6" in shown
    assert "such as --budget 8" in shown
    assert ": 4 evaluations" in invoke("inspect", tmp_path / "solvers.safetensors", "--budget", "2").out
