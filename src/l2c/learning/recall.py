"""Calls of a network that a run before has made, with the very same inputs, answered from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from l2c.cache.patch import MethodPatch


class Recall:
    """Lets runs that begin as another one go on from where they part.

    The search of noise levels moves one level after another: all calls before that are those of the run that it is
    compared with, to the bit. A call whose inputs differ in anything is made.

    Args:
        models: Whose calls are remembered; they decide nothing by chance.

    Attributes:
        answered: How many calls were answered from memory.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._models = list(models)
        self._kept: list[tuple[Any, Any]] = []
        self._run: list[tuple[Any, Any]] = []
        self.answered = 0

    @contextmanager
    def run(self) -> Iterator[None]:
        """While a run is made."""
        self._run = []
        with ExitStack() as stack:
            for model in self._models:
                stack.callback(MethodPatch(model, "forward", self._call).remove)
            yield

    def keep(self) -> None:
        """Takes the last run for the one that others are compared with."""
        self._kept = self._run

    def _call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        place, inputs = len(self._run), (args, kwargs)
        known = self._kept[place] if place < len(self._kept) else None
        if known is not None and _alike(known[0], inputs):
            self.answered += 1
            self._run.append(known)
            return tree_map(_copy, known[1])
        made = original(*args, **kwargs)
        self._run.append((tree_map(_copy, inputs), tree_map(_copy, made)))
        return made


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _alike(one: Any, other: Any) -> bool:
    """Whether two nests of values are the same, tensors to the bit."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
            and bool(torch.equal(one, other))
        )
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping)
            and one.keys() == other.keys()
            and all(_alike(one[key], other[key]) for key in one)
        )
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_alike, one, other))
    return one is other or (
        isinstance(one, (bool, int, float, str)) and type(one) is type(other) and one == other
    )
