"""What a layer puts out: a tensor, or a tuple of tensors where an attention serves image and text at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l2c.schedule.forecast import combine

Value = Tensor | tuple[Tensor | None, ...]
"""Output of a layer. A tuple has None where a model passes nothing on."""


def combine_values(values: Sequence[Value], weights: Sequence[float | Tensor]) -> Value:
    """`combine`, for each tensor of a tuple by itself."""
    return _each(lambda *parts: combine(parts, weights), *values)


def mix_values(share: Tensor, new: Value, old: Value) -> Value:
    """`share * new + (1 - share) * old`, for each tensor of a tuple by itself."""
    return _each(lambda a, b: share * a + (1 - share) * b, new, old)


def copy_value(value: Value) -> Value:
    """The same numbers in memory of their own."""
    return _each(Tensor.clone, value)


def own_value(value: Value) -> Value:
    """A value that holds no memory but its own: a part of a larger tensor, which would keep all of it, is copied.

    The attention of Stable Diffusion 3's last block puts out its text as such a part.
    """
    parts = (value,) if isinstance(value, Tensor) else value
    if not any(part is not None and _is_part(part) for part in parts):
        return value
    return _each(lambda part: part.clone() if _is_part(part) else part, value)


def _is_part(tensor: Tensor) -> bool:
    """Whether a tensor keeps more memory than its own."""
    return tensor.untyped_storage().nbytes() > tensor.nbytes


def write_value(place: Value, value: Value) -> None:
    """Writes a value over another of the same form."""
    _each(Tensor.copy_, place, value)


def split_value(value: Value, parts: int) -> list[Value]:
    """The value of each part of the rows; itself for one part."""
    if parts == 1:
        return [value]
    if isinstance(value, Tensor):
        return list(value.chunk(parts))
    columns = [(None,) * parts if part is None else part.chunk(parts) for part in value]
    return [tuple(column[index] for column in columns) for index in range(parts)]


def join_values(values: Sequence[Value]) -> Value:
    """Inverse of `split_value`."""
    return values[0] if len(values) == 1 else _each(lambda *parts: torch.cat(parts), *values)


def value_bytes(value: Value) -> int:
    """Bytes that it occupies."""
    parts = (value,) if isinstance(value, Tensor) else value
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def weigh_values(values: Sequence[Value], row: Tensor) -> Value:
    """`combine_values` with weights that a compiler does not see as constants.

    Args:
        values: What to combine.
        row: Weights (at least as many as there are values), the further ones without meaning.
    """
    return _each(lambda *parts: _weigh(parts, row), *values)


def _weigh(parts: Sequence[Tensor], row: Tensor) -> Tensor:
    precise = torch.promote_types(parts[0].dtype, torch.float32)  # a weight must not be rounded to bfloat16
    total = parts[0].to(precise) * row[0]
    for index, part in enumerate(parts[1:], start=1):
        total = total + part.to(precise) * row[index]
    return total.to(parts[0].dtype)


class Blank:
    """Zeros that occupy no memory, in the shape of an output that nobody will read.

    A compiled region only notes the shape and makes its zeros itself: as an output of it they would be stored.
    """

    def __init__(self) -> None:
        self._form: Any = None
        self._zeros: Value | None = None

    @property
    def known(self) -> bool:
        """Whether an output has been noted."""
        return self._form is not None

    def note(self, value: Value) -> None:
        """Notes the shape of an output."""
        form = _form(value)
        if torch.compiler.is_compiling() or form != self._form:  # a compiler would guard what it compares
            self._form, self._zeros = form, None

    def zeros(self) -> Value:
        """Zeros of that shape."""
        if torch.compiler.is_compiling():
            zeros: Value = _zeros(self._form)
            return zeros
        if self._zeros is None:
            self._zeros = _zeros(self._form)
        return self._zeros


def _form(value: Value) -> Any:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.device)
    return [None if part is None else _form(part) for part in value]


def _zeros(form: Any) -> Any:
    if isinstance(form, list):
        return tuple(None if part is None else _zeros(part) for part in form)
    shape, dtype, device = form
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


def _each(function: Callable[..., Tensor], *values: Value) -> Value:
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    columns = zip(*values, strict=True)
    return tuple(None if column[0] is None else function(*column) for column in columns)
