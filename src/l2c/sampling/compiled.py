"""`CompiledSampler`: a sampler and a schedule, ready to be run again and again at full speed."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from l2c.engine.engine import MODES, Engine
from l2c.engine.job import Job
from l2c.engine.programs import has_program
from l2c.errors import known
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.linear import solver_table
from l2c.sampling.lock import model_lock
from l2c.sampling.noise_schedule import ForwardProcess
from l2c.sampling.solvers import make_solver
from l2c.schedule.branches import difference_table, of_layers, passes_of
from l2c.schedule.contract import Run
from l2c.schedule.schedule import CacheSchedule

ENGINES = ("auto", *MODES)

logger = logging.getLogger(__name__)

_engines: weakref.WeakKeyDictionary[nn.Module, dict[str, Engine]] = weakref.WeakKeyDictionary()


class CompiledSampler:
    """Samples like the `Sampler` that it was made from, with what a static schedule makes superfluous left out.

    It shares compiled and captured work with all others of the same model.

    Args:
        denoiser: The model.
        guidance: Classifier-free guidance; another scale needs nothing new.
        run: What the solver does.
        schedule: What to compute and what to reuse; None computes everything.
        mode: `graph` or `compile`.
    """

    def __init__(
        self, denoiser: Denoiser, guidance: Guidance, run: Run, schedule: CacheSchedule | None, mode: str
    ) -> None:
        self.denoiser, self.guidance = denoiser, guidance
        self.engine = engine_of(denoiser.model, mode)
        guided = guidance.scale != 1
        plan = {} if schedule is None else schedule.plan
        apart: dict[str, Any] = {}
        if schedule is not None and schedule.has_branches:
            count = len(schedule.layers)
            if guided:
                apart = {
                    "passes": passes_of(schedule.compute, count),
                    "differences": difference_table(plan, schedule.num_evaluations, count),
                    "num_layers": count,
                }
            plan = of_layers(plan, count, 2 if guided else 1)
        self.job = Job(
            timesteps=tuple(t + denoiser.first_timestep for t in run.timesteps),
            solver=_table(run, denoiser.noise_schedule),
            forecasts=plan,
            null_class=denoiser.null_class if guided else None,
            split=guided and guidance.mode == "split",
            combine=guidance.combine if guided else None,
            combine_key=guidance.channels,
            **apart,
        )

    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Samples one batch; the first at a batch size compiles, which takes seconds.

        Args:
            noise: Unit normal (B, C, H, W), float32, on the model's device.
            labels: Class labels (B,), int64, there too.

        Returns:
            Samples (B, C, H, W), float32, unclamped.
        """
        with model_lock(self.denoiser.model):
            return self.engine.run(self.job, noise, labels, self.guidance.scale)


def resolve_engine(engine: str, denoiser: Denoiser) -> str:
    """The engine that a name stands for.

    Args:
        engine: `graph`, `compile`, `eager`, or `auto`: graphs for l2c's own models on CUDA devices, eager elsewhere.
        denoiser: The model.

    Raises:
        ConfigError: If there is no such engine.
    """
    known("engine", engine, ENGINES)
    if engine != "auto":
        return engine
    return "graph" if denoiser.device.type == "cuda" and has_program(denoiser.model) else "eager"


def log_engine(mode: str, engine: str, denoiser: Denoiser, reason: str = "") -> None:
    """Says in one line which engine runs, and why.

    Args:
        mode: The engine that runs.
        engine: What was asked for.
        denoiser: The model.
        reason: Why, where it is neither what was asked for nor the model and its device.
    """
    model = type(denoiser.model).__name__
    known = (
        f"{model} on {denoiser.device}"
        if has_program(denoiser.model)
        else f"no engine has a program for {model}"
    )
    logger.info("engine: %s (%s)", mode, reason or (known if engine == "auto" else "asked for"))


@contextmanager
def keep_all_runs(model: nn.Module, modes: Iterable[str]) -> Iterator[None]:
    """Lifts the memory limit of a model's engines, since a run that is dropped would be captured again when timed."""
    engines = [engine_of(model, mode) for mode in modes if mode != "eager"]
    limits = [engine.memory_limit for engine in engines]
    for engine in engines:
        engine.memory_limit = None
    try:
        yield
    finally:
        for engine, limit in zip(engines, limits, strict=True):
            engine.memory_limit = limit


def engine_of(model: nn.Module, mode: str) -> Engine:
    """The engine of a model, made on first use and kept as long as the model."""
    engines = _engines.setdefault(model, {})
    if mode not in engines:
        engines[mode] = Engine(model, mode)
    return engines[mode]


def release_engines(model: nn.Module) -> None:
    """Frees everything that was compiled and captured for a model."""
    _engines.pop(model, None)


@lru_cache(maxsize=32)
def _table(run: Run, noise_schedule: ForwardProcess) -> Tensor:
    if run.weights is not None:
        return torch.tensor(run.weights)
    return solver_table(make_solver(run.solver, run.steps, run.spacing, noise_schedule))
