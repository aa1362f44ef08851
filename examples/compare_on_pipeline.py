"""Compare what makes a diffusers pipeline faster: fewer steps, caches, and schedules that were learned for it.

    python examples/compare_on_pipeline.py --pipeline ./pixart --prompt "a photo of a cat" --schedule fast

All variants start from the same noise and are judged by how far their pictures are from the reference, those of
`--reference-steps` steps, and by the seconds they take, in turn. Errors are absolute, for values from -1 to 1: mean,
95th percentile and worst. A cache is worth its name where fewer steps in the same time are farther.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

import l2c
from l2c.errors import L2CError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit code."""
    options = _parser().parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    call = {"class_labels": [options.label]} if options.prompt is None else {"prompt": options.prompt}
    call |= {key: value for key in ("height", "width") if (value := getattr(options, key))}

    def pictures(steps: int, schedule: l2c.CacheSchedule | None = None) -> tuple[np.ndarray, float]:
        made, begin = [], time.perf_counter()
        with nullcontext() if schedule is None else l2c.enable_cache(pipe, schedule):
            for seed in options.seeds:
                noise = torch.Generator().manual_seed(seed)
                made.append(pipe(**call, num_inference_steps=steps, generator=noise, output_type="np").images)
        return 2 * np.concatenate(made) - 1, time.perf_counter() - begin

    try:
        pipe = l2c.load_pipeline(options.pipeline, dtype=dtype, device=options.device, quiet=True)
        variants = _variants(pipe, options, call)
        reference, _ = pictures(options.reference_steps)
        errors: dict[str, np.ndarray] = {}
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.repetitions):
            for name, (steps, schedule) in variants.items():
                made, taken = pictures(steps, schedule)
                seconds[name].append(taken / len(options.seeds))
                errors[name] = np.sqrt(np.square(made - reference).mean(axis=(1, 2, 3)))
    except L2CError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'':44} {'evaluations':>11} {'s/picture':>10} {'error':>8} {'p95':>8} {'worst':>8}")
    for name, (steps, schedule) in variants.items():
        cost = steps * (1.0 if schedule is None else schedule.cost.fraction)
        figures = (errors[name].mean(), np.quantile(errors[name], 0.95), errors[name].max())
        taken, shown = statistics.median(seconds[name]), " ".join(f"{figure:8.4f}" for figure in figures)
        print(f"{name:44} {cost:11.2f} {taken:10.3f} {shown}")
    return 0


def _variants(
    pipe: DiffusionPipeline, options: argparse.Namespace, call: dict[str, object]
) -> dict[str, tuple[int, l2c.CacheSchedule | None]]:
    """Number of steps and schedule of every variant, by its name."""
    steps, call = options.steps, {**call, "num_inference_steps": options.steps}
    variants: dict[str, tuple[int, l2c.CacheSchedule | None]] = {"everything computed": (steps, None)}
    for share in (0.75, 0.5, 0.35):
        fewer = max(1, round(share * steps))
        variants[f"fewer steps, {fewer}"] = (fewer, None)
    for every in (2, 3):
        for predictor in ("copy", "taylor"):
            schedule = l2c.methods.interval(pipe, every=every, predictor=predictor, **call)
            variants[f"every {every}, {predictor}"] = (steps, schedule)
    for path in options.schedule:
        variants[path.name] = (steps, l2c.CacheSchedule.from_pretrained(path))
    return variants


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pipeline", required=True, help="folder or repository of a diffusers pipeline")
    parser.add_argument("--prompt", help="what to draw; without it, a class label is used")
    parser.add_argument("--label", type=int, default=1, help="class, for a class-conditional pipeline")
    parser.add_argument("--schedule", type=Path, nargs="*", default=[], help="files or folders of schedules")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--reference-steps", type=int, default=100)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--repetitions", type=int, default=3, help="rounds of timing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
