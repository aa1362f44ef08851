"""Metrics of single pictures by name: those of the package, and those that are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.documents import Names, check_value
from l2c.errors import ConfigError, check_as_many, check_new, known
from l2c.evaluation.metrics import adherence, check_pairs, psnr, rmse, ssim


@dataclass(frozen=True)
class PairedMetric:
    """A metric of single pictures and what they are compared with.

    Attributes:
        name: In configurations and records: `psnr`.
        function: (images, targets), both (B, C, H, W) in [-1, 1] -> (B,).
        title: For people.
        unit: Of its values; empty where they have none.
        higher_is_better: Whether closer pictures have a larger value.
        of_latents: Whether it makes sense for latents, too; it then takes the keyword `unit`, one of `UNITS`.
        to_full: Whether the target is the same run with everything computed, and not the reference.
        of_prompts: Whether it scores pictures against their prompts: the function is (images, prompts) -> (B,).
    """

    name: str
    function: Callable[..., Tensor]
    title: str
    unit: str = ""
    higher_is_better: bool = False
    of_latents: bool = False
    to_full: bool = True
    of_prompts: bool = False

    @property
    def heading(self) -> str:
        """Title and unit: `PSNR, dB`."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


_METRICS: dict[str, PairedMetric] = {}


def register_metric(
    name: str,
    function: Callable[..., Tensor],
    *,
    title: str = "",
    unit: str = "",
    higher_is_better: bool = False,
    of_latents: bool = False,
    to_full: bool = True,
    of_prompts: bool = False,
) -> None:
    """Adds a metric of single pictures.

    Args:
        name: In configurations and records.
        function: (images, targets), both (B, C, H, W) in [-1, 1] -> (B,).
        title: For people; the name by default.
        unit: Of its values.
        higher_is_better: Whether closer pictures have a larger value.
        of_latents: Whether it makes sense for latents, too; it then takes the keyword `unit`, one of `UNITS`.
        to_full: Whether the target is the same run with everything computed, and not the reference.
        of_prompts: Whether it scores pictures against their prompts: the function is (images, prompts) -> (B,).

    Raises:
        ConfigError: If there is a metric of that name.
    """
    check_new("metric", name, _METRICS)
    _METRICS[name] = PairedMetric(
        name, function, title or name, unit, higher_is_better, of_latents, to_full, of_prompts
    )


def all_metrics() -> Mapping[str, PairedMetric]:
    """Every registered metric by its name, in the order in which they came.

    >>> [metric.heading for metric in all_metrics().values()][:3]
    ['error', 'PSNR, dB', 'SSIM']
    """
    return dict(_METRICS)


def find_metric(name: str) -> PairedMetric:
    """The metric of that name.

    Raises:
        ConfigError: If there is none; the message names the nearest.
    """
    return _METRICS[known("metric", name, _METRICS, ", or add it with l2c.register_metric")]


@torch.no_grad()
def score_pairs(
    images: Tensor,
    targets: Tensor,
    names: Iterable[str],
    *,
    unit: str = "absolute",
    prompts: Sequence[str] | None = None,
    batch_size: int = 16,
) -> dict[str, list[float]]:
    """Metrics of pictures, one value each.

    Args:
        images: (B, C, H, W) in [-1, 1].
        targets: What they are compared with, of the same shape.
        names: Of registered metrics.
        unit: Of errors, see `rmse`.
        prompts: Of the pictures, for metrics of prompts.
        batch_size: Pictures that a metric is given at a time.

    Returns:
        A value per picture for each name; infinite where a metric is.

    Raises:
        ConfigError: If a metric is unknown, the shapes differ, there are no prompts for a metric of them, or a metric
            does not return a value per picture.

    >>> import torch
    >>> score_pairs(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), ["rmse"])
    {'rmse': [1.0, 1.0]}
    """
    check_pairs(images, targets)
    scores: dict[str, list[float]] = {}
    for metric in map(find_metric, check_value("names", names, Names)):
        options = {"unit": unit} if metric.of_latents else {}
        values: list[float] = []
        if metric.of_prompts:
            check_as_many("prompts", prompts or (), f"pictures that '{metric.name}' scores", images)
        for begin in range(0, len(images), batch_size):
            rows = slice(begin, begin + batch_size)
            ours = images[rows]
            against = prompts[rows] if metric.of_prompts and prompts is not None else targets[rows]
            found = metric.function(ours, against, **options)
            if tuple(found.shape) != (len(ours),):
                raise ConfigError(
                    f"the metric '{metric.name}' must return one value per picture, {(len(ours),)}, got "
                    f"{tuple(found.shape)}"
                )
            values += [float(value) for value in found.tolist()]
        scores[metric.name] = values
    return scores


register_metric("rmse", rmse, title="error", of_latents=True, to_full=False)
register_metric("psnr", psnr, title="PSNR", unit="dB", higher_is_better=True)
register_metric("ssim", ssim, title="SSIM", higher_is_better=True)
register_metric("adherence", adherence, title="objects as told", higher_is_better=True, of_prompts=True)
