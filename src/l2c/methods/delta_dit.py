"""Delta-DiT: early evaluations reuse the rear blocks, late ones the front blocks."""

from __future__ import annotations

from typing import Any

from l2c.documents import Share, check_value
from l2c.hosts.targets import host_of
from l2c.methods.base import Method, all_computed, blocks_of, check_every, pattern
from l2c.schedule.schedule import CacheSchedule


def delta_dit(
    target: Any,
    *,
    every: int = 2,
    share: float = 0.75,
    boundary: float = 0.5,
    **run: Any,
) -> CacheSchedule:
    """Computes everything at evaluations 0, every, 2 * every, ...; in between it reuses some of the blocks.

    These are the rear blocks up to `boundary`, while the outline is drawn, and the front blocks after it, where
    details are. The publication stores the change that the range of blocks makes to its input (its Delta-Cache),
    which is the sum of their branches, and that is what is reused here.

    What differs: the branches are stored before their adaLN gates, so that the gates are always current. At the
    boundary, a block that was not reused before is reused with the value of the last evaluation at which it ran,
    which may be newer than the last full one.

    Args:
        target: A model, a diffusers pipeline, or a host; its weights are not looked at.
        every: Length of the interval.
        share: Share of the blocks that is reused. With `every` 2, three quarters leave the 62 % of the work that
            the published speed-up of 1.6 at 20 steps amounts to.
        boundary: Share of the evaluations at which rear blocks give way to front blocks. The authors choose it per
            model; half is ours.
        run: How the target is sampled, see `l2c.learn`.

    Raises:
        ConfigError: If an argument is unknown or out of range.

    Source: Chen et al., arXiv 2406.01125; sections 3.3 and 3.4.
    """
    check_every(every)
    check_value("share", share, Share)
    check_value("boundary", boundary, Share)
    host = host_of(target, delta_dit, **run)
    blocks = blocks_of(host.table)
    cached = round(share * len(blocks))
    front = [layer for block in blocks[:cached] for layer in block]
    rear = [layer for block in blocks[len(blocks) - cached :] for layer in block]
    compute = all_computed(host)
    for evaluation in range(len(host.run.timesteps)):
        if evaluation % every:
            early = evaluation < boundary * len(host.run.timesteps)
            compute[evaluation, rear if early else front] = False
    settings = {"every": every, "share": share, "boundary": boundary}
    return pattern(host, compute, {"method": "delta-dit", **settings})


METHOD = Method(
    "delta-dit",
    "Delta-DiT",
    delta_dit,
    "arXiv 2406.01125",
    published={"every": 2, "share": 0.75},
    choices=tuple(
        {"every": every, "share": share} for every in (2, 3, 4, 6) for share in (0.75, 0.25, 0.5, 0.9)
    ),
    unsuited=("uvit",),
)
