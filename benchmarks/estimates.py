"""What `--dry-run` foretells of learning, and what learning then takes: CPU time, and disk for the checkpoint.

    python benchmarks/estimates.py [--targets dit-mini-cifar10 flux ...] [--budget 0.5] [--solver auto]

The targets are the models and the pipeline that come with l2c, and two tiny pipelines. With `--budget` a mask is
learned for that share of the work, with `--solver auto` a solver, and with neither both, one after the other. CPU time
is the same whatever else runs on the machine, where PyTorch has one thread. Figures go into the record one by one,
beside those that it has of other targets and ways.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import l2c
from l2c.errors import L2CError
from l2c.learning.session import Session
from l2c.records import Record, describe_device
from l2c.scenes import CALL, scene_prompts
from l2c.testing import tiny_call, tiny_pipeline

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Target:
    """What is learned for.

    Attributes:
        load: Loads it.
        run: How it is sampled, for a number of examples.
        solver: What is asked of a learned solver.
        mask: What is asked of a mask besides its budget.
    """

    load: Callable[[], Any]
    run: Callable[[int], dict[str, Any]]
    solver: dict[str, Any]
    mask: dict[str, Any] = field(default_factory=dict)


def model(name: str) -> Target:
    """A model that comes with l2c."""
    return Target(
        lambda: l2c.load_model(name), lambda _: {}, {"evaluations": 6, "per_computed": 2}, {"steps": 12}
    )


def tiny(name: str) -> Target:
    """A pipeline with the code of a family, whose weights are few and random."""
    call = {
        key: value for key, value in tiny_call(name, 12).items() if key not in ("generator", "output_type")
    }
    return Target(lambda: tiny_pipeline(name), lambda _: call, {"evaluations": 6})


TARGETS = {
    "dit-mini-cifar10": model("dit-mini-cifar10"),
    "uvit-mini-cifar10": model("uvit-mini-cifar10"),
    "l2c:scenes-sd3": Target(
        lambda: l2c.load_pipeline("l2c:scenes-sd3", quiet=True),
        lambda examples: {"prompts": scene_prompts(examples), **CALL},
        {"evaluations": 14, "per_computed": 1},
    ),
    "pixart": tiny("pixart"),
    "flux": tiny("flux"),
}


def measure(target: Target, what: dict[str, Any], examples: int, iterations: int) -> dict[str, Any]:
    """What is foretold and what is then: CPU seconds, and bytes of the checkpoint.

    Args:
        target: What is learned for.
        what: Budget or solver, as `learn` takes it.
        examples: How many pictures to learn on.
        iterations: How many steps of learning.
    """
    settings = l2c.LearnSettings(
        iterations=iterations,
        batch_size=2,
        num_examples=examples,
        trials=4,
        trial_examples=4,
        fit_examples=9,
    )
    loaded, run = target.load(), target.run(examples)
    with mock.patch("time.monotonic", time.process_time), tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "checkpoint"
        cost = {name: value for name, value in what.items() if name != "solver"}
        estimate = l2c.estimate_learning(loaded, settings=settings, **cost, **run)
        begun = time.monotonic()
        l2c.learn(loaded, settings=settings, session=Session(kept), **what, **run)
        took_s, stored = time.monotonic() - begun, kept.stat().st_size
    return {
        "foretold_s": 60 * estimate.total_minutes,
        "took_s": took_s,
        "foretold_bytes": estimate.checkpoint_bytes,
        "stored_bytes": stored,
        "stages_s": {name: 60 * minutes for name, minutes in estimate.minutes.items()},
    }


def line(name: str, found: dict[str, Any]) -> str:
    """The figures of one as text."""
    told, took, disk, stored = (
        found[key] for key in ("foretold_s", "took_s", "foretold_bytes", "stored_bytes")
    )
    return (
        f"{name}: foretold {told:.1f} s, took {took:.1f} s of CPU time: {told / took:.2f}; "
        f"{disk / 1e3:.0f} kB foretold, {stored / 1e3:.0f} kB stored: {disk / stored:.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the figures and writes the record; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--budget", type=float)
    parser.add_argument("--solver", choices=("auto",))
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "results/estimates.json")
    options = parser.parse_args(arguments)
    both = options.budget is None and options.solver is None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = dict(Record.load(options.out).results) if options.out.exists() else {}
        for name in options.targets:
            target, ways = TARGETS[name], {}
            if both or options.budget is not None:
                ways["budget"] = {"budget": options.budget or 0.5, **target.mask}
            if both or options.solver is not None:
                ways["solver"] = {"solver": "auto", **target.solver}
            for way, what in ways.items():
                found = {"asked": what, **measure(target, what, options.examples, options.iterations)}
                results[f"{name}, {way}"] = found
                print(line(f"{name}, {way}", found), flush=True)
                Record(
                    command="benchmarks/estimates.py",
                    config={"examples": options.examples, "iterations": options.iterations},
                    results=results,
                    device=describe_device("cpu"),
                ).save(options.out)
    except L2CError as error:
        print(f"estimates: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
