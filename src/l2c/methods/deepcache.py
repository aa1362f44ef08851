"""DeepCache: shallow blocks at every evaluation, deep ones at every N-th."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from l2c.documents import Whole, check_value
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, blocks_of, check_every, pattern
from l2c.schedule.schedule import CacheSchedule


def deepcache(
    target: Any,
    *,
    every: int = 5,
    shallow: int = 1,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at evaluations 0, every, 2 * every, ..., and only the shallow blocks in between.

    In a U-ViT the shallow blocks are the first and the last `shallow` ones, which its long skips join, as the
    outermost skip branch of the U-Net in the publication. A DiT has no skips; the same range of blocks is used.

    What differs: the publication hands the *feature* that enters the shallow decoder on from the last full
    evaluation. Here the residual *branches* of the deep blocks are, and are added to what the shallow blocks have
    just computed, so that less is out of date; the long skips of a U-ViT and the adaLN gates of a DiT are always
    computed. Only its uniform interval is offered, not the non-uniform 1:N variant.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        every: Length of the interval.
        shallow: Blocks on either end that are always computed.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Ma et al., arXiv 2312.00858; section 3.3, figure 3.
    """
    check_every(every)
    host = host_of(target, deepcache, **run)
    blocks = blocks_of(host.table)
    on_either_end = Annotated[Whole, Field(ge=0, le=len(blocks) // 2)]
    check_value(f"shallow, which counts blocks on either end of {len(blocks)},", shallow, on_either_end)
    deep = [layer for block in blocks[shallow : len(blocks) - shallow] for layer in block]
    compute = all_computed(host)
    for evaluation in range(len(host.run.timesteps)):
        if evaluation % every:
            compute[evaluation, deep] = False
    return pattern(host, compute, {"method": "deepcache", "every": every, "shallow": shallow})


METHOD = Method(
    "deepcache",
    "DeepCache",
    deepcache,
    "arXiv 2312.00858",
    published={"every": 5, "shallow": 1},
    choices=tuple({"every": every} for every in range(1, 13)),
)
