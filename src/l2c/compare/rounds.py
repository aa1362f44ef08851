"""Times all variants of a comparison in turn, one round after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from l2c.bench.timing import interleave
from l2c.compare.candidates import Candidate, Sample
from l2c.compare.pictures import Pictures
from l2c.hosts.base import Examples


@torch.no_grad()
def time_round(
    candidates: Mapping[str, Candidate],
    pictures: Pictures,
    examples: Examples,
    on_run: Callable[[str], None],
) -> dict[str, list[float]]:
    """Seconds of one round, in which every candidate samples the same pictures once; the first one warms up.

    Args:
        candidates: By name, in the order of their turns.
        pictures: Decodes them, which is timed apart, as `decode`.
        examples: Of the pictures.
        on_run: Called with the name of each before its turn.
    """
    active, made = dict[str, Sample](), list[Tensor]()

    @contextmanager
    def around(name: str) -> Iterator[None]:
        with candidates[name].ready() as (sample, _):
            active[name] = sample
            yield
            del active[name]

    def turn(name: str) -> Callable[[], None]:
        def run() -> None:
            made[:] = [active[name](examples)]

        return run

    timings = interleave(
        {name: turn(name) for name in candidates},
        repetitions=1,
        warm_ups={name: turn(name) for name in list(candidates)[:1]},
        on_run=lambda name, _: on_run(name),
        around=around,
    )
    seconds = {name: list(timing.seconds) for name, timing in timings.items()}
    decoding = pictures.decode_seconds(made[0], examples)
    return {**seconds, "decode": decoding} if decoding else seconds
