"""Stand-ins for a pipeline, learned end to end on the latents that it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from l2c.cache.predictors import Predictor, StandInPlan, plan_stand_ins
from l2c.cache.schedule import CacheSchedule
from l2c.errors import ConfigError, NumericsError
from l2c.layers import fingerprint
from l2c.pipelines.enable import transformers_of
from l2c.pipelines.handle import PipelineCache
from l2c.pipelines.trajectory import PipelineTrajectory, use_plan

WARM_UP = 5


@dataclass(frozen=True)
class FitSettings:
    """How the stand-ins of a pipeline are learned.

    Attributes:
        iterations: Steps of Adam; a run of the pipeline with gradients in each.
        num_runs: Runs, each with a seed and a condition, that are learned on.
        num_held_out: Further runs, which tell how good it is.
        depth: How many computed values a stand-in reads at most.
        learning_rate: Of Adam; it warms up over 5 steps and falls to 0 on a cosine.
        recompute: Compute layers again in the backward pass: a third more time, for a fraction of the memory.
        seed: Of the noise.
    """

    iterations: int = 60
    num_runs: int = 8
    num_held_out: int = 2
    depth: int = 3
    learning_rate: float = 4e-3
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.num_runs, self.num_held_out) < 1 or not 1 <= self.depth <= 5:
            raise ConfigError(
                "iterations, num_runs and num_held_out must be at least 1 and depth from 1 to 5, got "
                f"{self.iterations}, {self.num_runs}, {self.num_held_out} and {self.depth}"
            )


class _Coefficients(nn.Module):
    """Weights of all stand-ins: those to begin with, what all layers share, and each layer's own part.

    To begin with, they are those that the schedule has learned, or else a polynomial.
    """

    start: Tensor

    def __init__(self, schedule: CacheSchedule, depth: int, device: torch.device) -> None:
        super().__init__()
        levels = schedule.contract.run.log_snrs
        predictor = schedule.predictor
        if predictor.coefficients is None:
            distinct = depth > 1 and len(set(levels)) == len(levels)
            predictor = Predictor("taylor", depth - 1) if distinct else Predictor()
        self.plan = plan_stand_ins(schedule.compute, predictor, levels)
        start = torch.zeros(*schedule.compute.shape, predictor.depth)
        for (evaluation, layer), terms in self.plan.items():
            for index, (_, weight) in enumerate(terms):
                start[evaluation, layer, index] = weight
        self.register_buffer("start", start.to(device))
        self.shared = nn.Parameter(torch.zeros_like(self.start[:, :1]))
        self.own = nn.Parameter(torch.zeros_like(self.start))

    def forward(self) -> Tensor:
        """Weights (evaluations, layers, depth)."""
        return self.start + self.shared + self.own

    def plan_with(self, weights: Tensor) -> StandInPlan:
        """The plan with these weights."""
        return {
            (evaluation, layer): tuple(
                (source, weights[evaluation, layer, index]) for index, (source, _) in enumerate(terms)
            )
            for (evaluation, layer), terms in self.plan.items()
        }


class _Fit:
    """Runs to come close to, and the coefficients that are to do it."""

    def __init__(
        self,
        trajectory: PipelineTrajectory,
        schedule: CacheSchedule,
        conditions: Sequence[Mapping[str, Any]],
        settings: FitSettings,
        device: torch.device,
    ) -> None:
        self.trajectory, self.settings = trajectory, settings
        count = settings.num_held_out + settings.num_runs
        self.runs = [(conditions[i % len(conditions)], settings.seed + i) for i in range(count)]
        with torch.no_grad():
            self.targets = [trajectory.sample(condition, seed) for condition, seed in self.runs]
        self.coefficients = _Coefficients(schedule, settings.depth, device)
        self.optimizer = torch.optim.Adam(self.coefficients.parameters(), betas=(0.9, 0.99))

    def error(self, cache: PipelineCache, index: int) -> Tensor:
        """Mean square error of a run in units of its target's mean square, ()."""
        use_plan(cache, self.coefficients.plan_with(self.coefficients()))
        made, target = self.trajectory.sample(*self.runs[index]).float(), self.targets[index].float()
        return (made - target).square().mean() / target.square().mean()

    @torch.no_grad()
    def held_out_error(self, cache: PipelineCache) -> float:
        """Root mean square error over the runs that take no part in learning."""
        errors = [float(self.error(cache, index)) for index in range(self.settings.num_held_out)]
        return math.sqrt(sum(errors) / len(errors))

    def step(self, cache: PipelineCache, iteration: int) -> float:
        """One iteration; returns its root mean square error."""
        loss = self.error(cache, self.settings.num_held_out + iteration % self.settings.num_runs)
        value = loss.item()
        if not math.isfinite(value):
            raise NumericsError(f"the error is {value} at iteration {iteration}; use a lower learning rate")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        rise = min(1.0, (iteration + 1) / WARM_UP)
        fall = 0.5 * (1 + math.cos(math.pi * iteration / self.settings.iterations))
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * rise * fall
        self.optimizer.step()
        return math.sqrt(value)


def fit_predictor(
    pipe: Any,
    schedule: CacheSchedule,
    conditions: Sequence[Mapping[str, Any]],
    *,
    settings: FitSettings | None = None,
    on_progress: Callable[[int, float], None] | None = None,
    **call: Any,
) -> CacheSchedule:
    """Learns the stand-ins of a schedule for a pipeline, through its own run, on its own prompts.

    The target of a run is what the pipeline makes from the same noise with everything computed. The mask stays.
    Coefficients that the schedule has already learned are where learning begins, so that a few iterations repair it
    for a fine-tuned model or a LoRA.

    Args:
        pipe: A diffusers pipeline without a cache enabled, its weights frozen.
        schedule: Where to compute.
        conditions: What tells runs apart, by the pipeline's names: `{"prompt": "a cat"}`. They take turns.
        settings: Everything else that decides the result.
        on_progress: Called after every iteration with its number and its error.
        call: What the pipeline is called with besides, by name.

    Returns:
        The schedule with learned coefficients; its provenance has the errors on held-out runs before and after.

    Raises:
        ConfigError: If there is nothing to learn, or the pipeline cannot be learned on.
        NumericsError: If the error is not finite.
    """
    settings = settings or FitSettings()
    if schedule.compute.all():
        raise ConfigError("the schedule computes everything; a predictor needs layers that are reused")
    if not conditions:
        raise ConfigError("learning takes at least one prompt or label")
    model = next(iter(transformers_of(pipe).values()))
    fit = _Fit(
        PipelineTrajectory(pipe, call), schedule, conditions, settings, next(model.parameters()).device
    )
    base = replace(schedule, predictor=Predictor("linear", coefficients=fit.coefficients.start.cpu()))
    with fit.trajectory.cached(base, recompute=settings.recompute) as cache:
        before = fit.held_out_error(cache)
        for iteration in range(settings.iterations):
            error = fit.step(cache, iteration)
            if on_progress is not None:
                on_progress(iteration, error)
        after = fit.held_out_error(cache)
    return replace(
        schedule,
        predictor=Predictor("linear", coefficients=fit.coefficients().detach().cpu()),
        contract=replace(schedule.contract, fingerprint=fingerprint(model, schedule.layers)),
        provenance={
            **schedule.provenance,
            "predictor": "linear, learned through the pipeline on its final latents",
            "predictor_settings": asdict(settings),
            "held_out_error_before": round(before, 5),
            "held_out_error": round(after, 5),
            "drift": {"error": round(after, 6), "runs": settings.num_held_out},
        },
    )
