"""The policy of a schedule on a pipeline, whose calls come and go: without a history, layers are computed.

Everything that depends on the evaluation or the branch is decided before the transformer is called, and what was
computed is taken to the store after it. In between, a layer only looks at a `Cell`. So a compiler that follows the call
meets the same program at every evaluation of the same structure, in every branch, with other tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from l2c.cache.clock import Clock
from l2c.cache.policy import Compute, LayerPolicy, StaticPolicy, compute_once
from l2c.cache.values import (
    Value,
    combine_values,
    copy_value,
    join_values,
    own_value,
    split_value,
    weigh_values,
)
from l2c.engine.graphs import weight_table
from l2c.hosts.pipeline.resting import Resting
from l2c.schedule.forecast import ReusePlan, is_copy


class Cell:
    """What one layer does in the call that is being made; see `LayerPolicy`.

    A layer that is called several times in a call, as with chunked feed-forward, has a history for each time.

    Attributes:
        policy: To which it belongs.
        history: For each time that it will forecast the layer: the stored values, the latest first.
        weights: Weights of those values.
        sizes: How many of the values each pass of guidance has, where the rows of several are in the call.
        row: The weights as a tensor, for compiled calls; None where a value is copied.
        keeps: Whether an output that is computed will be read.
        fresh: What has been computed, to be kept.
        times: How often the layer has been called.
    """

    def __init__(self, policy: PipelinePolicy) -> None:
        self.policy = policy
        self.history: list[tuple[Value, ...]] = []
        self.weights: Sequence[float | Tensor] = ()
        self.sizes: Sequence[int] = ()
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
            return self._forecast(values)
        fresh = self.policy.around(compute)
        if (
            torch.compiler.is_compiling() or self.keeps
        ):  # in this order: a compiler makes no variant for what it keeps
            self.fresh = (*self.fresh, fresh)
        return fresh

    def _forecast(self, values: tuple[Value, ...]) -> Value:
        if len(self.sizes) < 2:
            return combine_values(values, self.weights)
        ends = list(accumulate(self.sizes))
        parts = [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]
        return join_values([combine_values(values[part], self.weights[part]) for part in parts])

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
        StaticPolicy.__init__(self, plan, num_evaluations, around)
        self._make_cells(num_layers)

    def _make_cells(self, num_layers: int) -> None:
        self.cells = [Cell(self) for _ in range(num_layers)]
        self.replayed = False
        self._most_times, self._resting = 1, Resting()
        self._rows: dict[tuple[int, torch.device], tuple[Tensor, ...]] = {}
        self._call: tuple[int, tuple[str, ...]] = (0, ())

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

    def first_column(self, branch: str) -> int:
        """Column of the mask that is the first layer's in a branch."""
        return 0

    def begin_call(self, evaluation: int, *branches: str) -> None:
        """Says what each layer will do in a call of the model, whose rows are those of one branch after another."""
        for branch in branches:
            self.counts.enter(evaluation, branch)
        self._call = (evaluation, branches)
        tracing = "torch._dynamo" in sys.modules  # else nothing is compiled
        for layer, cell in enumerate(self.cells):
            columns = [self.first_column(branch) + layer for branch in branches]
            cell.keeps = any((evaluation, column) in self.store.reads for column in columns)
            terms = [self.plan.get((evaluation, column)) for column in columns]
            planned = [pairs for pairs in terms if pairs is not None]
            if len(planned) < len(terms):
                continue
            for time in range(self._most_times):
                places = [
                    (_history_name(branch, time), source, column)
                    for branch, column, pairs in zip(branches, columns, planned, strict=True)
                    for source, _ in pairs
                ]
                if not all(self.store.holds(*place) for place in places):
                    break
                cell.history.append(tuple(self.store.read(*place, evaluation) for place in places))
            cell.weights = [weight for pairs in planned for _, weight in pairs]
            cell.sizes = [len(pairs) for pairs in planned]
            if tracing and cell.history and columns == [layer] and not is_copy(cell.weights):
                cell.row = self._row(evaluation, layer, _device(cell.history[0][0]))

    def _row(self, evaluation: int, layer: int, device: torch.device) -> Tensor | None:
        """Weights of a layer as a tensor; None while they are being learned, when they are tensors themselves."""
        key = (evaluation, device)
        if key not in self._rows:
            terms = {(0, at[1]): pairs for at, pairs in self.plan.items() if at[0] == evaluation}
            if any(isinstance(weight, Tensor) for pairs in terms.values() for _, weight in pairs):
                return None
            with torch.inference_mode(False):
                self._rows[key] = weight_table(terms, 1)[0].to(device).unbind()
        return self._rows[key][layer]

    def repeat(self, *, offload: bool = False) -> Callable[[], AbstractContextManager[None]]:
        """What lets the cells do once more what they are about to do in this call, keeping nothing.

        It holds the stored values that the call reads, so that they are there when the store has long let go of them.

        Args:
            offload: Hold copies of them in CPU memory.
        """
        rest = self._resting.put if offload else _held
        begun = [
            (
                {**state, "row": None, "keeps": False, "history": ()},
                [rest(values) for values in state["history"]],
            )
            for state in self.state()
        ]

        @contextmanager
        def again() -> Iterator[None]:
            before = self.state()
            self.restore([{**state, "history": [bring() for bring in history]} for state, history in begun])
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
        evaluation, branches = self._call
        taken: list[tuple[int, tuple[Value, ...]]] = []
        for layer, cell in enumerate(self.cells):
            reused = min(cell.times, len(cell.history))
            computed = cell.times - reused
            self.counts.reused[layer] += reused * len(branches)
            self.counts.computed[layer] += computed * len(branches)
            planned = [(evaluation, self.first_column(branch) + layer) in self.plan for branch in branches]
            self.counts.unplanned += computed * sum(planned)
            self._most_times = max(self._most_times, cell.times)
            taken.append((reused, cell.fresh if cell.keeps else ()))
            cell.clear()
        self._keep(evaluation, branches, taken)

    def _keep(
        self, evaluation: int, branches: tuple[str, ...], taken: Sequence[tuple[int, tuple[Value, ...]]]
    ) -> None:
        """Stores what each layer has computed: the first of its times that it was, and the values."""
        for layer, (first, fresh) in enumerate(taken):
            for time, value in enumerate(fresh, start=first):
                for branch, part in zip(branches, split_value(value, len(branches)), strict=True):
                    column = self.first_column(branch) + layer
                    if (evaluation, column) in self.store.reads:
                        kept = copy_value(part) if self.replayed else own_value(part)
                        self.store.put(_history_name(branch, time), evaluation, column, kept)
        self.counts.peak_bytes = max(self.counts.peak_bytes, self.store.nbytes)


def _held(values: tuple[Value, ...]) -> Callable[[], tuple[Value, ...]]:
    return lambda: values


def _history_name(branch: str, time: int) -> str:
    return f"{branch}#{time}" if time else branch


def _device(value: Value) -> torch.device:
    parts = (value,) if isinstance(value, Tensor) else value
    return next(part.device for part in parts if part is not None)
