"""Metrics by name, and one from elsewhere."""

import math
import re

import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.evaluation import registry
from l2c.evaluation.metrics import psnr, rmse
from l2c.evaluation.registry import all_metrics, find_metric, register_metric, score_pairs
from l2c.scenes import draw_pictures, random_scenes
from l2c.testing import tiny_dit


@pytest.fixture
def largest(monkeypatch):
    """A metric that looks at the worst value of a picture."""
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    register_metric("largest", lambda ours, theirs: (ours - theirs).abs().flatten(1).amax(1), title="largest")


def test_a_registered_metric_scores_what_is_sampled(largest):
    model = tiny_dit(in_channels=4)
    full = l2c.sample(model, [1, 2, 3], steps=6)
    cached = l2c.sample(model, [1, 2, 3], schedule=l2c.methods.interval(model, steps=6))
    scores = score_pairs(cached, full, ("largest", "rmse"), batch_size=2)
    assert scores["largest"] == pytest.approx((cached - full).abs().amax((1, 2, 3)).tolist())
    assert scores["rmse"] == pytest.approx(rmse(cached, full).tolist())
    assert all(largest > error for largest, error in zip(*scores.values(), strict=True))


def test_equal_pictures_score_best():
    images = torch.rand(2, 3, 16, 16)
    assert score_pairs(images, images, [m.name for m in all_metrics().values() if not m.of_prompts]) == {
        "rmse": [0.0, 0.0],
        "psnr": [math.inf] * 2,
        "ssim": pytest.approx([1.0, 1.0]),
    }


def test_metrics_say_what_they_are(largest):
    found = all_metrics()
    assert list(found) == ["rmse", "psnr", "ssim", "adherence", "largest"]
    assert (found["psnr"].heading, found["largest"].heading) == ("PSNR, dB", "largest")
    assert [metric.name for metric in found.values() if metric.higher_is_better] == [
        "psnr",
        "ssim",
        "adherence",
    ]
    assert [metric.name for metric in found.values() if not metric.to_full] == ["rmse"]
    assert [metric.name for metric in found.values() if metric.of_latents] == ["rmse"]


def test_metrics_are_checked(largest):
    register_metric("whole", lambda ours, theirs: (ours - theirs).abs().max())
    images = torch.zeros(2, 3, 4, 4)
    for wrong, message in (
        (
            lambda: find_metric("largst"),
            "unknown metric 'largst'; did you mean 'largest'? choose one of rmse, psnr",
        ),
        (
            lambda: register_metric("psnr", psnr),
            "there is a metric 'psnr' already; give the new one another name",
        ),
        (lambda: score_pairs(images, images[:1], ["rmse"]), "equally shaped images"),
        (
            lambda: score_pairs(images, images, ["whole"]),
            "the metric 'whole' must return one value per picture, (2,), got ()",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            wrong()


def test_errors_of_latents_are_in_their_unit():
    targets = torch.full((1, 4, 4, 4), 2.0)
    assert score_pairs(targets * 1.5, targets, ["rmse"], unit="relative") == {"rmse": [0.5]}


def test_adherence_is_the_share_of_objects_as_told():
    scenes = random_scenes(5, 12)
    pictures, prompts = 2 * draw_pictures(scenes, seed=5) - 1, [scene.prompt() for scene in scenes]
    drawn, shifted = (
        score_pairs(pictures, pictures, ["adherence"], prompts=texts)["adherence"]
        for texts in (prompts, prompts[1:] + prompts[:1])
    )
    assert sum(drawn) > 0.9 * len(scenes)
    assert sum(shifted) < 0.5 * len(scenes)
