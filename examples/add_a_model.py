"""Add a model that l2c does not know: one registration, then a cache in a sampling loop of your own.

    python examples/add_a_model.py

The model is a small transformer of random weights; what it makes is noise, but what is computed is counted.
"""

from __future__ import annotations

import sys

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import l2c
from l2c.hosts.pipeline.runs import describe_run
from l2c.layers import find_layers, measure_layers, register_blocks
from l2c.schedule.contract import Contract

WIDTH, TOKENS = 32, 16


class SelfAttention(nn.Module):
    """Attention among the tokens of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the branch for the residual stream (B, tokens, width)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class Block(nn.Module):
    """Attention, then an MLP: two submodules whose outputs are added to the stream, so two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), SelfAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream after the block."""
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.norm(x))


class MyTransformer(nn.Module):
    """A transformer whose class nobody has told l2c about."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """Velocity for samples (B, tokens, width)."""
        x = hidden_states + self.time(timestep[:, None, None] / 1000)
        for block in self.blocks:
            x = block(x)
        return x


def register() -> None:
    """The one line: the class by package and name, its family, and which submodules of its blocks are layers."""
    package = MyTransformer.__module__.partition(".")[0]
    register_blocks(
        f"{package}.MyTransformer", "my-model", {"blocks": {"attention": "attention", "mlp": "mlp"}}
    )


@torch.no_grad()
def main() -> int:
    """Runs the example; returns the exit code."""
    register()
    torch.manual_seed(0)
    model, scheduler, noise = (
        MyTransformer().eval(),
        FlowMatchEulerDiscreteScheduler(),
        torch.randn(1, TOKENS, WIDTH),
    )

    def sample() -> Tensor:
        scheduler.set_timesteps(8)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(1)), t, x).prev_sample
        return x

    # what a layer costs is measured, at the shapes of an actual call
    table, _ = measure_layers(model, find_layers(model), (noise, torch.tensor([500.0])), {})
    scheduler.set_timesteps(8)
    compute = torch.ones(8, len(table), dtype=torch.bool)
    compute[1::2] = False  # everything is reused at every second evaluation
    schedule = l2c.CacheSchedule(compute, table, Contract(describe_run(scheduler)))
    bare = sample()
    with l2c.enable_cache(model, schedule, scheduler=scheduler) as cache:
        cached = sample()
        print(cache.summary())
    distance = ((cached - bare).square().mean() / bare.square().mean()).sqrt()
    print(f"distance {distance:.3f} at {schedule.cost.fraction:.0%} of the multiply-accumulates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
