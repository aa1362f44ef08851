"""Speed up a diffusers pipeline: make a schedule, look at what it does, and keep it.

    python examples/speed_up_pipeline.py --pipeline ./pixart --prompt "a photo of a cat" --steps 20 --out fast

Writes the picture made without and with the schedule, and the schedule with its card, into the folder `--out`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import l2c
from l2c.errors import L2CError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit code."""
    options = _parser().parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    call = {"num_inference_steps": options.steps}
    call |= {"class_labels": [options.label]} if options.prompt is None else {"prompt": options.prompt}
    call |= {key: value for key in ("height", "width") if (value := getattr(options, key))}

    def sample() -> tuple[object, float]:
        begin = time.perf_counter()
        picture = pipe(**call, generator=torch.Generator().manual_seed(options.seed)).images[0]
        return picture, time.perf_counter() - begin

    try:
        pipe = l2c.load_pipeline(options.pipeline, dtype=dtype, device=options.device, quiet=True)
        schedule = l2c.methods.interval(pipe, every=options.every, predictor=options.predictor, **call)
        bare, bare_s = sample()
        with l2c.enable_cache(pipe, schedule):  # from here on, the pipeline is called as before
            cached, cached_s = sample()
            print(l2c.summary(pipe))
        drift = l2c.check(pipe, schedule, seeds=[options.seed], **call)
        drift.record(schedule).save_pretrained(options.out)
    except L2CError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, picture in (("bare", bare), ("cached", cached)):
        picture.save(options.out / f"{name}.png")
    print(f"{bare_s:.2f} s without, {cached_s:.2f} s with the schedule; {drift}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pipeline", required=True, help="folder or repository of a diffusers pipeline")
    parser.add_argument("--prompt", help="what to draw; without it, a class label is used")
    parser.add_argument("--label", type=int, default=1, help="class, for a class-conditional pipeline")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="compute at every n-th evaluation")
    parser.add_argument("--predictor", default="taylor", help="copy, taylor, taylor-2")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--out", type=Path, default=Path("fast"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
