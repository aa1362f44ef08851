"""Memory of learning through whole runs: by a formula before anything runs, and as measured."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2c.cache.store import elements_of, last_reads
from l2c.hosts.base import Host
from l2c.learning.coefficients import Coefficients

RESCALED = ("QwenImage",)
"""Pipelines whose guided prediction gets the norm of the conditional one, for whose gradient both are kept."""


def kept_bytes(host: Host, compute: Tensor, history: int) -> int:
    """Bytes that one example's run keeps for its backward pass with `recompute="evaluations"`.

    Rows of a call x calls per evaluation x bytes per number x (elements of all values that a forecast reads +
    evaluations from the first that reuses on x elements of the network's input); where guidance is rescaled
    (`RESCALED`), two predictions of each of these evaluations more. Weights, and what one evaluation works out while it
    is computed again, come besides.

    Args:
        host: A pipeline and its run.
        compute: Where to compute, bool (evaluations, layers).
        history: How many computed values a forecast reads at most.
    """
    table, run = host.table, host.run
    forecasts = Coefficients(
        compute, run.log_snrs, history, torch.device("cpu"), None, None, host.segments, len(table)
    )
    plan = forecasts.plan()
    values = sum(elements_of(layer, table) for _, layer in last_reads(plan))
    passes = math.prod(host.rows_and_calls)
    first = min((evaluation for evaluation, _ in plan), default=0)
    inputs = (len(run.timesteps) - first) * math.prod(table.sample_shape)
    guided = 2 * inputs if passes > 1 and type(host.target).__name__.startswith(RESCALED) else 0
    return _element_bytes(host) * (passes * (values + inputs) + guided)


def weight_bytes(host: Host) -> int:
    """Bytes of the weights of all models of a host."""
    return sum(part.nbytes for model in host.models.values() for part in model.parameters())


def _element_bytes(host: Host) -> int:
    """Bytes of a number that a model of a host puts out; quantised weights are no floating-point numbers."""
    for model in host.models.values():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return parameter.element_size()
    return torch.get_default_dtype().itemsize


class AliveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory of tensors that are made under it, for as long as they live, wherever they are kept.

    Weights, and whatever else was there before, are not counted, nor are views of them.

    >>> with AliveBytes() as alive:
    ...     kept, other = torch.zeros(8), torch.zeros(100)
    ...     del other
    >>> alive.nbytes
    32
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._note(args, kwargs, made=False)
        result = func(*args, **kwargs)
        self._note(result, {}, made=True)
        return result

    def _note(self, values: Any, more: Any, *, made: bool) -> None:
        """Notes storages that are new: made here, or there before."""
        for value in tree_leaves((values, more)):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                known = self._found.get(reference.cdata)
                if known is None or known[0].expired():
                    self._found[reference.cdata] = (reference, storage.nbytes() if made else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of what is alive now."""
        return sum(size for reference, size in self._found.values() if not reference.expired())
