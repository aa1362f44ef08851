"""SmoothCache: reuse where calibration found that a kind of layer changes little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from l2c.cache.clock import Clock
from l2c.cache.policy import Compute, ReusePolicy
from l2c.cache.values import Value
from l2c.documents import Count, Real, check_value
from l2c.hosts.targets import host_of
from l2c.layers import LayerTable
from l2c.methods.base import Method, all_computed
from l2c.methods.budget import threshold_for
from l2c.schedule.schedule import CacheSchedule

LOOKAHEAD = 3
CALIBRATION_SEED = 7_000_000

Errors = Mapping[str, Tensor]
"""By kind of layer, (lookahead, evaluations): at [j, i] how far outputs at evaluation i are from those at i + j + 1."""


def calibrate(
    target: Any, *, num_images: int = 10, lookahead: int = LOOKAHEAD, seed: int = CALIBRATION_SEED, **run: Any
) -> dict[str, Tensor]:
    """Samples pictures with everything computed and measures how fast layers change.

    The error is the relative L1 distance |earlier - later| / |later| of a layer's output over the whole batch, the
    mean over the layers of a kind, and over runs where pictures are made one by one.

    Args:
        target: A model, a diffusers pipeline, or a host.
        num_images: Pictures of the calibration; the authors use 10.
        lookahead: Largest distance of evaluations that is looked at.
        seed: Of the first picture.
        run: How the target is sampled, see `l2c.learn`.

    Returns:
        By kind of layer, errors (lookahead, evaluations), infinite where the later evaluation does not exist.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Liu et al., arXiv 2411.10510, section 2.2, and the released calibration.
    """
    check_value("num_images", num_images, Count)
    check_value("lookahead", lookahead, Count)
    host = host_of(target, calibrate, **run)
    recorder = _Recorder(len(host.run.timesteps), host.table, lookahead)
    with torch.no_grad(), host.attach(recorder):
        host.sample(host.seeded(range(seed, seed + num_images)))
    return recorder.errors()


def smoothcache(
    target: Any,
    *,
    threshold: float | None = 0.18,
    budget: float | None = None,
    prepared: Errors | None = None,
    num_images: int = 10,
    lookahead: int = LOOKAHEAD,
    seed: int = CALIBRATION_SEED,
    **run: Any,
) -> CacheSchedule:
    """Reuses a kind of layer for as long as its calibrated error stays within a threshold.

    All attention layers share one pattern, all MLPs another. From each computed evaluation on, the longest stretch
    (at most `lookahead`) whose end is within the threshold is reused; the first and the last evaluation compute.

    What differs: outputs are measured and stored before the adaLN gate. The authors average over the pictures of
    the calibration in one batch, as here for a model.

    Args:
        target: A model, a diffusers pipeline, or a host.
        threshold: Largest error that is accepted; the authors use 0.08 and 0.18 for DiT-XL/2 at 50 DDIM steps.
        budget: Instead of a threshold, the share of the run's MACs to come close to.
        prepared: Errors from `calibrate`; by default they are measured.
        num_images: Pictures of the calibration.
        lookahead: Longest stretch that is reused.
        seed: Of the first picture of the calibration.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Liu et al., arXiv 2411.10510, section 2.2, and the released scan of the errors.
    """
    host = host_of(target, smoothcache, **run)
    errors = prepared
    if errors is None:
        errors = calibrate(host, num_images=num_images, lookahead=lookahead, seed=seed)

    def at(limit: float) -> CacheSchedule:
        compute = all_computed(host)
        for index, layer in enumerate(host.table.layers):
            compute[:, index] = scan(errors[layer.kind], limit)
        found = {"method": "smoothcache", "threshold": limit, "lookahead": lookahead, **host.provenance}
        return CacheSchedule(compute, host.table, host.contract(), provenance=found)

    if budget is not None:
        values = torch.cat([table.flatten() for table in errors.values()])
        return threshold_for(at, values[values.isfinite()].tolist(), budget)
    limit: float = check_value(
        "threshold, where there is no budget,", threshold, Annotated[Real, Field(ge=0)]
    )
    return at(limit)


def scan(errors: Tensor, threshold: float) -> Tensor:
    """Evaluations (evaluations,), bool, that compute, for errors (lookahead, evaluations).

    >>> scan(torch.tensor([[0.1, 0.1, 0.3, 0.1, 9.0], [0.2, 0.4, 0.4, 9.0, 9.0]]), threshold=0.2).int().tolist()
    [1, 0, 0, 1, 1]
    """
    count = errors.shape[1]
    compute = torch.ones(count, dtype=torch.bool)
    evaluation = 0
    while evaluation < count:
        within = [j for j in range(len(errors)) if errors[j, evaluation] <= threshold]
        reach = within[-1] + 1 if within else 0
        compute[evaluation + 1 : evaluation + 1 + reach] = False
        evaluation += reach + 1
    compute[-1] = True
    return compute


class _Recorder(ReusePolicy):
    """Computes everything and measures how outputs change."""

    def __init__(self, num_evaluations: int, table: LayerTable, lookahead: int) -> None:
        self.num_evaluations, self._table, self._lookahead = num_evaluations, table, lookahead
        kinds = dict.fromkeys(layer.kind for layer in table.layers)
        self._sums = {kind: torch.zeros(lookahead, num_evaluations) for kind in kinds}
        self._counts = {kind: torch.zeros(lookahead, num_evaluations) for kind in kinds}
        self._past: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}

    def output(self, clock: Clock, layer: int, compute: Compute) -> Value:
        """Output of a layer, compared with those before it."""
        value: Value = compute()
        parts = (value,) if isinstance(value, Tensor) else value
        fresh = torch.cat([part.float().flatten() for part in parts if part is not None])
        kind, evaluation = self._table.layers[layer].kind, clock.evaluation
        past = self._past.setdefault((clock.branch, layer), [])
        for at, earlier in past:
            distance = evaluation - at
            if 1 <= distance <= self._lookahead and earlier.shape == fresh.shape:
                error = (earlier - fresh).abs().sum() / fresh.abs().sum()
                self._sums[kind][distance - 1, at] += error.cpu()
                self._counts[kind][distance - 1, at] += 1
        past.insert(0, (evaluation, fresh))
        del past[self._lookahead :]
        return value

    def errors(self) -> dict[str, Tensor]:
        """Mean errors (lookahead, evaluations) by kind, infinite where there is none."""
        return {
            kind: torch.where(count > 0, self._sums[kind] / count.clamp(min=1), torch.inf)
            for kind, count in self._counts.items()
        }

    def clear(self) -> None:
        """See `ReusePolicy.clear`."""
        self._past.clear()


METHOD = Method(
    "smoothcache",
    "SmoothCache",
    smoothcache,
    "arXiv 2411.10510",
    published={"threshold": 0.18},
    prepare=calibrate,
    prepare_settings=("num_images", "lookahead", "seed"),
)
