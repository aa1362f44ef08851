# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The pieces as one Triton kernel, for CUDA devices.

PyTorch's compiler makes the same passes, but reads a row twice when it is wider than 1024 and not a power of two. On an
H100 this kernel takes 13 us for 16 x 256 tokens of width 1152 where the compiled piece takes 21.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2c.engine.pending import Pending, settle, settle_join, settle_modulate, settle_norm
from l2c.models.dit import NORM_EPS

MAX_COUNT = 8
"""Forecasts that the kernel adds at most."""
MAX_DEPTH = 4
"""Stored values that a forecast of the kernel reads at most."""

NO_NORM, MODULATE, AFFINE, JOIN = range(4)


@triton.jit
def _term(value, weights, index: tl.constexpr, at, mask, WEIGHTED: tl.constexpr):
    term = tl.load(value + at, mask=mask, other=0.0).to(tl.float32)
    if WEIGHTED:
        term *= tl.load(weights + index)
    return term


@triton.jit
def _add(acc, a, b, c, d, weights, gate, at, gate_at, mask, DEPTH, WEIGHTED, GATED):
    term = _term(a, weights, 0, at, mask, WEIGHTED)
    if DEPTH > 1:
        term += _term(b, weights, 1, at, mask, WEIGHTED)
    if DEPTH > 2:
        term += _term(c, weights, 2, at, mask, WEIGHTED)
    if DEPTH > 3:
        term += _term(d, weights, 3, at, mask, WEIGHTED)
    if GATED:
        term *= tl.load(gate + gate_at, mask=mask, other=0.0).to(tl.float32)
    return acc + term


@triton.jit
def _kernel(
    x, stream, out, first, second,
    fresh, fresh_gate,
    a0, b0, c0, d0, w0, g0,
    a1, b1, c1, d1, w1, g1,
    a2, b2, c2, d2, w2, g2,
    a3, b3, c3, d3, w3, g3,
    a4, b4, c4, d4, w4, g4,
    a5, b5, c5, d5, w5, g5,
    a6, b6, c6, d6, w6, g6,
    a7, b7, c7, d7, w7, g7,
    tokens, width, gate_stride, row_stride, eps,
    FRESH: tl.constexpr, COUNT: tl.constexpr, DEPTH: tl.constexpr, WEIGHTED: tl.constexpr, GATED: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    at = row * width + column
    image = row // tokens
    gate_at = image * gate_stride + column
    acc = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if FRESH:
        acc = _add(acc, fresh, fresh, fresh, fresh, w0, fresh_gate, at, gate_at, mask, 1, False, GATED)
    if COUNT > 0:
        acc = _add(acc, a0, b0, c0, d0, w0, g0, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if COUNT > 1:
        acc = _add(acc, a1, b1, c1, d1, w1, g1, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if COUNT > 2:
        acc = _add(acc, a2, b2, c2, d2, w2, g2, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if COUNT > 3:
        acc = _add(acc, a3, b3, c3, d3, w3, g3, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if COUNT > 4:
        acc = _add(acc, a4, b4, c4, d4, w4, g4, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if COUNT > 5:
        acc = _add(acc, a5, b5, c5, d5, w5, g5, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if COUNT > 6:
        acc = _add(acc, a6, b6, c6, d6, w6, g6, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if COUNT > 7:
        acc = _add(acc, a7, b7, c7, d7, w7, g7, at, gate_at, mask, DEPTH, WEIGHTED, GATED)
    if KIND == 3:  # beside a long skip
        wide = row * 2 * width + column
        tl.store(out + wide, acc.to(out.dtype.element_ty), mask=mask)
        tl.store(out + wide + width, tl.load(first + at, mask=mask), mask=mask)
    else:
        tl.store(stream + at, acc.to(stream.dtype.element_ty), mask=mask)
    if KIND == 1 or KIND == 2:
        mean = tl.sum(acc, 0) / width
        centred = tl.where(mask, acc - mean, 0.0)
        normal = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
        if KIND == 1:  # shift and scale of the image
            place = image * row_stride + column
            scale = 1.0 + tl.load(second + place, mask=mask, other=0.0).to(tl.float32)
            shift = tl.load(first + place, mask=mask, other=0.0).to(tl.float32)
        else:  # weight and bias
            scale = tl.load(first + column, mask=mask, other=0.0).to(tl.float32)
            shift = tl.load(second + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, (normal * scale + shift).to(out.dtype.element_ty), mask=mask)


def fused(function: Callable[..., Any], x: Tensor, terms: tuple[Pending, ...], *rest: Any) -> Any:
    """A piece as one kernel; arguments and result as of `function`, one of the functions in `l2c.engine.pending`.

    Forecasts that read more than four values go through PyTorch.
    """
    forecasts = [term for term in terms if term.weights is not None or len(term.values) > 1]
    depth = max((len(term.values) for term in forecasts), default=1)
    if depth > MAX_DEPTH or not x.is_contiguous():
        return function(x, terms, *rest)
    plain = [term for term in terms if term.weights is None]
    if not forecasts:  # copies: the first term counts as fresh, which changes nothing
        forecasts, plain = plain[1:], plain[:1]
    assert len(plain) <= 1, "a computed layer settles what was pending"
    assert len(forecasts) <= MAX_COUNT
    fresh = plain[0] if plain else None
    images, tokens, width = x.shape
    kind, out, norm = NO_NORM, x, (x, x)
    stream = x if function is settle_join else torch.empty_like(x)
    row_stride, eps = 0, 0.0
    if function is settle_modulate:
        kind, out, norm, row_stride, eps = MODULATE, torch.empty_like(x), rest, rest[0].stride(0), NORM_EPS
    elif function is settle_norm:
        kind, out, norm, eps = AFFINE, torch.empty_like(x), rest[:2], rest[2]
    elif function is settle_join:
        kind, out, norm = JOIN, x.new_empty(images, tokens, 2 * width), (rest[0].contiguous(), x)
    gates = [term.gate for term in terms if term.gate is not None]
    slots: list[Tensor] = []
    for term in forecasts:
        values = [value.contiguous() for value in term.values]
        slots += [*values, *(values[:1] * (MAX_DEPTH - len(values)))]
        slots += [x if term.weights is None else term.weights, x if term.gate is None else term.gate]
    slots += [x] * ((MAX_DEPTH + 2) * (MAX_COUNT - len(forecasts)))
    _kernel[(images * tokens,)](
        x, stream, out, *norm,
        x if fresh is None else fresh.values[0].contiguous(),
        x if fresh is None or fresh.gate is None else fresh.gate,
        *slots,
        tokens, width, gates[0].stride(0) if gates else 0, row_stride, eps,
        FRESH=fresh is not None, COUNT=len(forecasts), DEPTH=depth,
        WEIGHTED=any(term.weights is not None for term in forecasts), GATED=bool(gates),
        KIND=kind, BLOCK=triton.next_power_of_2(width), num_warps=2,
    )  # fmt: skip
    if function is settle:
        return stream
    return out if function is settle_join else (stream, out)
