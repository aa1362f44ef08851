"""The figures of a variant's pictures, per picture and per set, as plain data for its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.bootstrap import ConfidenceInterval, statistic_confidence_interval
from l2c.compare.config import CompareConfig
from l2c.compare.samples import Drawn
from l2c.evaluation.distribution import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from l2c.evaluation.features import FeatureExtractor, extract, make_extractor, to_bytes
from l2c.evaluation.lpips import Lpips
from l2c.evaluation.real_images import RealImages
from l2c.evaluation.registry import all_metrics, score_pairs
from l2c.learning.data import load_images

_BATCH = 16


class Scorer:
    """Computes the metrics of a comparison.

    Args:
        config: Which ones, and where their weights and images are.
        unit: Of errors, see `l2c.hosts.base.errors`.
        prompts: Of the pictures, if they have any.
        image_size: Height and width of the pictures.
        work: Folder where statistics of the real images are kept.
        device: Where to compute.

    Raises:
        ConfigError: If a package is missing.
        CheckpointError: If weights cannot be read.
        DataError: If the real images cannot be used.
    """

    def __init__(
        self,
        config: CompareConfig,
        unit: str,
        prompts: Sequence[str] | None,
        image_size: int,
        work: Path,
        device: str,
    ) -> None:
        self._metrics, self._unit, self._prompts = config.metrics, unit, prompts
        self._lpips: Lpips | None = None
        if "lpips" in config.metrics:
            self._lpips = Lpips(config.lpips["network"], config.lpips["heads"], device)
        self._extractor: FeatureExtractor | None = None
        if config.distributional:
            assert config.real_images is not None
            self._extractor = make_extractor(config.features, device)
            stored = work / "real-images.safetensors"
            if not stored.is_file():
                data = load_images(config.real_images, image_size)
                RealImages.of(self._extractor, data, config.num_real_images).save(stored)
            self._real = RealImages.load(stored, self._extractor.name)

    def score(self, made: Drawn, full: Drawn, reference: Drawn) -> dict[str, Any]:
        """All metrics of what a variant makes.

        Args:
            made: By the variant.
            full: The same with everything computed.
            reference: The same by the fine run.

        Returns:
            By name of the metric, a figure per picture (None where it is infinite), or for metrics of the set a value
            with its confidence interval. Where pictures were decoded, `latent-rmse` is the error of the latents.
        """
        images, known = made.pictures, all_metrics()
        scores: dict[str, Any] = {}
        for name in self._metrics:
            if name in known:
                target = full.pictures if known[name].to_full else reference.pictures
                found = score_pairs(images, target, [name], unit=self._unit, prompts=self._prompts)[name]
                scores[name] = _finite(found)
            elif self._lpips is not None and name == "lpips":
                pairs = zip(torch.split(images, _BATCH), torch.split(full.pictures, _BATCH), strict=True)
                scores[name] = [value for pair in pairs for value in self._lpips(*pair).tolist()]
        if "rmse" in self._metrics and made.latents is not None and reference.latents is not None:
            found = score_pairs(made.latents, reference.latents, ["rmse"], unit="relative")["rmse"]
            scores["latent-rmse"] = _finite(found)
        if self._extractor is not None:
            scores.update(self._score_set(images))
        return scores

    def _score_set(self, images: Tensor) -> dict[str, Any]:
        assert self._extractor is not None
        features, logits = extract(self._extractor, torch.split(to_bytes(images), _BATCH))
        real, gaussian = self._real.features, self._real.gaussian
        figures = {
            "fd": (self._extractor.distance_name, lambda rows: frechet_distance(features[rows], gaussian)),
            "kd": ("kernel distance", lambda rows: kernel_distance(features[rows], real)),
            "is": ("Inception score", lambda rows: inception_score(logits[rows])),
        }
        scores: dict[str, Any] = {}
        for name, (title, figure) in figures.items():
            if name in self._metrics:
                interval = statistic_confidence_interval(len(images), figure)
                scores[name] = {"title": title, **asdict(interval)}
        if "precision-recall" in self._metrics:
            for name, value in zip(("precision", "recall"), precision_recall(features, real), strict=True):
                spread = 1.96 * math.sqrt(value * (1 - value) / len(images))  # of a share
                interval = ConfidenceInterval(value, max(0.0, value - spread), min(1.0, value + spread))
                scores[name] = {"title": name, **asdict(interval)}
        return scores


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
