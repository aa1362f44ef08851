"""One job at one batch size: static tensors, the evaluations that work on them, and their graphs."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from l2c.cache.store import FeatureStore, last_reads
from l2c.engine.graphs import Replayable, Sharing, Slots, capture, share_graphs, weight_table
from l2c.engine.job import Job
from l2c.engine.policy import PairPolicy, PlanPolicy, TrialPolicy
from l2c.engine.programs import Constants, Program
from l2c.schedule.forecast import is_copy
from l2c.schedule.scales import low_pass

logger = logging.getLogger(__name__)

CONSTANTS_BYTES = 512 * 2**20
"""Most memory for what is computed ahead; a longer run computes it in parts."""
REFILL = -1
"""Stands for computing constants ahead, among the evaluations that are captured."""


class PreparedJob:
    """A job whose inputs, solver and constants are in tensors that stay where they are.

    The number of the evaluation is itself on the device and counts up by itself, so that every evaluation launches
    the same work apart from which layers it computes.

    Args:
        program: The model.
        job: What to do.
        noise: Any noise (B, C, H, W) of the shape to come.

    Attributes:
        capture_s: Seconds that compiling and capturing took.
    """

    def __init__(self, program: Program, job: Job, noise: Tensor) -> None:
        self.job = job
        self._program = program
        device, count = noise.device, job.num_evaluations
        self._terms = torch.zeros((count + 1, *noise.shape), device=device)
        self._solver = job.solver.to(device, torch.float32)
        self._scale = torch.ones((), device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._labels = torch.zeros(
            len(noise) * (1 if job.null_class is None else 2), dtype=torch.long, device=device
        )
        if job.null_class is not None:
            self._labels[len(noise) :] = job.null_class
        self._differences = torch.zeros((count, *noise.shape), device=device) if job.passes else None
        self._continuations = None if job.differences is None else job.differences.to(device, torch.float32)
        self._history_length, self._weights = (
            _history_length(job),
            weight_table(job.forecasts, count).to(device),
        )
        timesteps = torch.tensor(job.timesteps, device=device)
        sample = program.constants(timesteps[:1], self._labels)
        per_evaluation = sum(part.numel() * part.element_size() for part in sample)
        self._window = max(1, min(count, CONSTANTS_BYTES // max(per_evaluation, 1)))
        self._constants = tuple(part.new_zeros((self._window, *part.shape[1:])) for part in sample)
        padding = -count % self._window
        self._timesteps = torch.cat([timesteps, timesteps[-1:].expand(padding)])
        self._ahead = torch.arange(self._window, device=device)
        self._store: FeatureStore | Slots = FeatureStore(last_reads(job.forecasts))
        self._graphs: dict[int, Replayable] = {}
        self._refill_graph: Replayable | None = None
        self._sharing: Sharing | None = None
        self._pool_bytes = 0
        self.capture_s = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps between runs: its tensors and the memory of its graphs."""
        tensors = [self._terms, self._solver, self._labels, self._weights, self._timesteps, *self._constants]
        tensors += [part for part in (self._differences, self._continuations) if part is not None]
        return sum(part.numel() * part.element_size() for part in tensors) + self._pool_bytes

    @property
    def store_bytes(self) -> int:
        """Bytes of stored values: of captured runs always, of others while they run."""
        return self._store.nbytes

    @property
    def num_graphs(self) -> int:
        """Captured evaluations."""
        return len(self._graphs)

    def launch_times(self) -> list[float]:
        """Seconds in which the host launches each captured evaluation of a run while the device is idle.

        In a run the host is far ahead of the device and waits for room in its queue; that is not counted here.
        """
        if self._sharing is None:
            return []
        self._begin(self._terms[0].clone(), self._labels[: self._terms.shape[1]].clone(), 1.0)
        taken = []
        for graph in self._sharing.graphs:
            torch.cuda.synchronize()
            began = time.perf_counter()
            self._graphs[graph].replay()
            taken.append(time.perf_counter() - began)
        torch.cuda.synchronize()
        return taken

    def __call__(self, noise: Tensor, labels: Tensor, scale: float) -> Tensor:
        """Samples (B, C, H, W) from unit normal noise; see `Engine.run`."""
        self._begin(noise, labels, scale)
        for evaluation in range(self.job.num_evaluations):
            if evaluation % self._window == 0:
                self._replay(self._refill_graph, self._refill)
            if self._sharing is None:
                self._evaluate(evaluation)
            else:
                self._graphs[self._sharing.graphs[evaluation]].replay()
        return self._mix(self._solver[-1])

    def dry_run(self, max_pending: int) -> None:
        """Evaluates with every number of layers in a row that are reused, from every layer on.

        These are all the kinds of pieces there are, so afterwards no schedule whose forecasts read as many values
        compiles anything.
        """
        job, pictures, rows = self.job, self._terms.shape[1], len(self._labels)
        for size in {pictures, rows} if job.passes else {rows // 2 if job.split else rows}:
            x = self._terms[0].repeat(size // pictures, 1, 1, 1)
            constants = tuple(part[0][:size] for part in self._constants)
            policy = TrialPolicy(self._history_length, self._weights[0, 0])
            for reused in range(2 * max_pending + 1):
                for first in range(reused + 1):
                    policy.reused, policy.first = reused, first
                    self._program.evaluate(x, constants, policy)

    def capture(self) -> None:
        """Runs once, which compiles what has to be compiled, then captures all evaluations."""
        began = time.perf_counter()
        self(self._terms[0].normal_(), self._labels[: self._terms.shape[1]], 1.0)
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()  # of what the first run left, so that the difference is what is captured
        before = torch.cuda.memory_reserved()
        self.share(lambda captured: capture((REFILL, *captured), self._launch))
        self._pool_bytes = torch.cuda.memory_reserved() - before
        self.capture_s = time.perf_counter() - began
        logger.info("captured %d graphs in %.1f s", len(self._graphs), self.capture_s)

    def release(self) -> None:
        """Forgets what was captured and stored; the run is then launched piece by piece."""
        self._store = FeatureStore(last_reads(self.job.forecasts))
        self._graphs, self._refill_graph, self._sharing = {}, None, None
        self._pool_bytes = 0
        gc.collect()
        torch.cuda.empty_cache()

    def share(self, capture: Callable[[tuple[int, ...]], dict[int, Replayable]]) -> None:
        """Gives stored values their places, and evaluations that are alike one graph.

        Args:
            capture: Captures some evaluations, and `REFILL`.
        """
        sharing = share_graphs(self.job.forecasts, self.job.num_evaluations, self.job.passes)
        branches = ("cond", "uncond") if self.job.split and not self.job.passes else ("all",)
        rows = self._terms.shape[1] if self.job.passes else len(self._labels) // len(branches)
        value = self._weights.new_empty((rows, *self._program.token_shape), dtype=self._constants[0].dtype)
        self._store = Slots(sharing, value, branches)
        graphs = capture(sharing.captured)
        self._refill_graph, self._graphs, self._sharing = graphs.pop(REFILL), graphs, sharing

    def _launch(self, evaluation: int) -> None:
        if evaluation == REFILL:
            self._refill()
        else:
            self._evaluate(evaluation)

    def _replay(self, graph: Replayable | None, launch: Callable[[], None]) -> None:
        if graph is None:
            launch()
        else:
            graph.replay()

    def _begin(self, noise: Tensor, labels: Tensor, scale: float) -> None:
        if isinstance(self._store, FeatureStore):
            self._store.clear()  # of a run that was interrupted
        self._terms[0].copy_(noise)
        self._terms[1:].zero_()
        if self._differences is not None:
            self._differences.zero_()
        self._labels[: len(labels)].copy_(labels)
        self._scale.fill_(scale)
        self._position.zero_()

    def _refill(self) -> None:
        """Computes the constants of the next evaluations."""
        timesteps = self._timesteps.index_select(0, self._position + self._ahead)
        for kept, fresh in zip(
            self._constants, self._program.constants(timesteps, self._labels), strict=True
        ):
            kept.copy_(fresh)

    def _evaluate(self, evaluation: int) -> None:
        """Launches the work of an evaluation: network input, prediction, guidance."""
        job, position = self.job, self._position
        x = self._mix(self._solver.index_select(0, position)[0])
        place = position if self._window == job.num_evaluations else position % self._window
        constants = tuple(part.index_select(0, place)[0] for part in self._constants)
        weights = self._weights.index_select(0, position)[0]
        predicted = self._predict(evaluation, x, constants, weights)
        self._terms.index_copy_(0, position + 1, predicted[None])
        position.add_(1)

    def _predict(self, evaluation: int, x: Tensor, constants: Constants, weights: Tensor) -> Tensor:
        job, channels = self.job, x.shape[1]

        def policy_of(branch: str, first: int = 0) -> PlanPolicy:
            plan, history = job.forecasts, self._history_length
            return PlanPolicy(plan, self._store, branch, evaluation, weights, history, first)

        def call(branch: str, x: Tensor, constants: Constants) -> Tensor:
            return self._program.evaluate(x, constants, policy_of(branch))[:, :channels].to(x.dtype)

        if job.passes is not None:
            halves_of = (policy_of("all"), policy_of("all", job.num_layers))
            return self._predict_apart(job.passes[evaluation], x, constants, halves_of)
        if job.combine is None:
            return call("all", x, constants)
        if not job.split:
            cond, uncond = call("all", torch.cat([x, x]), constants).chunk(2)
        else:
            halves = zip(*(part.chunk(2) for part in constants), strict=True)
            cond, uncond = (
                call(branch, x, half) for branch, half in zip(("cond", "uncond"), halves, strict=True)
            )
        return job.combine(cond, uncond, self._scale)

    def _predict_apart(
        self, kind: str, x: Tensor, constants: Constants, policies: tuple[PlanPolicy, PlanPolicy]
    ) -> Tensor:
        """Guided prediction where the passes have rows of their own; for the kind see `passes_of`."""
        job, channels, position = self.job, x.shape[1], self._position
        assert job.combine is not None
        assert self._differences is not None
        assert self._continuations is not None
        first, second = zip(*(part.chunk(2) for part in constants), strict=True)
        uncond: Tensor | None = None
        if kind == "both":
            both = self._program.evaluate(torch.cat([x, x]), constants, PairPolicy(*policies))
            cond, uncond = both[:, :channels].to(x.dtype).chunk(2)
        else:
            cond = self._program.evaluate(x, first, policies[0])[:, :channels].to(x.dtype)
            if kind == "apart":
                uncond = self._program.evaluate(x, second, policies[1])[:, :channels].to(x.dtype)
        if uncond is not None:
            self._differences.index_copy_(0, position, (cond - uncond)[None])
            return job.combine(cond, uncond, self._scale)
        weights = self._continuations.index_select(0, position)[0]
        difference = (weights @ self._differences.flatten(1)).view(x.shape)
        return job.combine(cond, cond - difference, self._scale)

    def _mix(self, weights: Tensor) -> Tensor:
        """Linear combination (B, C, H, W) of the noise and the predictions so far, scale by scale."""
        tables = weights.view(-1, len(self._terms))
        mixed = (tables @ self._terms.flatten(1)).view(len(tables), *self._terms.shape[1:])
        return sum((low_pass(part, scale) for scale, part in enumerate(mixed[1:], start=1)), mixed[0])


def _history_length(job: Job) -> int:
    """How many stored values a forecast reads; 0 where they are all plain copies."""
    terms = job.forecasts.values()
    if all(is_copy([weight for _, weight in row]) for row in terms):
        return 0
    return max(len(row) for row in terms)
