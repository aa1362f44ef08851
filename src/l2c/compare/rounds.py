"""Times all variants of a comparison in turn, one round after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from l2c.bench.timing import interleave
from l2c.compare.candidates import Candidate, Sample
from l2c.compare.model import ComparedModel


@torch.no_grad()
def time_round(
    candidates: Mapping[str, Candidate],
    model: ComparedModel,
    seeds: Sequence[int],
    on_run: Callable[[str], None],
) -> dict[str, list[float]]:
    """Seconds of one round, in which every candidate samples the same pictures once; the first one warms up.

    Args:
        candidates: By name, in the order of their turns.
        model: What is sampled. Its decoding is timed apart, as `decode`.
        seeds: Of the pictures.
        on_run: Called with the name of each before its turn.
    """
    active: dict[str, Sample] = {}
    examples = model.examples(seeds)

    @contextmanager
    def around(name: str) -> Iterator[None]:
        with candidates[name].ready() as (sample, _):
            active[name] = sample
            yield
            del active[name]

    def turn(name: str) -> Callable[[], Tensor]:
        return lambda: active[name](*examples)

    timings = interleave(
        {name: turn(name) for name in candidates},
        repetitions=1,
        warm_ups={name: turn(name) for name in list(candidates)[:1]},
        on_run=lambda name, _: on_run(name),
        around=around,
    )
    seconds = {name: list(timing.seconds) for name, timing in timings.items()}
    decoding = model.decode_seconds(examples[0])
    return {**seconds, "decode": decoding} if decoding else seconds
