"""Learn a schedule for a diffusers pipeline on your own prompts, or repair one for a LoRA, and keep it.

    python examples/learn_for_pipeline.py --pipeline ./pixart --prompts prompts.txt --budget 0.5 --out fast
    python examples/learn_for_pipeline.py --pipeline ./pixart --prompts prompts.txt --evaluations 8 --out faster
    python examples/learn_for_pipeline.py --pipeline ./pixart --lora ./style --repair fast --prompts prompts.txt

The first learns what to compute and how to continue the rest, for half of the work. The second learns the solver with
it, for the work of eight whole evaluations. Writes the schedule with its card into the folder `--out`, and the first
prompt's picture without and with it. Called again after it was killed, it goes on where it was. `l2c learn` and
`l2c repair` do the same without pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

import l2c
from l2c.errors import L2CError
from l2c.hosts.pipeline.conditions import read_prompts
from l2c.learning.session import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit code."""
    options = _parser().parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    call = {"num_inference_steps": options.steps}
    call |= {key: value for key in ("height", "width") if (value := getattr(options, key))}
    settings = l2c.LearnSettings(
        iterations=options.iterations,
        batch_size=options.batch_size,
        num_examples=options.examples,
        trials=options.trials,
        recompute=True,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "learning.pt"
    how: dict[str, Any] = {
        "settings": settings,
        "session": l2c.Session(checkpoint=checkpoint, time_limit_s=options.time_limit),
        "on_progress": _show,
        **call,
    }
    try:
        pipe = l2c.load_pipeline(
            options.pipeline, dtype=dtype, device=options.device, lora=options.lora, quiet=True
        )
        if options.prompts is None:
            how["conditions"] = [{"class_labels": [label]} for label in options.labels]
        else:
            how["conditions"] = [{"prompt": prompt} for prompt in read_prompts(options.prompts)]
        if options.repair is not None:
            schedule = l2c.repair(pipe, l2c.CacheSchedule.from_pretrained(options.repair), **how)
        elif options.evaluations is not None:
            schedule = l2c.learn(pipe, solver="auto", evaluations=options.evaluations, **how)
        else:
            schedule = l2c.learn(pipe, budget=options.budget, **how)
        schedule.save_pretrained(options.out)
        checkpoint.unlink(missing_ok=True)
        _sample(pipe, schedule, {**call, **how["conditions"][0]}, options.out)
    except L2CError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    made, count = schedule.provenance, schedule.num_evaluations
    before, after = (f"{made[name]:.4f}" for name in ("held_out_error_before", "held_out_error"))
    print(
        f"the work of {schedule.cost.fraction * count:.1f} evaluations, {schedule.cost.fraction:.1%} of all {count}; "
        f"{made['error_unit']} error {before} before and {after} after learning, on {settings.num_held_out} held-out "
        "examples"
    )
    return 0


def _sample(pipe: DiffusionPipeline, schedule: l2c.CacheSchedule, call: dict[str, object], out: Path) -> None:
    bare = pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]
    with l2c.enable_cache(pipe, schedule):
        cached = pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]
    bare.save(out / "bare.png")
    cached.save(out / "cached.png")


def _show(progress: Progress) -> None:
    print(
        f"{progress.stage}: {progress.iteration} of {progress.iterations}, error {progress.error:.4f}, "
        f"{progress.left_s:.0f} s left",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pipeline", required=True, help="folder or repository of a diffusers pipeline")
    parser.add_argument("--lora", help="folder or repository of a LoRA to load")
    parser.add_argument("--repair", help="folder or file of a learned schedule to go on from")
    parser.add_argument("--prompts", type=Path, help="text file with a prompt in each line")
    parser.add_argument("--labels", type=int, nargs="+", default=[1], help="classes, if there are no prompts")
    parser.add_argument("--budget", type=float, default=0.5, help="fraction of the multiply-accumulates")
    parser.add_argument(
        "--evaluations", type=float, help="learn the solver, too, for the work of so many evaluations"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=2, help="examples per iteration")
    parser.add_argument("--trials", type=int, default=24, help="masks to judge")
    parser.add_argument("--examples", type=int, default=16, help="to learn on; a quarter is held out")
    parser.add_argument("--time-limit", type=float, help="seconds")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--out", type=Path, default=Path("fast"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
