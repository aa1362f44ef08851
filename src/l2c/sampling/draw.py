"""Random numbers that depend on a seed and on what they are for, and on nothing that was drawn before."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor


def draw(seed: int, *key: int | str) -> torch.Generator:
    """A generator whose numbers depend on a seed and on what they are for.

    >>> bool((torch.rand(3, generator=draw(0, 7)) == torch.rand(3, generator=draw(0, 7))).all())
    True
    """
    number = hashlib.sha256(json.dumps([seed, *key]).encode()).digest()[:4]
    return torch.Generator().manual_seed(int.from_bytes(number, "big"))


def random_labels(generator: torch.Generator, count: int, num_classes: int) -> Tensor:
    """Class labels (count,) drawn evenly."""
    return torch.randint(num_classes, (count,), generator=generator)
