"""Minutes and memory of learning one budget on DiT-XL/2, with random weights.

    python benchmarks/learning_cost.py --device cuda --out results/learning-cost.json

Weights are random, so what is learned is of no use; time and memory are those of the published weights. The record
holds the seconds of every stage, the peak memory of the device and how far the time limit let learning come.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import l2c
from l2c.devices import resolve_device
from l2c.errors import L2CError
from l2c.learning.session import Progress
from l2c.models import model_config, random_model
from l2c.records import Record, describe_device

COMMAND = "benchmarks/learning_cost.py"


REAL = l2c.LearnSettings(recompute=True, batch_size=2, trial_examples=4)
TINY = l2c.LearnSettings(
    recompute=True, iterations=1, batch_size=1, num_examples=4, reference_steps=4, trials=1, trial_examples=1
)


def measure(
    model_name: str,
    steps: int,
    budget: float,
    minutes: float,
    dtype: torch.dtype,
    device: str,
    settings: l2c.LearnSettings = REAL,
) -> Record:
    """Learns one budget and notes when stages begin and how much memory they take."""
    model = random_model(model_config(model_name), dtype=dtype, device=device, draw_on=device)
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    stages: dict[str, dict[str, float]] = {}

    def note(progress: Progress) -> None:
        stage = stages.setdefault(progress.stage, {"from_s": time.perf_counter() - began})
        stage.update(until_s=time.perf_counter() - began, done=progress.iteration, of=progress.iterations)
        if on_cuda:
            stage["peak_bytes"] = torch.cuda.max_memory_allocated(device)

    schedule = l2c.learn(
        model,
        solver="ddim",
        steps=steps,
        budget=budget,
        settings=settings,
        session=l2c.Session(time_limit_s=60 * minutes),
        on_progress=note,
    )
    return Record(
        COMMAND,
        {"model": model_name, "steps": steps, "budget": budget, "dtype": str(dtype).removeprefix("torch."),
         "minutes": minutes, "settings": asdict(settings)},
        timings={"learn": [time.perf_counter() - began]},
        results={"stages": stages, "macs_fraction": schedule.cost.fraction},
        device=describe_device(device),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="dit-xl-2-256")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--minutes", type=float, default=4.0, help="time limit (default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="auto", help="default: a GPU if there is one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="learn hardly anything, to see that it works")
    options = parser.parse_args(arguments)
    try:
        record = measure(
            options.model, options.steps, options.budget, options.minutes, getattr(torch, options.dtype),
            resolve_device(options.device), TINY if options.tiny else REAL,
        )  # fmt: skip
        record.save(options.out)
    except L2CError as error:
        print(f"learning_cost: {error}", file=sys.stderr)
        return 1
    for name, stage in record.results["stages"].items():
        print(f"{name}: {stage['done']} of {stage['of']}, {stage['until_s'] - stage['from_s']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
