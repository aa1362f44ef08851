"""Stand-ins for a pipeline, learned end to end on the latents that it ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from l2c.cache.schedule import CacheSchedule, Contract, Run
from l2c.errors import ConfigError, NumericsError
from l2c.layers import LayerTable, find_layers, fingerprint
from l2c.learning.checkpoint import digest
from l2c.learning.coefficients import Coefficients
from l2c.learning.pictures import FINE_SOLVER
from l2c.learning.session import OnProgress, Progress, Session
from l2c.learning.task import TaskSettings, rate_at
from l2c.learning.trainer import Outcome, Subject, Trainer
from l2c.pipelines.enable import transformers_of
from l2c.pipelines.handle import PipelineCache
from l2c.pipelines.trajectory import PipelineTrajectory, frozen, use_plan


@dataclass(frozen=True)
class FitSettings(TaskSettings):
    """How a schedule for a pipeline is learned.

    Attributes:
        batch_size: Runs of the pipeline per step, one after the other.
        num_runs: Runs, each with a seed and a condition, that are learned on.
        num_held_out: Further runs, which tell how good it is.
        depth: How many computed values a stand-in reads at most.
        learning_rate: Of Adam; it warms up over 5 steps and falls to 0 on a cosine.
        reference_steps: Steps of the runs to come close to, under the same scheduler, with everything computed; None
            takes the call's own. More of them let a schedule correct the solver, too; that is for schedulers which
            draw no noise.
        reference_solver: `dpmsolver++3`: those runs are made by DPM-Solver++(3M), evenly spaced in log-SNR, as those
            of native learning are, which comes closer to the exact solution in as many steps; None takes the
            pipeline's own scheduler.
        trials: Masks that are judged for a budget, at most.
        trial_runs: Of the runs that are learned on, those that each of them makes to be judged.
        recompute: Compute layers again in the backward pass: a third more time, for a fraction of the memory.
    """

    batch_size: int = 1
    num_runs: int = 8
    num_held_out: int = 2
    depth: int = 3
    learning_rate: float = 4e-3
    reference_steps: int | None = None
    reference_solver: str | None = None
    trials: int = 24
    trial_runs: int = 2
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_runs", "num_held_out", "reference_steps", "trials", "trial_runs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 1 <= self.depth <= 5:
            raise ConfigError(f"depth must be from 1 to 5, got {self.depth}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"the learning rate must be more than 0, got {self.learning_rate}")
        if self.reference_solver not in (None, FINE_SOLVER[0]):
            raise ConfigError(
                f"reference_solver is '{FINE_SOLVER[0]}' or None, got '{self.reference_solver}'"
            )
        if self.reference_solver is not None and self.reference_steps is None:
            raise ConfigError("a reference_solver needs reference_steps, more than the call's own")
        if self.bf16:
            raise ConfigError("a pipeline runs in its own precision; load it with torch_dtype=torch.bfloat16")


class PipelineLoop:
    """What learning for one pipeline, call and set of runs shares.

    Args:
        name: What is learned.
        pipe: A pipeline without a cache enabled, `frozen`.
        run: Its scheduler's run.
        table: Layers of its transformer.
        conditions: What tells runs apart.
        call: What it is called with besides.
        settings: How to learn.
        session: Checkpoint, time limit and log.
        on_progress: Called as work goes on.
        identity: What else decides the result, in JSON types.

    Attributes:
        trainer: Checkpoint and limits.

    Raises:
        ConfigError: If the pipeline cannot be learned on, there are several processes, or time is up.
        NumericsError: If it makes values that are not finite.
    """

    def __init__(
        self,
        name: str,
        pipe: Any,
        run: Run,
        table: LayerTable,
        conditions: Sequence[Mapping[str, Any]],
        call: Mapping[str, Any],
        settings: FitSettings,
        session: Session | None,
        on_progress: OnProgress | None,
        **identity: object,
    ) -> None:
        if not conditions:
            raise ConfigError("learning takes at least one prompt or label")
        if clash := {"generator", "latents"} & {*call, *(key for one in conditions for key in one)}:
            raise ConfigError(f"learning draws its own noise, from settings.seed; leave out {min(clash)}")
        self.settings, self._run, self._table = settings, run, table
        self._trajectory = PipelineTrajectory(pipe, call)
        model = next(iter(transformers_of(pipe).values()))
        first = next(model.parameters())
        self._device, self._fingerprint = first.device, fingerprint(model, find_layers(model))
        subject = {
            "pipeline": type(pipe).__name__,
            "weights": digest(self._fingerprint, table.to_json()),
            "dtype": str(first.dtype).removeprefix("torch."),
            "device": first.device.type,
            "run": digest(asdict(run)),
            "call": digest(_plain(call)),
            "conditions": digest(_plain(conditions)),
        }
        self.trainer = Trainer(
            name, Subject(self._device, subject), settings, session, on_progress, **identity
        )
        if self.trainer.processes.count > 1:
            raise ConfigError(
                f"a pipeline is learned on by one process, and {self.trainer.processes.count} were started"
            )
        count = settings.num_held_out + settings.num_runs
        self._runs = [(conditions[i % len(conditions)], settings.seed + i) for i in range(count)]
        self._targets = self._solve()

    @torch.no_grad()
    def _solve(self) -> list[Tensor]:
        """What to come close to, for every run; kept in the checkpoint."""
        trainer, name, targets = self.trainer, "uncached runs", []
        changes = self._trajectory.with_steps(self.settings.reference_steps)
        for index, (condition, seed) in enumerate(self._runs):
            key, done, total = f"{name} {index}", index + 1, len(self._runs)
            if key not in trainer.kept:
                with self._trajectory.finely_solved(self.settings.reference_solver is not None):
                    made = self._trajectory.sample(condition, seed, **changes).float()
                if not (made.isfinite().all() and made.any()):
                    raise NumericsError(
                        "the pipeline makes nothing but zeros, or values that are not finite; check its weights for "
                        "NaN, or use float32"
                    )
                trainer.kept[key] = made.cpu()
                trainer.save(if_due=True)
                left_s = trainer.elapsed_s / done * (total - done)
                trainer.report(
                    Progress(name, done, total, math.nan, math.nan, 1.0, trainer.elapsed_s, left_s)
                )
                if done < total and trainer.used_up(1.0):
                    trainer.save()
                    raise ConfigError(
                        f"time is up after {done} of {total} {name}, before learning began; allow more time, or take "
                        "fewer runs; with a checkpoint, the same call goes on from there"
                    )
            targets.append(trainer.kept[key].to(self._device))
        return targets

    def blank(self, compute: Tensor, order: int, contract: Contract) -> CacheSchedule:
        """A schedule with a mask, nothing learned yet: stand-ins follow a polynomial of an order."""
        log_snrs = self._run.log_snrs
        predictor = Coefficients(compute, log_snrs, self.settings.depth, self._device, order).predictor()
        return CacheSchedule(compute, self._table, contract, predictor)

    def coefficients(self, schedule: CacheSchedule) -> Coefficients:
        """Coefficients that begin with those of a schedule, or with a polynomial if it has none."""
        log_snrs, depth = self._run.log_snrs, self.settings.depth
        return Coefficients(schedule.compute, log_snrs, depth, self._device, start=schedule.predictor)

    def mask_error(self, compute: Tensor, order: int, contract: Contract) -> float:
        """Root mean square error of some of the runs that are learned on, with nothing learned yet."""
        first = self.settings.num_held_out
        with self._trajectory.cached(self.blank(compute, order, contract)):
            return self._error(range(first, first + min(self.settings.trial_runs, self.settings.num_runs)))

    @torch.no_grad()
    def _error(self, indices: range) -> float:
        squares = [self.square(index).item() for index in indices]
        return math.sqrt(sum(squares) / len(squares))

    def square(self, index: int) -> Tensor:
        """Mean square error of a run in units of its target's mean square, (), under the cache that is enabled."""
        made, target = self._trajectory.sample(*self._runs[index]).float(), self._targets[index]
        return (made - target).square().mean() / target.square().mean()

    def fit(self, schedule: CacheSchedule, provenance: Mapping[str, Any]) -> CacheSchedule:
        """Learns the stand-ins of a schedule.

        Args:
            schedule: Where to compute; coefficients that it has learned are where learning begins.
            provenance: What to record beside the figures of learning.
        """
        coefficients, kept = self.coefficients(schedule), self.trainer.kept
        held_out = range(self.settings.num_held_out)
        begun = replace(schedule, predictor=coefficients.predictor())
        with self._trajectory.cached(begun, recompute=self.settings.recompute) as cache:
            if "error before" not in kept:
                use_plan(cache, coefficients.plan())
                kept["error before"] = torch.tensor(self._error(held_out))
            task = _RunsTask(self, coefficients, cache, schedule.cost.fraction)
            outcome = self.trainer.run(task)
            use_plan(cache, coefficients.plan())
            after = self._error(held_out)
        figures = self._figures(kept["error before"].item(), after, outcome)
        earlier = {key: value for key, value in provenance.items() if key != "drift"}
        return replace(
            schedule,
            predictor=coefficients.predictor(),
            contract=replace(schedule.contract, fingerprint=self._fingerprint),
            provenance={**earlier, **figures},
        )

    def _figures(self, before: float, after: float, outcome: Outcome) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "predictor": "linear, learned through the pipeline on its final latents",
            "settings": asdict(self.settings),
            "iterations": outcome.iterations,
            "held_out_error_before": round(before, 5),
            "held_out_error": round(after, 5),
            "interrupted": outcome.interrupted,
        }
        if (
            self.settings.reference_steps is None and self._trajectory.puts_out_latents
        ):  # as `check` measures it
            figures["drift"] = {"error": round(after, 6), "runs": self.settings.num_held_out}
        return figures


class _RunsTask:
    """Coefficients, their optimizer, and the runs that are to come close to their targets."""

    def __init__(
        self, loop: PipelineLoop, coefficients: Coefficients, cache: PipelineCache, fraction: float
    ) -> None:
        self._loop, self._coefficients, self._cache, self.fraction = loop, coefficients, cache, fraction
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(coefficients.parameters(), betas=(0.9, 0.99))

    def backward(self, iteration: int) -> tuple[Tensor, Tensor]:
        """See `Task.backward`."""
        settings, squares = self._loop.settings, []
        for place in range(iteration * settings.batch_size, (iteration + 1) * settings.batch_size):
            use_plan(self._cache, self._coefficients.plan())
            square = self._loop.square(settings.num_held_out + place % settings.num_runs)
            (square / settings.batch_size).backward()  # type: ignore[no-untyped-call]
            squares.append(square.detach())
        each = torch.stack(squares)
        return each.mean(), each.sqrt().mean()

    def update(self, iteration: int) -> None:
        """See `Task.update`."""
        settings = self._loop.settings
        self.optimizer.param_groups[0]["lr"] = settings.learning_rate * rate_at(
            iteration, settings.iterations
        )
        self.optimizer.step()


def _plain(value: Any) -> Any:
    """Arguments of a call as JSON types, so that they can be told from others."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Tensor):
        return digest(value.detach().float().cpu())
    return value if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__


def fit_predictor(
    pipe: Any,
    schedule: CacheSchedule,
    conditions: Sequence[Mapping[str, Any]],
    *,
    settings: FitSettings | None = None,
    session: Session | None = None,
    on_progress: OnProgress | None = None,
    **call: Any,
) -> CacheSchedule:
    """Learns the stand-ins of a schedule for a pipeline, through its own run, on its own prompts.

    The target of a run is what the pipeline makes from the same noise with everything computed. The mask stays.
    Coefficients that the schedule has already learned are where learning begins, so that a few iterations repair it
    for a fine-tuned model or a LoRA.

    Args:
        pipe: A diffusers pipeline without a cache enabled; it is not changed.
        schedule: Where to compute.
        conditions: What tells runs apart, by the pipeline's names: `{"prompt": "a cat"}`. They take turns.
        settings: Everything else that decides the result.
        session: Checkpoint, time limit and log.
        on_progress: Called as work goes on.
        call: What the pipeline is called with besides, by name.

    Returns:
        The schedule with learned coefficients; its provenance has the errors on held-out runs before and after.

    Raises:
        CheckpointError: If the session's checkpoint cannot be read.
        ConfigError: If there is nothing to learn, or the pipeline cannot be learned on.
        ContractError: If the schedule is for another model or another run.
        NumericsError: If the error is not finite.
    """
    settings = settings or FitSettings()
    if schedule.compute.all():
        raise ConfigError("the schedule computes everything; a predictor needs layers that are reused")
    with frozen(pipe):
        loop = PipelineLoop(
            "predictor",
            pipe,
            schedule.contract.run,
            schedule.layers,
            conditions,
            call,
            settings,
            session,
            on_progress,
            mask=digest(schedule.compute),
        )
        return loop.fit(schedule, schedule.provenance)
