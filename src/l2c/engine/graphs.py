"""Evaluations as CUDA graphs: which share one, where stored values are, and how graphs are captured."""

from __future__ import annotations

import gc
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from l2c.cache.store import elements_of, last_reads
from l2c.layers import LayerTable
from l2c.schedule.forecast import ReusePlan


@dataclass(frozen=True)
class Sharing:
    """Which evaluations are captured, and which replay what others captured.

    Attributes:
        graphs: For every evaluation, the evaluation whose graph it replays; itself where it is captured.
        held: For every captured (evaluation, layer) that is stored: the last evaluation that reads or writes it,
            after which its memory may serve others.
    """

    graphs: tuple[int, ...]
    held: dict[tuple[int, int], int]

    @property
    def captured(self) -> tuple[int, ...]:
        """Evaluations that have graphs of their own, in order."""
        return tuple(sorted(set(self.graphs)))


def share_graphs(forecasts: ReusePlan, num_evaluations: int, kinds: Sequence[str] | None = None) -> Sharing:
    """Lets evaluations share a graph that compute, read and store the same, in the same places.

    A graph stores each value in one place. So an evaluation may use a graph again when it reads what the graph reads
    and when all that the graph stored before has been read for the last time. Weights do not matter: they are read
    from a table at the current evaluation.

    Args:
        forecasts: What is reused from where.
        num_evaluations: Of the run.
        kinds: For each evaluation, what else tells its work from that of others; nothing by default.

    >>> share_graphs({(1, 0): ((0, 1.0),), (3, 0): ((2, 1.0),)}, 4).graphs
    (0, 1, 0, 1)
    """
    reads = last_reads(forecasts)
    rows: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(num_evaluations)]
    for (evaluation, layer), terms in sorted(forecasts.items()):
        rows[evaluation].append((layer, tuple(source for source, _ in terms)))
    kinds = kinds or [""] * num_evaluations
    reused = [(kind, tuple(layer for layer, _ in row)) for kind, row in zip(kinds, rows, strict=True)]
    stored: dict[tuple[str, tuple[int, ...]], set[int]] = {}  # by row: what any evaluation like it stores
    for source, layer in reads:
        stored.setdefault(reused[source], set()).add(layer)
    graphs: list[int] = []
    busy: dict[int, int] = {}  # graph -> evaluation that last reads what it stored last
    candidates: dict[object, list[int]] = {}
    held: dict[tuple[int, int], int] = {}
    for evaluation, row in enumerate(rows):
        places = tuple((layer, tuple(graphs[source] for source in sources)) for layer, sources in row)
        same = candidates.setdefault((kinds[evaluation], places), [])
        graph = next((graph for graph in same if busy[graph] < evaluation), evaluation)
        if graph == evaluation:
            same.append(graph)
        graphs.append(graph)
        layers = stored.get(reused[evaluation], set())
        last = {layer: reads[evaluation, layer] for layer in layers if (evaluation, layer) in reads}
        busy[graph] = max(last.values(), default=-1)
        held.update({(graph, layer): last.get(layer, evaluation) for layer in layers})
    return Sharing(tuple(graphs), held)


def held_elements(sharing: Sharing, layers: LayerTable) -> int:
    """Most elements that stored values take at once, for one image per call and one branch."""
    changes: dict[tuple[int, int], int] = {}  # (evaluation, 0 where given up and 1 where stored) -> elements
    for (graph, layer), last in sharing.held.items():
        size = elements_of(layer, layers)
        changes[graph, 1] = changes.get((graph, 1), 0) + size
        changes[last + 1, 0] = changes.get((last + 1, 0), 0) - size
    return max(accumulate(changes[when] for when in sorted(changes)), default=0)


def assign_slots(sharing: Sharing) -> dict[tuple[int, int], int]:
    """A slot for every captured (evaluation, layer) that is stored; slots serve one after another.

    A slot is free for an evaluation that begins after the last reading of what was in it. So there are as many as
    values are held at once, which is the least there can be.
    """
    slots: dict[tuple[int, int], int] = {}
    free: list[int] = []
    taken: list[tuple[int, int]] = []  # (evaluation of the last reading, slot), the earliest first
    for place in sorted(sharing.held):
        while taken and taken[0][0] < place[0]:
            free.append(heapq.heappop(taken)[1])
        slots[place] = free.pop() if free else len(taken)
        heapq.heappush(taken, (sharing.held[place], slots[place]))
    return slots


def assign_layer_slots(sharing: Sharing) -> dict[tuple[int, int], int]:
    """`assign_slots` for each layer by itself, where layers put out values of different shapes.

    Returns:
        The slot of its layer for every (evaluation, layer) that is stored, captured or not.
    """
    slots: dict[tuple[int, int], int] = {}
    for layer in {layer for _, layer in sharing.held}:
        own = {place: last for place, last in sharing.held.items() if place[1] == layer}
        found = assign_slots(Sharing(sharing.graphs, own))
        for evaluation, graph in enumerate(sharing.graphs):
            if (graph, layer) in found:
                slots[evaluation, layer] = found[graph, layer]
    return slots


def weight_table(plan: ReusePlan, num_evaluations: int) -> Tensor:
    """Weights (evaluations, layers, history) of all forecasts.

    The history is a multiple of 4, so that rows are of 16 bytes, which compiled code need not copy to align.
    """
    layers = 1 + max((layer for _, layer in plan), default=0)
    longest = max(map(len, plan.values()), default=1)
    table = torch.zeros(num_evaluations, layers, 4 * math.ceil(max(longest, 1) / 4))
    for (evaluation, layer), row in plan.items():
        for index, (_, weight) in enumerate(row):
            table[evaluation, layer, index] = float(weight)
    return table


class Slots:
    """Stored values of captured evaluations, in memory that stays where it is.

    Args:
        sharing: Which evaluations share a graph.
        value: A tensor like the values.
        branches: Names of the calls per evaluation, each of which has slots of its own.
    """

    def __init__(self, sharing: Sharing, value: Tensor, branches: tuple[str, ...]) -> None:
        self._graphs, self._slots = sharing.graphs, assign_slots(sharing)
        count = 1 + max(self._slots.values(), default=-1)
        self._memory = {branch: value.new_empty((count, *value.shape)) for branch in branches}

    def place(self, branch: str, evaluation: int, layer: int) -> Tensor | None:
        """Where the output of a layer is to be written; None where it is not stored."""
        slot = self._slots.get((evaluation, layer))
        return None if slot is None else self._memory[branch][slot]

    def put(self, branch: str, evaluation: int, layer: int, value: Tensor) -> None:
        """Nothing to do: the value was written into its place."""

    def read(self, branch: str, source: int, layer: int, evaluation: int) -> Tensor:
        """Value computed at `source`, in the place where the graph of that evaluation stores it."""
        return self._memory[branch][self._slots[self._graphs[source], layer]]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(memory.numel() * memory.element_size() for memory in self._memory.values())


class Replayable(Protocol):
    """Work that can be launched again: a `torch.cuda.CUDAGraph`."""

    def replay(self) -> None:
        """Launches it."""
        ...


class CapturePool:
    """What graphs share that are captured one after another: memory, and the stream that it belongs to.

    Args:
        device: Where; the current CUDA device by default.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def capture(
    evaluations: tuple[int, ...], body: Callable[[int], None], pool: CapturePool | None = None
) -> dict[int, Replayable]:
    """Captures evaluations in one memory pool.

    What they allocate is gone at their end, so they may be replayed in any order, one at a time.

    Args:
        evaluations: Which, in order.
        body: Launches the work of one evaluation. Everything that it compiles or allocates outside must be done.
        pool: The pool; a new one by default.
    """
    graphs: dict[int, Replayable] = {}
    pool = pool or CapturePool()
    with _quiet(pool.stream):
        for evaluation in evaluations:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool.handle, capture_error_mode="thread_local")
            try:
                body(evaluation)
            except BaseException:
                with suppress(
                    Exception
                ):  # a capture that failed cannot be ended well, and why it failed is what counts
                    graph.capture_end()
                raise
            graph.capture_end()
            graphs[evaluation] = graph
    return graphs


@contextmanager
def _quiet(stream: torch.cuda.Stream) -> Iterator[None]:
    """A stream of its own, and no garbage collection, which could free device memory in a capture."""
    enabled = gc.isenabled()
    gc.disable()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        if enabled:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
