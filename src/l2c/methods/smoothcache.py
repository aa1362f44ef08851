"""SmoothCache: reuse where calibration found that a kind of layer changes little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from l2c.cache.cached_model import attach
from l2c.cache.clock import Clock
from l2c.cache.policy import BoundPolicy, Compute, LayerPolicy
from l2c.errors import ConfigError
from l2c.layers import LayerTable
from l2c.methods.base import Method, Target
from l2c.methods.budget import threshold_for
from l2c.sampling.sampler import seeded_noise
from l2c.schedule.schedule import CacheSchedule

LOOKAHEAD = 3
CALIBRATION_SEED = 7_000_000

Errors = Mapping[str, Tensor]
"""By kind of layer, (lookahead, evaluations): at [j, i] how far outputs at evaluation i are from those at i + j + 1."""


def calibrate(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    spacing: str = "linspace",
    guidance: float = 1.5,
    num_images: int = 10,
    lookahead: int = LOOKAHEAD,
    seed: int = CALIBRATION_SEED,
) -> dict[str, Tensor]:
    """Samples pictures with everything computed and measures how fast layers change.

    The error is the relative L1 distance |earlier - later| / |later| of a layer's output over the whole batch, the
    mean over the layers of a kind.

    Args:
        model: A model from `load_model`, or any with a layer adapter.
        solver: Solver name.
        steps: Number of model evaluations.
        spacing: Spacing of the evaluations.
        guidance: Guidance scale.
        num_images: Pictures of the calibration; the authors use 10.
        lookahead: Largest distance of evaluations that is looked at.
        seed: Of the first picture.

    Returns:
        By kind of layer, errors (lookahead, evaluations), infinite where the later evaluation does not exist.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Liu et al., arXiv 2411.10510, section 2.2, and the released calibration.
    """
    if num_images < 1 or lookahead < 1:
        raise ConfigError(
            f"calibration takes at least one picture and looks ahead at least 1, got {num_images} and {lookahead}"
        )
    target = Target.of(model, solver, steps, spacing, guidance=guidance)
    denoiser = target.sampler.denoiser
    noise = seeded_noise(range(seed, seed + num_images), denoiser.sample_shape).to(denoiser.device)
    labels = torch.arange(num_images, device=denoiser.device) % denoiser.num_classes
    recorder = _Recorder(target.num_evaluations, target.layers, lookahead)
    with torch.no_grad(), attach(model, target.layers, recorder):
        target.sampler(noise, labels)
    return recorder.errors


def smoothcache(
    model: nn.Module,
    solver: str = "ddim",
    steps: int = 50,
    *,
    spacing: str = "linspace",
    guidance: float = 1.5,
    threshold: float | None = 0.18,
    budget: float | None = None,
    prepared: Errors | None = None,
    num_images: int = 10,
    lookahead: int = LOOKAHEAD,
    seed: int = CALIBRATION_SEED,
) -> CacheSchedule:
    """Reuses a kind of layer for as long as its calibrated error stays within a threshold.

    All attention layers share one pattern, all MLPs another. From each computed evaluation on, the longest stretch
    (at most `lookahead`) whose end is within the threshold is reused; the first and the last evaluation compute.

    What differs: outputs are measured and stored before the adaLN gate. The authors average over the pictures of
    the calibration in one batch, as here.

    Args:
        model: A model from `load_model`, or any with a layer adapter.
        solver: Solver name.
        steps: Number of model evaluations.
        spacing: Spacing of the evaluations.
        guidance: Guidance scale.
        threshold: Largest error that is accepted; the authors use 0.08 and 0.18 for DiT-XL/2 at 50 DDIM steps.
        budget: Instead of a threshold, the share of the run's MACs to come close to.
        prepared: Errors from `calibrate`; by default they are measured.
        num_images: Pictures of the calibration.
        lookahead: Longest stretch that is reused.
        seed: Of the first picture of the calibration.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Liu et al., arXiv 2411.10510, section 2.2, and the released scan of the errors.
    """
    if prepared is None:
        prepared = calibrate(
            model,
            solver,
            steps,
            spacing=spacing,
            guidance=guidance,
            num_images=num_images,
            lookahead=lookahead,
            seed=seed,
        )
    errors = prepared
    target = Target.of(model, solver, steps, spacing, guidance=guidance)

    def at(limit: float) -> CacheSchedule:
        compute = target.all_computed()
        for index, layer in enumerate(target.layers.layers):
            compute[:, index] = scan(errors[layer.kind], limit)
        return CacheSchedule(
            compute,
            target.layers,
            target.contract,
            provenance={"method": "smoothcache", "threshold": limit, "lookahead": lookahead},
        )

    if budget is not None:
        values = torch.cat([table.flatten() for table in errors.values()])
        return threshold_for(at, values[values.isfinite()].tolist(), budget)
    if threshold is None or threshold < 0:
        raise ConfigError(f"smoothcache needs a threshold from 0 up, or a budget, got {threshold}")
    return at(threshold)


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


@dataclass
class _Recorder:
    """A `ReusePolicy` that computes everything and measures how outputs change."""

    num_evaluations: int
    table: LayerTable
    lookahead: int
    errors: dict[str, Tensor] = field(init=False)
    _past: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = dict.fromkeys(layer.kind for layer in self.table.layers)
        self.errors = {kind: torch.zeros(self.lookahead, self.num_evaluations) for kind in kinds}
        for table in self.errors.values():
            for j in range(self.lookahead):
                table[j, max(0, self.num_evaluations - j - 1) :] = torch.inf

    def layer_policy(self, clock: Clock, layer: int) -> LayerPolicy:
        """See `ReusePolicy.layer_policy`."""
        return BoundPolicy(self, clock, layer)

    def computes(self, clock: Clock, layer: int) -> bool:
        """Always."""
        return True

    def output(self, clock: Clock, layer: int, compute: Compute) -> Tensor:
        """Output of a layer, compared with those before it."""
        fresh: Tensor = compute()
        kind = self.table.layers[layer].kind
        size = sum(other.kind == kind for other in self.table.layers)
        past = self._past.setdefault(layer, [])
        scale = fresh.float().abs().sum()
        for j, earlier in enumerate(past):
            error = (earlier.float() - fresh.float()).abs().sum() / scale
            self.errors[kind][j, clock.evaluation - j - 1] += error.cpu() / size
        past.insert(0, fresh)
        del past[self.lookahead :]
        return fresh

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
