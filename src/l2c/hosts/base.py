"""`Host`: what runs the evaluations that a schedule is for. Learning, methods, checks and timing know nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2c.cache.policy import ReusePolicy
from l2c.errors import ConfigError
from l2c.layers import LayerTable
from l2c.sampling.linear import RowFit
from l2c.schedule.contract import Contract, Run
from l2c.schedule.forecast import ReusePlan
from l2c.schedule.schedule import CacheSchedule


class Examples(Protocol):
    """What tells runs apart, one picture each: noise and labels, or prompts and the seeds of their noise."""

    def __len__(self) -> int: ...

    def rows(self, rows: Sequence[int] | slice) -> Examples:
        """Some of them."""
        ...

    @property
    def identity(self) -> str:
        """Short name that tells them from others."""
        ...

    def describe(self, row: int) -> str:
        """What one of them is, for people."""
        ...

    @property
    def sizes(self) -> Sequence[str]:
        """What tells the size of each picture from others; all alike where there is one size."""
        ...


@dataclass(frozen=True)
class SolverTable:
    """A solver that is being learned, as tensors with a graph.

    Attributes:
        log_snrs: Half log-SNR of every evaluation (N,).
        weights: Table of `l2c.sampling.linear.LinearSolver` (N + 1, scales (N + 1)), or several side by side.
        fit: What gives the weights of a step in place of the table's, where they are found on the way; see there.
        degree: Of the polynomial in the guidance scale that the weights are, on a host with a range of guidance.
    """

    log_snrs: Tensor
    weights: Tensor
    fit: RowFit | None = None
    degree: int = 0


class Handle(Protocol):
    """A policy that is attached to a host."""

    def use(self, plan: ReusePlan) -> None:
        """Lets the policy follow another plan from the next run on; for the policy of a schedule."""
        ...


class Host(Protocol):
    """A frozen model with a run: what a schedule is learned for, measured on and used with.

    Attributes:
        target: What `enable_cache` takes: the model or the pipeline.
        unit: Of errors: `absolute` for pictures from -1 to 1, `relative` to the reference's root mean square for
            latents.
        batched: Whether several examples are run at once; otherwise one after another.
    """

    target: Any
    unit: str
    batched: bool

    @property
    def run(self) -> Run:
        """Where the network is evaluated."""
        ...

    @property
    def table(self) -> LayerTable:
        """The layers, with their sizes."""
        ...

    @property
    def segments(self) -> tuple[int, ...]:
        """Evaluations, rising and from 0 on, at which a model takes over from another."""
        ...

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The models that have the layers, by name."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def rows_and_calls(self) -> tuple[int, int]:
        """Rows of a call for one picture, and calls in an evaluation: 2 and 1 with guidance in one batch."""
        ...

    @property
    def has_branches(self) -> bool:
        """Whether it can run the conditional pass of guidance without the unconditional one."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others in checkpoints and records, in JSON types."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What a schedule records of it besides the contract, in JSON types."""
        ...

    def contract(self, model_name: str = "", *, weights: bool = True) -> Contract:
        """The contract of a schedule that is made for it.

        Args:
            model_name: For people.
            weights: Whether the schedule depends on the weights, whose fingerprint it then has.
        """
        ...

    def prepared(self) -> AbstractContextManager[None]:
        """A context in which gradients can be taken: weights require none, and the device is left to the models."""
        ...

    def examples(self, count: int, *key: int | str, held_out: int = 0) -> Examples:
        """Examples that depend on a key (a seed, and what they are for).

        Args:
            count: How many.
            key: What they are drawn by.
            held_out: So many at the beginning have prompts that no other has, as far as there are enough of them.
        """
        ...

    def seeded(self, seeds: Sequence[int]) -> Examples:
        """Examples with the noise of given seeds; labels or prompts take turns."""
        ...

    def sample(self, examples: Examples, *, bf16: bool = False, solver: SolverTable | None = None) -> Tensor:
        """Final pictures or latents (B, ...), float32; differentiable where gradients are enabled.

        Args:
            examples: What to run.
            bf16: Let matrix products be in bfloat16.
            solver: For a host of `solver_starts`: the solver instead of the one it begins with.
        """
        ...

    def together(
        self, examples: Examples, *, bf16: bool = False, solver: SolverTable | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Runs that are made in one go, evaluation by evaluation, without gradients.

        Args:
            examples: What to run.
            bf16: See `sample`.
            solver: See `sample`.

        Returns:
            Final pictures or latents (B, ...), and the noisy samples (B, ...) as the solver has them: before every
            evaluation, and what the last step makes.

        Raises:
            OneByOneError: If they cannot be run in one go.
        """
        ...

    def means_by_size(self, examples: Examples, values: Tensor) -> dict[str, float]:
        """Means of values (B,) of examples by the size of their pictures, as far as that has a name."""
        ...

    def attach(
        self,
        policy: CacheSchedule | ReusePolicy,
        *,
        around: Callable[[Callable[[], Any]], Any] | None = None,
        recompute: bool = False,
        offload: bool = False,
    ) -> AbstractContextManager[Handle]:
        """Enables a schedule or another policy, without comparing run or weights, until the context ends.

        Args:
            policy: What is computed and what is forecast.
            around: What computes a layer, for a schedule.
            recompute: Where gradients are taken, compute whole evaluations again in the backward pass instead of
                keeping what it needs of them.
            offload: Then, let stored values wait for that in CPU memory.

        Raises:
            ConfigError: If the host cannot do that.
        """
        ...

    def reference(self, steps: int | None) -> Host:
        """A host of the same models that solves its equation in fine steps; itself for None.

        Where no fine solution can be had, as under a solver that draws noise, it is the host itself.
        """
        ...

    def fewer_steps(self, steps: int) -> Mapping[str, Host]:
        """Hosts with so many evaluations by known solvers, by their names: what every cache has to beat.

        Raises:
            ConfigError: If its number of steps cannot be set.
        """
        ...

    def solver_starts(self, steps: int) -> Sequence[Host]:
        """Hosts with so many evaluations whose solver can be learned, beginning at DPM-Solver++(2M).

        They differ in the noise levels that they begin at; the first has the host's own.

        Raises:
            ConfigError: If no solver can be learned for it.
        """
        ...

    def multistep_table(self, log_snrs: Tensor) -> Tensor:
        """The table of the solver that learning begins with, differentiable in half log-SNRs (N,)."""
        ...

    def timesteps_of(self, log_snrs: Tensor) -> Tensor:
        """Training timesteps (N,) of half log-SNRs (N,), differentiable in them."""
        ...

    def for_schedule(self, schedule: CacheSchedule) -> Host:
        """A host whose solver is the one that a schedule brings; itself if it brings none."""
        ...

    def with_steps(self, steps: int) -> Host:
        """A host of the same solver with another number of steps; itself where a solver was learned.

        Raises:
            ConfigError: If its number of steps cannot be set.
        """
        ...

    def resolve_engine(self, engine: str) -> str:
        """The engine that a name stands for: `graph`, `compile` or `eager`.

        Raises:
            ConfigError: If there is no such engine for it.
        """
        ...

    def ready(
        self, schedule: CacheSchedule | None, batch_size: int, engine: str = "auto"
    ) -> Callable[[], object]:
        """A function that samples a batch with a schedule, or with everything computed, at full speed.

        Raises:
            ConfigError: If there is no such engine for it, or no such batch.
        """
        ...


def of_one_size(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures or latents (B, ...) that were made one part after another.

    Raises:
        ConfigError: If they are of several sizes.
    """
    sizes = {tuple(part.shape[1:]): None for part in pictures}
    if len(sizes) > 1:
        first, second, *_ = ("x".join(map(str, size)) for size in sizes)
        raise ConfigError(
            "pictures are learned and checked together if they are of one size, got latents of "
            f"{first} and of {second}; give height and width in the conditions, or do so for each size by itself"
        )
    return torch.cat(list(pictures))


def filled_up(pictures: Tensor, elements: int) -> Tensor:
    """Pictures or latents (B, ...), flattened and with zeros behind them (B, elements).

    Raises:
        ConfigError: If they have more elements.
    """
    flat = pictures.flatten(1)
    if flat.shape[1] > elements:
        raise ConfigError(
            f"a picture of {flat.shape[1]} elements was made where {elements} were expected; learn for each size by "
            "itself"
        )
    return F.pad(flat, (0, elements - flat.shape[1]))


def errors(made: Tensor, target: Tensor, unit: str) -> Tensor:
    """Root mean square distance of each example to its reference (B,); its gradient is 0 where there is none.

    Args:
        made: Pictures or latents (B, ...).
        target: What they come close to, of the same shape; or one of both is `filled_up`.
        unit: `absolute`, or `relative` to the root mean square of each target.
    """
    if made.shape != target.shape:
        most = max(made[0].numel(), target[0].numel())
        made, target = filled_up(made, most), filled_up(target, most)
    distances: Tensor = torch.linalg.vector_norm((made - target).flatten(1), dim=1)
    scale: Tensor | float = target[0].numel() ** 0.5
    if unit == "relative":
        scale = torch.linalg.vector_norm(target.flatten(1), dim=1)
    relative: Tensor = distances / scale
    return relative
