"""What settles pending terms, fused into one kernel: a Triton kernel on CUDA devices, else what PyTorch compiles.

A piece depends on nothing but how many terms are pending, so a handful serves every block and every schedule.
"""

from __future__ import annotations

import importlib.util
import logging
import types
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from l2c.engine.pending import Pending

logger = logging.getLogger(__name__)

MAX_PENDING = {"cuda": 8, "cpu": 4}
"""Layers whose outputs wait at most. More save passes over the stream and make more kinds of pieces."""


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
