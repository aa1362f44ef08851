"""Small models with random weights and a call counter, for tests of l2c and of what builds on it."""

from l2c.testing.models import count_calls, tiny_diffusers_dit, tiny_dit, tiny_uvit
from l2c.testing.pipelines import (
    TINY_PIPELINES,
    tiny_call,
    tiny_interval,
    tiny_mixed,
    tiny_pipeline,
    tiny_run,
)
from l2c.testing.tiny_transformer import TinyTransformer
from l2c.testing.transformers import TINY

__all__ = [
    "TINY",
    "TINY_PIPELINES",
    "TinyTransformer",
    "count_calls",
    "tiny_call",
    "tiny_diffusers_dit",
    "tiny_dit",
    "tiny_interval",
    "tiny_mixed",
    "tiny_pipeline",
    "tiny_run",
    "tiny_uvit",
]
