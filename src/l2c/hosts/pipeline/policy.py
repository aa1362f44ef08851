"""The policy of a schedule on a pipeline, whose calls come and go: without a history, layers are computed.

Everything that depends on the evaluation or the branch is decided before the transformer is called, and what was
computed is taken to the store after it. In between, a layer only looks at a `Cell`. So a compiler that follows the call
meets the same program at every evaluation of the same structure, in every branch, with other tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from l2c.cache.clock import Clock
from l2c.cache.policy import Compute, LayerPolicy, StaticPolicy, compute_once
from l2c.cache.values import Value, combine_values, copy_value, weigh_values
from l2c.schedule.forecast import ReusePlan, is_copy


class Cell:
    """What one layer does in the call that is being made; see `LayerPolicy`.

    A layer that is called several times in a call, as with chunked feed-forward, has a history for each time.

    Attributes:
        policy: To which it belongs.
        history: For each time that it will forecast the layer: the stored values, the latest first.
        weights: Weights of those values.
        row: The weights as a tensor, for compiled calls; None where a value is copied.
        keeps: Whether an output that is computed will be read.
        fresh: What has been computed, to be kept.
        times: How often the layer has been called.
    """

    def __init__(self, policy: PipelinePolicy) -> None:
        self.policy = policy
        self.history: list[tuple[Value, ...]] = []
        self.weights: Sequence[float | Tensor] = ()
        self.row: Tensor | None = None
        self.keeps = False
        self.fresh: tuple[Value, ...] = ()
        self.times = 0

    def output(self, compute: Compute) -> Value:
        """See `LayerPolicy.output`."""
        time, self.times = self.times, self.times + 1
        if time < len(self.history):
            values = self.history[time]
            if not torch.compiler.is_compiling():
                self.history[time] = ()  # so that what the store has let go of is freed here
            elif self.row is not None:
                return weigh_values(values, self.row)
            return combine_values(values, self.weights)
        fresh = self.policy.around(compute)
        if (
            torch.compiler.is_compiling() or self.keeps
        ):  # in this order: a compiler makes no variant for what it keeps
            self.fresh = (*self.fresh, fresh)
        return fresh

    def computes(self) -> bool:
        """See `LayerPolicy.computes`."""
        return not self.history

    def clear(self) -> None:
        """Forgets the call."""
        self.history, self.fresh, self.row, self.times = [], (), None, 0


class PipelinePolicy(StaticPolicy):
    """A static policy that computes whatever a branch has no history for, and counts.

    So a run may begin in the middle, a second transformer may take over, guidance may set in or out, and the batch
    may change: more is computed then, never something else reused.

    Attributes:
        cells: What each layer does in a call.
        replayed: Whether calls are replayed as CUDA graphs, whose outputs the next replay overwrites.
    """

    def __init__(
        self,
        plan: ReusePlan,
        num_evaluations: int,
        num_layers: int,
        around: Callable[[Compute], Value] = compute_once,
    ) -> None:
        super().__init__(plan, num_evaluations, around)
        self.cells = [Cell(self) for _ in range(num_layers)]
        self.replayed = False
        self._most_times = 1
        self._rows: dict[tuple[int, torch.device], tuple[Tensor, ...]] = {}
        self._call = (0, "")

    def use(self, plan: ReusePlan) -> None:
        """See `StaticPolicy.use`."""
        super().use(plan)
        self._rows.clear()

    def layer_policy(self, clock: Clock, layer: int) -> LayerPolicy:
        """See `ReusePolicy.layer_policy`."""
        return self.cells[layer]

    def clear(self) -> None:
        """See `ReusePolicy.clear`."""
        super().clear()
        for cell in self.cells:
            cell.clear()

    def begin_call(self, evaluation: int, branch: str) -> None:
        """Says what each layer will do in a call of the model."""
        self.counts.enter(evaluation, branch)
        self._call = (evaluation, branch)
        tracing = "torch._dynamo" in sys.modules  # else nothing is compiled
        for layer, cell in enumerate(self.cells):
            cell.keeps = (evaluation, layer) in self.store.reads
            terms = self.plan.get((evaluation, layer))
            if terms is None:
                continue
            for time in range(self._most_times):
                name = _history_name(branch, time)
                if not all(self.store.holds(name, source, layer) for source, _ in terms):
                    break
                values = [self.store.read(name, source, layer, evaluation) for source, _ in terms]
                cell.history.append(tuple(values))
            cell.weights = [weight for _, weight in terms]
            if tracing and cell.history and not is_copy(cell.weights):
                cell.row = self._row(evaluation, layer, _device(cell.history[0][0]))

    def _row(self, evaluation: int, layer: int, device: torch.device) -> Tensor | None:
        """Weights of a layer as a tensor; None while they are being learned, when they are tensors themselves."""
        key = (evaluation, device)
        if key not in self._rows:
            terms = [self.plan.get((evaluation, layer), ()) for layer in range(len(self.cells))]
            rows = [[weight for _, weight in pairs] for pairs in terms]
            if any(isinstance(weight, Tensor) for row in rows for weight in row):
                return None
            width = (
                -(-max(map(len, rows)) // 4) * 4
            )  # rows of 16 bytes, which compiled code need not copy to align
            padded = [[*row, *[0.0] * (width - len(row))] for row in rows]
            with torch.inference_mode(False):
                self._rows[key] = torch.tensor(padded, dtype=torch.float32, device=device).unbind()
        return self._rows[key][layer]

    def repeat(self) -> Callable[[], AbstractContextManager[None]]:
        """What lets the cells do once more what they are about to do in this call, keeping nothing.

        It holds the stored values that the call reads, so that they are there when the store has long let go of them.
        """
        begun = [{**state, "row": None, "keeps": False} for state in self.state()]

        @contextmanager
        def again() -> Iterator[None]:
            before = self.state()
            self.restore(begun)
            try:
                yield
            finally:
                self.restore(before)

        return again

    def state(self) -> list[dict[str, Any]]:
        """What the cells do and have done in the call that is being made, for `restore`."""
        return [{**vars(cell), "history": list(cell.history)} for cell in self.cells]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Puts the cells where they were."""
        for cell, before in zip(self.cells, state, strict=True):
            vars(cell).update(before, history=list(before["history"]))

    def end_call(self) -> None:
        """Stores what was computed and is read later."""
        evaluation, branch = self._call
        for layer, cell in enumerate(self.cells):
            reused = min(cell.times, len(cell.history))
            computed = cell.times - reused
            self.counts.reused[layer] += reused
            self.counts.computed[layer] += computed
            self.counts.unplanned += computed if (evaluation, layer) in self.plan else 0
            self._most_times = max(self._most_times, cell.times)
            if cell.keeps:
                for time, value in enumerate(cell.fresh, start=reused):
                    kept = copy_value(value) if self.replayed else value
                    self.store.put(_history_name(branch, time), evaluation, layer, kept)
            cell.clear()
        self.counts.peak_bytes = max(self.counts.peak_bytes, self.store.nbytes)


def _history_name(branch: str, time: int) -> str:
    return f"{branch}#{time}" if time else branch


def _device(value: Value) -> torch.device:
    parts = (value,) if isinstance(value, Tensor) else value
    return next(part.device for part in parts if part is not None)
