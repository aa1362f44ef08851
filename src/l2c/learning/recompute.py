"""Memory for time: what a layer needs for its gradient is worked out again instead of kept."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from l2c.cache.policy import Compute
from l2c.cache.values import Value


def again_in_backward(compute: Compute) -> Value:
    """Computes a layer, keeping only its inputs for the backward pass, which computes it again."""
    value: Value = checkpoint(compute, use_reentrant=False) if torch.is_grad_enabled() else compute()
    return value
