"""Stored values that wait for the backward pass in CPU memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from l2c.cache.values import Value


class Resting:
    """Copies of values in CPU memory, pinned where they come from a GPU; one of each, however often it is read."""

    def __init__(self) -> None:
        self._copies = WeakTensorKeyDictionary()

    def put(self, values: tuple[Value, ...]) -> Callable[[], tuple[Value, ...]]:
        """Copies values; returns what brings them back to their device, cut off from their graph."""
        resting = [[self._copy(part) for part in _parts(value)] for value in values]
        whole = [isinstance(value, Tensor) for value in values]

        def bring() -> tuple[Value, ...]:
            back = [tuple(None if part is None else part() for part in parts) for parts in resting]
            return tuple(parts[0] if alone else parts for parts, alone in zip(back, whole, strict=True))  # type: ignore[misc]

        return bring

    def _copy(self, part: Tensor | None) -> Callable[[], Tensor] | None:
        if part is None:
            return None
        if part not in self._copies:
            on_gpu = part.device.type == "cuda"
            copy = torch.empty_like(part, device="cpu", requires_grad=False, pin_memory=on_gpu)
            self._copies[part] = copy.copy_(part.detach(), non_blocking=on_gpu)
        copy, device, needed = self._copies[part], part.device, part.requires_grad
        return lambda: copy.to(device, non_blocking=True).detach().requires_grad_(needed)


def _parts(value: Value) -> tuple[Tensor | None, ...]:
    return (value,) if isinstance(value, Tensor) else value
