"""Where computed layer outputs wait until they are read for the last time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from l2c.cache.values import Value, value_bytes
from l2c.errors import CacheStateError
from l2c.layers import LayerTable
from l2c.schedule.branches import layer_of
from l2c.schedule.forecast import ReusePlan


def last_reads(plan: ReusePlan) -> dict[tuple[int, int], int]:
    """For every (evaluation, layer) whose value is stored: the evaluation that reads it last."""
    reads: dict[tuple[int, int], int] = {}
    for (evaluation, layer), terms in plan.items():
        for source, _ in terms:
            reads[source, layer] = max(evaluation, reads.get((source, layer), 0))
    return reads


def elements_of(column: int, layers: LayerTable) -> int:
    """Elements of what a column of a mask stores, for one image."""
    layer = layer_of(column, len(layers))
    return math.prod(layers.sample_shape) if layer is None else layers.layers[layer].out_elements


def peak_elements(plan: ReusePlan, layers: LayerTable, branches: int = 1) -> int:
    """Most elements that the store holds at once, for one image per call, in a run with so many branches."""
    changes: dict[tuple[int, int, int], int] = {}  # (evaluation, branch, layer), in order of time -> elements
    for (source, layer), last in last_reads(plan).items():
        size = elements_of(layer, layers)
        for branch in range(branches):
            stored, dropped = (source, branch, layer), (last, branch, layer)
            changes[stored] = changes.get(stored, 0) + size
            changes[dropped] = changes.get(dropped, 0) - size
    return max(accumulate(changes[time] for time in sorted(changes)), default=0)


def peak_bytes(
    plan: ReusePlan, layers: LayerTable, batch_size: int, branches: int, dtype: torch.dtype = torch.float32
) -> int:
    """Peak memory of the store in bytes: elements, times images in a call, times item size.

    Args:
        plan: What is reused from where.
        layers: The model's layers.
        batch_size: Number of images in one call of the model (twice the pictures when guidance is one batch).
        branches: Number of calls per evaluation with stores of their own.
        dtype: Element type of the layers' outputs.
    """
    return peak_elements(plan, layers, branches) * batch_size * dtype.itemsize


@dataclass
class FeatureStore:
    """Computed outputs by branch, evaluation and layer. Values leave when they are read for the last time.

    Attributes:
        reads: From `last_reads`; values that nobody reads are not kept.
    """

    reads: dict[tuple[int, int], int]
    _values: dict[tuple[str, int, int], Value] = field(default_factory=dict)

    def put(self, branch: str, evaluation: int, layer: int, value: Value) -> None:
        """Keeps a computed value if it is read later."""
        if (evaluation, layer) in self.reads:
            self._values[branch, evaluation, layer] = value

    def holds(self, branch: str, source: int, layer: int) -> bool:
        """Whether the value computed at `source` is there."""
        return (branch, source, layer) in self._values

    def read(self, branch: str, source: int, layer: int, evaluation: int) -> Value:
        """Value computed at `source`, read at `evaluation`; dropped if that is its last reading.

        Raises:
            CacheStateError: If the value is not there.
        """
        key = (branch, source, layer)
        try:
            return self._values.pop(key) if self.reads[source, layer] == evaluation else self._values[key]
        except KeyError:
            raise CacheStateError(
                f"branch '{branch}' has no value of layer {layer} from evaluation {source} at evaluation "
                f"{evaluation}; call the model once per evaluation in every branch, and each branch at every "
                "evaluation"
            ) from None

    def clear(self) -> None:
        """Forgets everything."""
        self._values.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(value_bytes(value) for value in self._values.values())
