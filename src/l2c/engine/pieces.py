"""What runs between the matrix products: sums into the residual stream, stand-ins and norms, fused into one kernel.

A layer's output is not added to the stream at once. It is *pending* until the next layer needs the stream, so that the
sum, the stand-ins of reused layers and the next norm are one pass over the tokens. Such a piece depends on nothing but
how many terms are pending, so a handful of compiled pieces serves every block and every schedule of a model.
"""

from __future__ import annotations

import importlib.util
import logging
import types
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.models.dit import modulated_norm

logger = logging.getLogger(__name__)

MAX_PENDING = {"cuda": 8, "cpu": 4}
"""Layers whose outputs wait at most. More save passes over the stream and make more kinds of pieces."""


class Pending(NamedTuple):
    """Output of a layer that has not been added to the stream yet.

    Attributes:
        values: What it computed, or the stored values that stand in for it; (B, T, D) each.
        weights: Weights (len(values),) of the stored values; None for a single value that counts as it is.
        gate: Factor (B, 1, D) of the output; None for none.
    """

    values: tuple[Tensor, ...]
    weights: Tensor | None
    gate: Tensor | None

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What a piece depends on."""
        return len(self.values), self.weights is not None, self.gate is not None


def settle(x: Tensor, pending: tuple[Pending, ...]) -> Tensor:
    """The stream (B, T, D) with everything pending added."""
    for values, weights, gate in pending:
        term = values[0]
        if weights is not None:
            term = term * weights[0]
            for index, value in enumerate(values[1:], start=1):
                term = term + value * weights[index]
            term = term.to(x.dtype)
        x = x + term if gate is None else torch.addcmul(x, gate, term)
    return x


def settle_modulate(
    x: Tensor, pending: tuple[Pending, ...], shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The stream with everything pending added, and its modulated norm."""
    x = settle(x, pending)
    return x, modulated_norm(x, shift, scale)


def settle_norm(
    x: Tensor, pending: tuple[Pending, ...], weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The stream with everything pending added, and its norm."""
    x = settle(x, pending)
    return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def settle_join(x: Tensor, pending: tuple[Pending, ...], skip: Tensor) -> Tensor:
    """The stream with everything pending added, beside a long skip: (B, T, 2 * D)."""
    return torch.cat([settle(x, pending), skip], dim=-1)


class Pieces:
    """The pieces, made once per kind of pending terms and shape, or run as they are.

    On CUDA devices they are one Triton kernel (`l2c.engine.kernels`), or plain where there is no Triton; elsewhere
    PyTorch compiles them. Every piece that it compiles is then a function of its own, with one entry in the compiler's
    cache. So the compiler never meets a second shape or kind in one function, neither recompiles nor runs into its
    limit of recompilations, and any number of shapes coexist.

    Args:
        compiled: Whether to compile.
        max_pending: Layers whose outputs wait at most.
    """

    def __init__(self, compiled: bool, max_pending: int = 4) -> None:
        self.compiled, self.max_pending = compiled, max_pending
        self._variants: dict[Any, Callable[..., Any]] = {}

    def __len__(self) -> int:
        """How many have been made."""
        return len(self._variants)

    def __call__(self, function: Callable[..., Any], x: Tensor, pending: list[Pending], *rest: Any) -> Any:
        """Runs a piece and leaves nothing pending."""
        terms = tuple(pending)
        pending.clear()
        if not self.compiled or (x.is_cuda and not has_triton()):
            return function(x, terms, *rest)
        strides = tuple(part.stride() for part in rest if isinstance(part, Tensor))
        key = (function, tuple(term.kind for term in terms), x.shape, x.dtype, x.device, strides)
        variant = self._variants.get(key)
        if variant is None:
            logger.info("compiling %s for %d pending", function.__name__, len(terms))
            make = _triton if x.is_cuda else _compile
            variant = self._variants[key] = make(function, len(self._variants))
        try:
            return variant(x, terms, *rest)
        except Exception as error:
            if not _is_compiler(error):
                raise
            self.compiled = False
            warnings.warn(
                f"the pieces of the engine cannot be compiled here ({type(error).__name__}), so they run as they are, "
                "which is slower; PyTorch's compiler needs a C++ compiler on CPUs",
                stacklevel=2,
            )
            return function(x, terms, *rest)


def _is_compiler(error: Exception) -> bool:
    """Whether an error is that of PyTorch's compiler, and not of what it compiles."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


@cache
def has_triton() -> bool:
    """Whether Triton is there to make kernels with."""
    return importlib.util.find_spec("triton") is not None


def _triton(function: Callable[..., Any], index: int) -> Callable[..., Any]:
    from l2c.engine.kernels import fused

    return partial(fused, function)


def _compile(function: Callable[..., Any], index: int) -> Callable[..., Any]:
    """A compiled copy of a function whose code object is its own."""
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{index}")
    copy = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__)
    return torch.compile(copy, fullgraph=True, dynamic=False)
