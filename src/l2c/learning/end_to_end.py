"""Learning how reused layers are stood in for, by what it does to the final picture: `fit_predictor`.

The coefficients of a linear predictor are learned by gradient descent through the whole sampled run of the frozen
model, with its own stand-ins, its own stored features and guidance, on the squared distance of the final picture
to a fine-step solution from the same noise. Fitting them to the features instead, layer by layer, leaves small
biases that pile up over layers and evaluations.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2c.cache.clock import Clock
from l2c.cache.predictors import Predictor, StandInPlan, plan_stand_ins
from l2c.cache.runtime import Compute, HardGates, attach
from l2c.cache.schedule import CacheSchedule, Contract
from l2c.errors import ConfigError, NumericsError
from l2c.layers import find_layers, fingerprint
from l2c.learning.learn import Progress
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class PredictorSettings:
    """How a predictor is learned.

    Attributes:
        iterations: Optimizer steps.
        batch_size: Pictures per step.
        num_pictures: Pictures whose fine-step solutions are computed beforehand; a quarter of them is held out.
        depth: How many computed values a stand-in reads at most.
        learning_rate: Of Adam; it warms up over 5 steps and falls to 0 on a cosine.
        reference_steps: Evaluations of the fine-step solution (DPM-Solver++, evenly spaced in log-SNR).
        bf16: Run the network in bfloat16 while learning; the solver and the coefficients stay in float32.
        recompute: Keep only the inputs of computed layers for the backward pass and compute the layers again in
            it: a third more time, for a fraction of the memory.
        seed: Of noise, labels and batches.
        time_limit_s: After so many seconds no further step is begun.
    """

    iterations: int = 150
    batch_size: int = 4
    num_pictures: int = 32
    depth: int = 3
    learning_rate: float = 4e-3
    reference_steps: int = 60
    bf16: bool = False
    recompute: bool = False
    seed: int = 0
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "reference_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.depth <= 5:
            raise ConfigError(f"depth must be from 1 to 5, got {self.depth}")
        if self.num_held_out < 1 or self.num_pictures - self.num_held_out < self.batch_size:
            raise ConfigError(
                f"num_pictures must leave at least one batch of {self.batch_size} when a quarter is held out, "
                f"got {self.num_pictures}"
            )

    @property
    def num_held_out(self) -> int:
        """Pictures that take no part in learning and tell how good it is."""
        return int(self.num_pictures * HELD_OUT_SHARE)


class _LearnedGates(HardGates):
    """Hard gates whose weights are tensors with a graph."""

    def __init__(self, plan: StandInPlan, num_evaluations: int, recompute: bool) -> None:
        super().__init__(plan, num_evaluations)
        self.recompute = recompute

    def output(self, clock: Clock, layer: int, compute: Compute) -> Tensor:
        """See `Gating.output`."""
        if not (self.recompute and torch.is_grad_enabled()):
            return super().output(clock, layer, compute)
        return super().output(clock, layer, lambda: checkpoint(compute, use_reentrant=False))


class _Fit:
    """A run whose stand-in coefficients are parameters: what all layers share, plus each layer's own part."""

    def __init__(self, sampler: Sampler, schedule: CacheSchedule, settings: PredictorSettings) -> None:
        self.sampler = sampler
        self.settings = settings
        self.table = schedule.layers
        self.compute = schedule.compute
        taylor = Predictor("taylor", settings.depth - 1) if settings.depth > 1 else Predictor()
        self.start_plan = plan_stand_ins(self.compute, taylor, sampler.run.log_snrs)
        start = torch.zeros(*self.compute.shape, settings.depth)
        for (evaluation, layer), terms in self.start_plan.items():
            for index, (_, weight) in enumerate(terms):
                start[evaluation, layer, index] = weight
        self.start = start.to(sampler.denoiser.device)
        self.shared = nn.Parameter(torch.zeros_like(self.start[:, :1]))
        self.own = nn.Parameter(torch.zeros_like(self.start))

    @property
    def coefficients(self) -> Tensor:
        """Weights (evaluations, layers, depth)."""
        return self.start + self.shared + self.own

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Final pictures (B, C, H, W) with the coefficients as they are, differentiable in them."""
        coefficients = self.coefficients
        plan: StandInPlan = {
            (evaluation, layer): tuple(
                (source, coefficients[evaluation, layer, index]) for index, (source, _) in enumerate(terms)
            )
            for (evaluation, layer), terms in self.start_plan.items()
        }
        gates = _LearnedGates(plan, len(self.compute), self.settings.recompute)
        with (
            attach(self.sampler.denoiser.model, self.table, gates),
            torch.autocast(noise.device.type, torch.bfloat16, enabled=self.settings.bf16),
        ):
            return self.sampler(noise, labels)


def fit_predictor(
    model: nn.Module,
    schedule: CacheSchedule,
    *,
    guidance: float = 1.5,
    settings: PredictorSettings | None = None,
    model_name: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> CacheSchedule:
    """Learns a linear predictor for the mask of a schedule, end to end on the final picture.

    Learning starts at the polynomial through the last `depth` computed values. The result is the schedule with
    the same mask and the learned coefficients; its provenance holds the errors of both on held-out pictures.
    Ctrl-C ends learning with the coefficients so far.

    Args:
        model: The frozen model.
        schedule: Where to compute; its own predictor is not used.
        guidance: Guidance scale of the run.
        settings: Everything else.
        model_name: Recorded in the schedule, for people.
        on_progress: Called after every step; loss and error are the root mean square error of the batch.

    Raises:
        ConfigError: If the schedule computes everything, so that nothing is stood in for.
        ContractError: If the schedule is for another model.
        NumericsError: If the error is not finite.
    """
    settings = settings or PredictorSettings()
    denoiser = Denoiser.of(model)
    table = find_layers(model)
    schedule.check_layers(table)
    if schedule.compute.all():
        raise ConfigError("the schedule computes everything; a predictor needs layers that are reused")
    run = schedule.contract.run
    sampler = Sampler(denoiser, run.solver, run.steps, run.spacing, Guidance(guidance))
    schedule.contract.check_run(sampler.run)
    generator = torch.Generator().manual_seed(settings.seed)
    noise = torch.randn((settings.num_pictures, *denoiser.sample_shape), generator=generator)
    labels = torch.randint(denoiser.num_classes, (settings.num_pictures,), generator=generator)
    noise, labels = noise.to(denoiser.device), labels.to(denoiser.device)
    started = time.monotonic()
    fine = Sampler(denoiser, "dpmsolver++", settings.reference_steps, "logsnr", Guidance(guidance))
    target = _in_batches(fine, noise, labels, 2 * settings.batch_size)

    fit = _Fit(sampler, schedule, settings)
    held_out, training = slice(0, settings.num_held_out), slice(settings.num_held_out, None)

    def held_out_error() -> float:
        pictures = _in_batches(fit.sample, noise[held_out], labels[held_out], 2 * settings.batch_size)
        return _rmse(pictures, target[held_out]).mean().item()

    before, done, interrupted = held_out_error(), 0, False
    optimizer = torch.optim.Adam([fit.shared, fit.own], lr=settings.learning_rate, betas=(0.9, 0.99))
    data = torch.utils.data.TensorDataset(noise[training], labels[training], target[training])
    try:
        for step, (x, y, wanted) in enumerate(_batches(data, settings, generator), start=1):
            rate = min(1.0, step / 5) * 0.5 * (1 + math.cos(math.pi * (step - 1) / settings.iterations))
            optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
            optimizer.zero_grad(set_to_none=True)
            error = (fit.sample(x, y) - wanted).square().mean()
            if not math.isfinite(error.item()):
                raise NumericsError(
                    f"the error is {error.item()} at step {step}; check the weights for NaN, lower the learning "
                    "rate, or learn in float32"
                )
            error.backward()
            optimizer.step()
            done, root = step, error.sqrt().item()
            elapsed = time.monotonic() - started
            if on_progress is not None:
                fraction = schedule.cost.fraction
                on_progress(Progress(step, settings.iterations, root, root, fraction, elapsed))
            if settings.time_limit_s is not None and elapsed > settings.time_limit_s:
                break
    except KeyboardInterrupt:
        interrupted = True
        logger.warning("interrupted after %d of %d steps", done, settings.iterations)
    after = held_out_error()
    return replace(
        schedule,
        predictor=Predictor("linear", coefficients=fit.coefficients.detach().cpu()),
        contract=Contract(sampler.run, model_name, fingerprint(model, table)),
        provenance={
            **schedule.provenance,
            "predictor": "linear, learned end to end on the final picture",
            "predictor_settings": asdict(settings),
            "predictor_steps": done,
            "predictor_seconds": round(time.monotonic() - started, 1),
            "held_out_error_before": round(before, 5),
            "held_out_error": round(after, 5),
            "interrupted": interrupted,
        },
    )


def _rmse(pictures: Tensor, target: Tensor) -> Tensor:
    """Root mean square error of each picture (B,)."""
    return (pictures - target).square().mean(dim=(1, 2, 3)).sqrt()


@torch.no_grad()
def _in_batches(
    sample: Callable[[Tensor, Tensor], Tensor], noise: Tensor, labels: Tensor, size: int
) -> Tensor:
    """Pictures of all rows, a batch at a time, without a graph."""
    parts = zip(torch.split(noise, size), torch.split(labels, size), strict=True)
    return torch.cat([sample(x, y) for x, y in parts])


def _batches(
    data: torch.utils.data.TensorDataset, settings: PredictorSettings, generator: torch.Generator
) -> torch.utils.data.DataLoader[tuple[Tensor, ...]]:
    """`settings.iterations` batches drawn at random."""
    sampler = torch.utils.data.RandomSampler(
        data, num_samples=settings.iterations * settings.batch_size, generator=generator
    )
    return torch.utils.data.DataLoader(data, batch_size=settings.batch_size, sampler=sampler)
