"""Small models with random weights and a call counter, for tests of l2c and of what builds on it."""

from l2c.testing.families import TINY, TinyTransformer
from l2c.testing.models import count_calls, tiny_diffusers_dit, tiny_dit, tiny_uvit

__all__ = ["TINY", "TinyTransformer", "count_calls", "tiny_diffusers_dit", "tiny_dit", "tiny_uvit"]
