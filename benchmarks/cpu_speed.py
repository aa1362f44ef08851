"""Does a schedule that computes half save half of the time? Measured on the CPU with the embedded DiT.

    python benchmarks/cpu_speed.py --out results/cpu-speed.json

Variants of sampling the same pictures run in turn in one process, each as `l2c.sample` is called, so that
enabling and disabling the cache counts too. With the eager engine:

- `none`: no schedule, the model as it is;
- `everything`: a schedule that computes every layer, which must give the same bits and cost next to nothing;
- `interval`: every layer at every second evaluation, none in between, where the last output is copied;
- `three terms`: the same with forecasts that read three stored outputs, as learned ones do;
- `blocks`: half of the blocks at every evaluation after the first, the other half at the next.

All but `blocks` also with the engine that runs compiled pieces, which are made before.

The speed-up of a repetition is the time of `none` over that of the variant in the same repetition. The record
holds every raw time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import l2c
from l2c.allocator import keep_freed_memory
from l2c.bench.timing import Timing, interleave
from l2c.errors import L2CError
from l2c.records import Record, describe_device
from l2c.schedule.schedule import CacheSchedule

MODEL = "dit-mini-cifar10"
SOLVER = "ddim"
BASELINE = "none"


def variants_of(model: torch.nn.Module, steps: int) -> dict[str, tuple[CacheSchedule | None, str]]:
    """What takes turns, schedule and engine, by name."""
    everything = l2c.methods.interval(model, solver=SOLVER, steps=steps, every=1)
    evaluations = torch.arange(steps)[:, None]
    blocks = torch.arange(len(everything.layers))[None, :] // 2  # two layers each
    compute = (evaluations + blocks) % 2 == 0
    compute[0] = True
    interval = l2c.methods.interval(model, solver=SOLVER, steps=steps, every=2)
    three_terms = l2c.methods.interval(model, solver=SOLVER, steps=steps, every=2, predictor="taylor-2")
    blocks = replace(everything, compute=compute, provenance={"method": "alternating blocks"})
    return {
        BASELINE: (None, "eager"),
        "everything": (everything, "eager"),
        "interval": (interval, "eager"),
        "three terms": (three_terms, "eager"),
        "blocks": (blocks, "eager"),
        "none, compiled": (None, "compile"),
        "everything, compiled": (everything, "compile"),
        "interval, compiled": (interval, "compile"),
        "three terms, compiled": (three_terms, "compile"),
    }


def measure(images: int, steps: int, repetitions: int) -> Record:
    """Times all of them against each other."""
    model = l2c.load_model(MODEL)
    variants = variants_of(model, steps)
    pictures: dict[str, torch.Tensor] = {}

    def run(name: str) -> None:
        schedule, engine = variants[name]
        pictures[name] = l2c.sample(
            model, list(range(images)), solver=SOLVER, steps=steps, schedule=schedule, engine=engine
        )

    timings = interleave({name: lambda name=name: run(name) for name in variants}, repetitions)
    return Record(
        command="benchmarks/cpu_speed.py",
        config={"model": MODEL, "solver": SOLVER, "steps": steps, "guidance": 1.5, "images": images},
        seeds=tuple(range(images)),
        timings={name: list(timing.seconds) for name, timing in timings.items()},
        results={
            "everything_is_bit_equal": torch.equal(pictures["everything"], pictures[BASELINE]),
            "variants": {
                name: figures(timing, timings[BASELINE], variants[name][0])
                for name, timing in timings.items()
            },
        },
        device=describe_device("cpu"),
    )


def figures(timing: Timing, baseline: Timing, schedule: CacheSchedule | None) -> dict[str, Any]:
    """Times and speed-ups of one variant, with the share of the work that its schedule leaves."""
    speedups = [slow / fast for slow, fast in zip(baseline.seconds, timing.seconds, strict=True)]
    return {
        "macs_fraction": 1.0 if schedule is None else schedule.cost.fraction,
        "layers_computed": 1.0 if schedule is None else schedule.compute.double().mean().item(),
        "median_s": timing.median_s,
        "min_s": timing.min_s,
        "max_s": timing.max_s,
        "speedup": statistics.median(speedups),
        "speedup_min": min(speedups),
        "speedup_max": max(speedups),
        "speedups": speedups,
    }


def table(results: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{'schedule':21}{'MACs':>7}{'median s':>10}{'min - max s':>15}{'speed-up':>10}{'min - max':>13}"
    ]
    for name, row in results["variants"].items():
        seconds = f"{row['min_s']:.2f} - {row['max_s']:.2f}"
        speedups = f"{row['speedup_min']:.2f} - {row['speedup_max']:.2f}"
        lines.append(
            f"{name:21}{row['macs_fraction']:7.1%}{row['median_s']:10.2f}{seconds:>15}"
            f"{row['speedup']:10.2f}{speedups:>13}"
        )
    lines.append(f"computing everything is bit-equal to no schedule: {results['everything_is_bit_equal']}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the figures and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/cpu-speed.json"), help="the record to write"
    )
    parser.add_argument("--images", type=int, default=2, help="pictures at a time (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="evaluations (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=9, help="timed rounds (default %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch; where other programs run too, take 1")
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as the program does
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        record = measure(options.images, options.steps, options.repetitions)
        record.save(options.out)
    except L2CError as error:
        print(f"cpu_speed: {error}", file=sys.stderr)
        return 1
    print(table(record.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
