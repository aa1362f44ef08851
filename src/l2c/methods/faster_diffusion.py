"""Faster Diffusion: the encoder at key evaluations only, the decoder at all of them."""

from __future__ import annotations

from typing import Any

from l2c.errors import ConfigError
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, check_every, pattern
from l2c.schedule.schedule import CacheSchedule

PUBLISHED_STEPS = 50
PUBLISHED_KEYS = (0, 1, 2, 3, 5, 10, 15, 25, 35)
"""Key evaluations of the authors' non-uniform choice for 50 steps: many at the beginning, few later."""


def faster_diffusion(
    target: Any,
    *,
    every: int | None = None,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at key evaluations, and in between only the decoder on the encoder's last features.

    For a U-ViT: the encoder is its in-blocks and the middle block, the decoder its out-blocks.

    What differs: the publication hands the encoder's *features* on; here the residual *branches* of its blocks
    are, on top of the current noisy input, which is less out of date. Decoding several evaluations in parallel,
    which the constant features allow, and the injection of the initial noise, which is meant to bring back
    texture, are left out: neither is a choice of what to compute.

    Args:
        target: A U-ViT, or a host of one; its weights are not looked at.
        every: Uniform distance of the key evaluations; None takes the published ones, stretched to `steps`.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If the model has no encoder, or an argument is out of range.

    Source: Li et al., arXiv 2312.09608; section 3.3 and the released code for Stable Diffusion at 50 steps.
    """
    host = host_of(target, faster_diffusion, **run)
    if host.table.architecture != "uvit":
        raise ConfigError(
            f"faster-diffusion needs a model with an encoder and a decoder, a U-ViT; got a {host.table.architecture}"
        )
    count = len(host.run.timesteps)
    if every is None:
        keys = {min(count - 1, round(key * count / PUBLISHED_STEPS)) for key in PUBLISHED_KEYS}
    else:
        check_every(every)
        keys = set(range(0, count, every))
    encoder = [i for i, name in enumerate(host.table.names) if not name.startswith("out_blocks")]
    compute = all_computed(host)
    for evaluation in set(range(count)) - keys:
        compute[evaluation, encoder] = False
    return pattern(host, compute, {"method": "faster-diffusion", "keys": sorted(keys)})


METHOD = Method(
    "faster-diffusion",
    "Faster Diffusion",
    faster_diffusion,
    "arXiv 2312.09608",
    published={},
    choices=({}, *({"every": every} for every in range(1, 9))),
    architectures=("uvit",),
)
