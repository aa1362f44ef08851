"""The Triton kernel against the pieces that it stands for; on the CPU under Triton's interpreter, where it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from l2c.engine.pending import Pending, settle, settle_join, settle_modulate, settle_norm

CASES = [
    (1, 1, 0),
    (1, 1, 3),
    (1, 0, 8),
    (2, 1, 3),
    (2, 0, 8),
    (3, 0, 1),
    (3, 0, 4),
    (3, 1, 7),
    (4, 0, 5),
    (5, 0, 2),
]
"""(values of a forecast, whether a fresh output comes first, how many forecasts)"""


def worst_difference(device: str, dtype: torch.dtype) -> float:
    """Largest difference between the kernel and the plain pieces, over all kinds."""
    from l2c.engine.kernels import fused

    torch.manual_seed(0)
    rows, tokens, width = 2, 5, 24

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def value() -> torch.Tensor:
        return tensor(rows, tokens, width)

    table = tensor(rows, 3, 6 * width)  # of three blocks: its parts are strided
    shift_a, scale_a, gate_a, _, _, gate_m = table[:, 1].unsqueeze(1).chunk(6, -1)
    worst = 0.0
    for gated in (True, False):
        for depth, fresh, count in CASES:
            weights = torch.randn(8, device=device) if depth > 1 else None
            terms = [Pending((value(),), None, gate_a if gated else None)] * fresh
            terms += [
                Pending(tuple(value() for _ in range(depth)), weights, gate_m if gated else None)
                for _ in range(count)
            ]
            x = value()
            for piece, rest in (
                (settle, ()),
                (settle_modulate, (shift_a, scale_a)),
                (settle_norm, (tensor(width), tensor(width), 1e-5)),
                (settle_join, (value(),)),
            ):
                ours, plain = fused(piece, x, tuple(terms), *rest), piece(x, tuple(terms), *rest)
                for a, b in zip(
                    ours if isinstance(ours, tuple) else (ours,),
                    plain if isinstance(plain, tuple) else (plain,),
                    strict=True,
                ):
                    assert a.shape == b.shape and a.dtype == b.dtype  # noqa: PT018
                    worst = max(worst, float((a.float() - b.float()).abs().max()))
    return worst


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
def test_the_kernel_on_a_gpu(dtype, tolerance):
    assert worst_difference("cuda", dtype) < tolerance


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_kernel_under_the_interpreter():
    code = "import sys, torch; sys.path.insert(0, 'tests/engine'); import test_kernels as t; "
    code += "assert t.worst_difference('cpu', torch.float32) < 1e-4"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
