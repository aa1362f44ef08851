"""What `--dry-run` foretells of learning a solver on scenes-sd3, and what learning then takes, in CPU time.

    python benchmarks/estimates.py [--examples 8] [--iterations 2] [--budget 0.5]

With `--budget` a mask is learned for that share of the work, and else a solver for 14 evaluations, as in README's
example. CPU time is the same whatever else runs on the machine, where PyTorch has one thread.
"""

from __future__ import annotations

import argparse
import time

import torch

import l2c
from l2c.scenes import CALL, scene_prompts


def main() -> None:
    """Prints both, and their quotient."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--budget", type=float)
    given = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time
    settings = l2c.LearnSettings(
        iterations=given.iterations,
        batch_size=2,
        num_examples=given.examples,
        trials=4,
        trial_examples=4,
        fit_examples=9,
    )
    pipe = l2c.load_pipeline("l2c:scenes-sd3", quiet=True)
    run = {"prompts": scene_prompts(given.examples), "settings": settings, **CALL}
    cost = {"budget": given.budget} if given.budget else {"evaluations": 14, "per_computed": 1}
    estimate = l2c.estimate_learning(pipe, **cost, **run)
    print(estimate)
    begun = time.monotonic()
    l2c.learn(pipe, **cost, **({} if given.budget else {"solver": "auto"}), **run)
    took = time.monotonic() - begun
    told = 60 * estimate.total_minutes
    print(f"foretold {told:.1f} s, took {took:.1f} s of CPU time: {told / took:.2f}")


if __name__ == "__main__":
    main()
