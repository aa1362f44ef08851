"""What learning through a pipeline's own run does: uncached runs to come close to, masks judged, forecasts learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from l2c.errors import ConfigError, NumericsError
from l2c.hosts.pipeline.conditions import Condition, Draw
from l2c.hosts.pipeline.enable import transformers_of
from l2c.hosts.pipeline.handle import PipelineCache
from l2c.hosts.pipeline.offload import execution_device
from l2c.hosts.pipeline.settings import FitSettings
from l2c.hosts.pipeline.trajectory import PipelineTrajectory, use_plan
from l2c.layers import LayerTable, find_layers, fingerprint
from l2c.learning.checkpoint import digest
from l2c.learning.coefficients import Coefficients
from l2c.learning.session import OnProgress, Progress, Session
from l2c.learning.task import rate_at
from l2c.learning.trainer import Outcome, Subject, Trainer
from l2c.schedule.contract import Contract, Run
from l2c.schedule.schedule import CacheSchedule


class PipelineLoop:
    """What learning for one pipeline, call and set of runs shares.

    Args:
        name: What is learned.
        pipe: A pipeline without a cache enabled, `encoders_offloaded`.
        run: Its scheduler's run.
        table: Layers of its transformers, which share it.
        begins: Evaluations, from 0 on, at which a transformer takes over.
        conditions: What tells runs apart.
        call: What it is called with besides.
        settings: How to learn.
        session: Checkpoint, time limit and log.
        on_progress: Called in the main process as work goes on.
        identity: What else decides the result, in JSON types.

    Attributes:
        trainer: Processes, checkpoint and limits.

    Raises:
        ConfigError: If the pipeline cannot be learned on, or time is up.
        NumericsError: If it makes values that are not finite.
    """

    def __init__(
        self,
        name: str,
        pipe: Any,
        run: Run,
        table: LayerTable,
        begins: Sequence[int],
        conditions: Sequence[Condition],
        call: Mapping[str, Any],
        settings: FitSettings,
        session: Session | None,
        on_progress: OnProgress | None,
        **identity: object,
    ) -> None:
        if clash := {"generator", "latents"} & {*call, *(key for one in conditions for key in one)}:
            raise ConfigError(f"learning draws its own noise, from settings.seed; leave out {min(clash)}")
        self.settings, self._run, self._table, self._begins = settings, run, table, begins
        self._trajectory = PipelineTrajectory(pipe, call)
        models = transformers_of(pipe).values()
        self._device = execution_device(pipe)
        self._fingerprint = tuple(
            value for model in models for value in fingerprint(model, find_layers(model))
        )
        subject = {
            "pipeline": type(pipe).__name__,
            "weights": digest(self._fingerprint, table.to_json()),
            "dtype": str(next(next(iter(models)).parameters()).dtype).removeprefix("torch."),
            "device": self._device.type,
            "run": digest(asdict(run)),
            "call": digest(_plain(call)),
            "conditions": digest(_plain(conditions)),
        }
        self.trainer = Trainer(
            name, Subject(self._device, subject), settings, session, on_progress, **identity
        )
        self._draw = Draw.of(conditions, settings)
        self._held_out = range(settings.num_held_out)
        own = settings.reference_steps is None or not self._trajectory.puts_out_latents
        changes = self._trajectory.with_steps(settings.reference_steps)
        with self._trajectory.finely_solved(settings.reference_solver is not None):
            self._targets = self._solve("uncached runs", len(self._draw.runs), changes)
        self._own = self._targets if own else self._solve("held-out runs", len(self._held_out), {})

    @torch.no_grad()
    def _solve(self, name: str, total: int, changes: Mapping[str, Any]) -> list[Tensor]:
        """What the first runs make with everything computed; shared by the processes and kept in the checkpoint."""
        trainer, count = self.trainer, self.trainer.processes.count
        for begin in range(0, total, count):
            keys = [f"{name} {index}" for index in range(begin, min(begin + count, total))]
            if keys[-1] in trainer.kept:
                continue
            mine = min(begin + trainer.processes.index, total - 1)  # the last ones may be made twice
            made = self._trajectory.sample(*self._draw.runs[mine], **changes).float()
            for key, one in zip(keys, trainer.processes.each(made), strict=False):
                if not (one.isfinite().all() and one.any()):
                    raise NumericsError(
                        "the pipeline makes nothing but zeros, or values that are not finite; check its weights for "
                        "NaN, or use float32"
                    )
                trainer.kept[key] = one.cpu()
            trainer.save(if_due=True)
            done = begin + len(keys)
            left_s = trainer.elapsed_s / done * (total - done)
            trainer.report(Progress(name, done, total, math.nan, math.nan, 1.0, trainer.elapsed_s, left_s))
            if done < total and trainer.used_up(1.0):
                trainer.save()
                raise ConfigError(
                    f"time is up after {done} of {total} {name}, before learning began; allow more time, or take "
                    "fewer runs; with a checkpoint, the same call goes on from there"
                )
        return [trainer.kept[f"{name} {index}"].to(self._device) for index in range(total)]

    def blank(self, compute: Tensor, order: int, contract: Contract) -> CacheSchedule:
        """A schedule with a mask, nothing learned yet: forecasts follow a polynomial of an order."""
        predictor = self._coefficients(compute, order=order).predictor()
        return CacheSchedule(compute, self._table, contract, predictor)

    def _coefficients(
        self, compute: Tensor, *, order: int | None = None, start: Tensor | None = None
    ) -> Coefficients:
        log_snrs, history = self._run.log_snrs, self.settings.history
        return Coefficients(compute, log_snrs, history, self._device, order, start, self._begins)

    def mask_error(self, compute: Tensor, order: int, contract: Contract) -> float:
        """Root mean square error of some of the runs that are learned on, with nothing learned yet."""
        first = self.settings.num_held_out
        with self._trajectory.cached(self.blank(compute, order, contract)):
            few = range(first, first + min(self.settings.trial_runs, self.settings.num_runs))
            return self._error(few, self._targets, bf16=self.settings.bf16)

    @torch.no_grad()
    def _error(self, indices: range, targets: Sequence[Tensor], *, bf16: bool = False) -> float:
        """Root mean square error of runs, which the processes share."""
        processes = self.trainer.processes
        squares = torch.zeros(math.ceil(len(indices) / processes.count), device=self._device)
        for place, index in enumerate(indices[processes.index :: processes.count]):
            squares[place] = self._square(index, targets[index], bf16)
        each = processes.each(squares).T.flatten()[: len(indices)].tolist()
        return math.sqrt(sum(each) / len(each))

    def _square(self, index: int, target: Tensor, bf16: bool) -> Tensor:
        """Mean square error of a run in units of its target's mean square, (), under the cache that is enabled."""
        made = self._trajectory.sample(*self._draw.runs[index], bf16=bf16).float()
        return (made - target).square().mean() / target.square().mean()

    def loss(self, place: int) -> Tensor:
        """Of one of the runs that are learned on, which take turns, (); with a graph."""
        index = self.settings.num_held_out + place % self.settings.num_runs
        return self._square(index, self._targets[index], self.settings.bf16)

    def fit(self, schedule: CacheSchedule, provenance: Mapping[str, Any]) -> CacheSchedule:
        """Learns the forecasts of a schedule.

        Args:
            schedule: Where to compute; coefficients that it has learned are where learning begins.
            provenance: What to record beside the figures of learning.
        """
        coefficients = self._coefficients(schedule.compute, start=schedule.predictor.coefficients)
        kept = self.trainer.kept
        begun = replace(schedule, predictor=coefficients.predictor())
        with self._trajectory.cached(begun, recompute=self.settings.recompute) as cache:
            use_plan(cache, coefficients.plan())
            if "error before" not in kept:
                kept["error before"] = torch.tensor(self._error(self._held_out, self._targets))
            task = _RunsTask(self, coefficients, cache, schedule.cost.fraction)
            outcome = self.trainer.run(task)
            use_plan(cache, coefficients.plan())
            after = self._error(self._held_out, self._targets)
            drift = after if self._own is self._targets else self._error(self._held_out, self._own)
        figures = self._figures(kept["error before"].item(), after, drift, outcome)
        earlier = {key: value for key, value in provenance.items() if key != "drift"}
        return replace(
            schedule,
            predictor=coefficients.predictor(),
            contract=replace(schedule.contract, fingerprint=self._fingerprint),
            provenance={**earlier, **figures},
        )

    def _figures(self, before: float, after: float, drift: float, outcome: Outcome) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "predictor": "linear, learned through the pipeline on its final latents",
            "settings": asdict(self.settings),
            "iterations": outcome.iterations,
            "held_out_conditions": self._draw.unseen,
            "held_out_error_before": round(before, 5),
            "held_out_error": round(after, 5),
            "interrupted": outcome.interrupted,
            "time_was_up": outcome.time_was_up,
        }
        if self._trajectory.puts_out_latents:  # as `check` measures it
            figures["drift"] = {"error": round(drift, 6), "runs": self.settings.num_held_out}
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
        first = iteration * settings.batch_size
        mine = range(first, first + settings.batch_size)[self._loop.trainer.rows]
        for place in mine:
            use_plan(self._cache, self._coefficients.plan())
            square = self._loop.loss(place)
            (square / len(mine)).backward()  # type: ignore[no-untyped-call]
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
