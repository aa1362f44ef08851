import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

import l2c
from l2c.report.figures import COLORS, heat_map
from l2c.testing import tiny_dit, tiny_uvit


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def area(image: np.ndarray, color: str) -> int:
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image.astype(int) - rgb).max(axis=-1) < 3).sum())


def test_kinds_have_colours_of_their_own_by_what_is_computed():
    every, half = (
        pixels(heat_map(l2c.methods.interval(tiny_dit(), steps=8, every=n).summary())) for n in (1, 2)
    )
    for kind in ("attention", "mlp"):
        assert area(half, COLORS[kind]) == pytest.approx(area(every, COLORS[kind]) / 2, rel=0.1)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver-singlestep"])
def test_scores_widen_the_figure(solver):
    from dataclasses import replace

    schedule = l2c.methods.interval(tiny_uvit(), solver=solver, steps=8)
    plain = pixels(heat_map(schedule.summary()))
    scores = torch.rand(schedule.compute.shape)
    scores[0] = torch.nan
    scored = pixels(heat_map(replace(schedule, scores=scores, provenance={"threshold": 0.5}).summary()))
    assert scored.shape[1] > 1.5 * plain.shape[1]


@pytest.mark.parametrize("steps", [2, 200])
def test_any_number_of_evaluations_can_be_drawn(steps):
    assert heat_map(l2c.methods.interval(tiny_dit(), steps=steps).summary()).startswith(b"\x89PNG")


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    heat_map(l2c.methods.interval(tiny_dit(), steps=4).summary())
    assert dict(mpl.rcParams) == before


def passes_apart():
    """Every second evaluation of eight computes, and at half of those the unconditional pass runs."""
    from dataclasses import replace

    from l2c.schedule.branches import join_branches

    schedule = l2c.methods.interval(tiny_dit(), steps=8)
    runs = torch.zeros(8, dtype=torch.bool)
    runs[::4] = True
    return replace(schedule, compute=join_branches(schedule.compute, schedule.compute & runs[:, None], runs))


def test_passes_of_guidance_have_panels_of_their_own():
    apart = passes_apart()
    alike = pixels(heat_map(l2c.methods.interval(tiny_dit(), steps=8).summary()))
    both = pixels(heat_map(apart.summary()))
    assert both.shape[1] > 1.5 * alike.shape[1]
    for kind in ("attention", "mlp"):  # four evaluations of the one pass and two of the other
        assert area(both, COLORS[kind]) == pytest.approx(1.5 * area(alike, COLORS[kind]), rel=0.1)


def test_passes_of_guidance_have_panels_of_their_own_in_pages():
    from l2c.report import svg

    alike = svg.heat_map(l2c.methods.interval(tiny_dit(), steps=8).summary(), "alike")
    both = svg.heat_map(passes_apart().summary(), "apart")
    assert [page.count("<path") for page in (alike, both)] == [2, 4]
    assert [page.count("v1h-1z") for page in (alike, both)] == [4 * 6, 4 * 6 + 2 * 6]
