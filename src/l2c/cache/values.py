"""What a layer puts out: a tensor, or a tuple of tensors where an attention serves image and text at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from l2c.cache.predictors import combine

Value = Tensor | tuple[Tensor | None, ...]
"""Output of a layer. A tuple has None where a model passes nothing on."""


def combine_values(values: Sequence[Value], weights: Sequence[float | Tensor]) -> Value:
    """`combine`, for each tensor of a tuple by itself."""
    return _each(lambda *parts: combine(parts, weights), *values)


def mix_values(share: Tensor, new: Value, old: Value) -> Value:
    """`share * new + (1 - share) * old`, for each tensor of a tuple by itself."""
    return _each(lambda a, b: share * a + (1 - share) * b, new, old)


def value_bytes(value: Value) -> int:
    """Bytes that it occupies."""
    parts = (value,) if isinstance(value, Tensor) else value
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def placeholder(value: Value) -> Value:
    """Zeros of the same shape that occupy no memory, for an output that nobody will read."""
    return _each(lambda part: part.new_zeros(()).expand(part.shape), value)


def _each(function: Callable[..., Tensor], *values: Value) -> Value:
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    columns = zip(*values, strict=True)
    return tuple(None if column[0] is None else function(*column) for column in columns)
