"""Every figure that needs a GPU, in one go: parts in order of worth, each within its own time limit.

    python benchmarks/gpu.py --routers FOLDER --out results

In at most 25 minutes on one GPU. `results/gpu.json` tells of every part whether it is done, how long it took and where
its record is. Started again, it goes on with the parts that are not done; `--again` takes them all anew. `--tiny` runs
every part on small models, on a CPU too, to see that it works. `--show` prints what was done, as `docs/engine.md` shows
it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import scaling
from l2c.errors import L2CError
from l2c.records import Record, describe_device

COMMAND = "benchmarks/gpu.py"
HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
TOTAL_S = 25 * 60.0
TINY_PATIENCE = 10
"""How much longer a part may take on a CPU, which may be busy."""


@dataclass(frozen=True)
class Part:
    """One command and what it needs.

    Attributes:
        name: Of the part; its record is `gpu-<name>.json` where it writes one.
        says: What it finds out.
        limit_s: Seconds after which it is stopped.
        command: To run; `{out}` is its record, `{routers}` the folder of the published routers.
        tiny: The same on small models, for a CPU too.
        devices: GPUs that it needs at least.
    """

    name: str
    says: str
    limit_s: float
    command: Sequence[str]
    tiny: Sequence[str]
    devices: int = 1

    @property
    def needs_routers(self) -> bool:
        """Whether it reads the published router files."""
        return "{routers}" in self.command

    @property
    def writes(self) -> bool:
        """Whether it writes a record of its own."""
        return "{out}" in self.command


def _benchmark(name: str, *options: str) -> list[str]:
    return [PYTHON, str(HERE / f"{name}.py"), *options, "--out", "{out}"]


def _pipelines(name: str, compiled: str | None, limit_s: float) -> Part:
    options = [] if compiled is None else ["--compile", compiled]
    how = {
        None: "eager",
        "blocks": "blocks compiled",
        "overhead": "with mode='reduce-overhead'",
        "graph": "its cached calls as CUDA graphs",
    }[compiled]
    return Part(
        f"pipelines-{name}-{compiled or 'eager'}",
        f"{name} at its real size with and without a cache, {how}, with peak memory",
        limit_s,
        _benchmark("pipelines", "--model", name, "--device", "cuda", *options),
        _benchmark(
            "pipelines", "--model", "flux-tiny", "--steps", "3", "--repetitions", "1", "--dtype", "float32",
            *(["--compile", "graph" if compiled == "graph" else "blocks"] if compiled else []),
        ),
    )  # fmt: skip


_TESTS = [
    str(HERE.parent / "tests" / name)
    for name in ("engine", "bench/test_cost.py", "hosts/test_learned_scheduler.py", "hosts/test_graphs.py")
]
_PYTEST = [PYTHON, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]
_LATENCY = ("--routers", "{routers}", "--device", "cuda", "--repetitions", "5")
_LATENCY_TINY = ("--tiny", "--device", "cpu", "--repetitions", "2")
_LEARNING_TINY = _benchmark(
    "learning_cost",
    "--tiny",
    "--model",
    "dit-mini-cifar10",
    "--steps",
    "4",
    "--dtype",
    "float32",
    "--device",
    "cpu",
)

PARTS = (
    Part("tests", "the tests that need a GPU", 240, [*_PYTEST, *_TESTS], [*_PYTEST, *_TESTS[1:]]),
    Part(
        "latency",
        "seconds of DiT-XL/2 and U-ViT-H/2 with the published routers, by engine",
        300,
        _benchmark("latency", "--part", "tables", *_LATENCY),
        _benchmark("latency", "--part", "tables", *_LATENCY_TINY),
    ),
    _pipelines("flux-dev", None, 120),
    _pipelines("flux-dev", "blocks", 180),
    Part(
        "learning",
        "minutes and memory of learning one budget on DiT-XL/2",
        300,
        _benchmark("learning_cost", "--device", "cuda"),
        _LEARNING_TINY,
    ),
    Part(
        "scaling",
        "how time grows with the fraction computed, steps, pictures and tokens",
        180,
        _benchmark("latency", "--part", "scaling", "--device", "cuda", "--repetitions", "3"),
        _benchmark("latency", "--part", "scaling", *_LATENCY_TINY),
    ),
    Part(
        "profile",
        "how well a profile predicts the time of other runs",
        120,
        [*_PYTEST, "-s", _TESTS[1]],
        [*_PYTEST, "-s", _TESTS[1]],
    ),
    _pipelines("pixart", None, 60),
    _pipelines("pixart", "blocks", 120),
    _pipelines("pixart", "graph", 90),
    _pipelines("flux-dev", "graph", 120),
    _pipelines("flux-dev", "overhead", 180),
    Part(
        "throughput",
        "pictures per second by batch size",
        120,
        _benchmark("latency", "--part", "throughput", *_LATENCY),
        _benchmark("latency", "--part", "throughput", *_LATENCY_TINY),
    ),
    Part(
        "processes",
        "learning in two processes, one on each GPU",
        180,
        [PYTHON, "-m", "accelerate.commands.launch", "--num_processes", "2",
         *_benchmark("learning_cost", "--device", "cuda", "--minutes", "2")[1:]],
        _LEARNING_TINY,
        devices=2,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """How parts are run.

    Attributes:
        out: Folder of the records.
        routers: Folder of the published router files, or None.
        tiny: Small models, on a CPU too.
    """

    out: Path
    routers: Path | None
    tiny: bool

    def missing(self, part: Part) -> str | None:
        """Why a part cannot run here, or None."""
        if self.tiny:
            return None
        if (found := torch.cuda.device_count()) < part.devices:
            there = "there is 1" if found == 1 else f"there are {found}"
            return f"needs {part.devices} CUDA device{'s' * (part.devices > 1)}, {there}"
        if part.needs_routers and self.routers is None:
            return "needs --routers, the folder of the published router files"
        return None

    def __call__(self, part: Part, left_s: float) -> dict[str, Any]:
        """Runs a part; returns what `gpu.json` says of it."""
        if reason := self.missing(part):
            return {"status": "skipped", "why": reason}
        record = self.out / f"gpu-{part.name}.json"
        names = {"out": str(record), "routers": str(self.routers)}
        command = [word.format(**names) for word in (part.tiny if self.tiny else part.command)]
        limit_s = min(part.limit_s * (TINY_PATIENCE if self.tiny else 1), left_s)
        began = time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=HERE.parent, capture_output=True, text=True, timeout=limit_s, env=_environment()
            )
        except subprocess.TimeoutExpired:
            return {"status": "stopped", "seconds": limit_s, "why": f"not done within {limit_s:.0f} s"}
        found = {
            "status": "done" if done.returncode == 0 else "failed",
            "seconds": round(time.perf_counter() - began, 1),
            "output": (done.stdout + done.stderr).splitlines()[-12:],
        }
        return found | ({"record": record.name} if part.writes and record.exists() else {})


def _environment() -> dict[str, str]:
    """Where the package of this very checkout comes first."""
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def take(run: Run, path: Path, names: Sequence[str], again: bool, total_s: float) -> Record:
    """Runs the parts that are not done, and writes the record after each."""
    fresh = Record(
        COMMAND, {"tiny": run.tiny}, device=describe_device("cuda" if torch.cuda.is_available() else "cpu")
    )
    before = scaling.read_record(path, COMMAND).results if path.exists() and not again else {}
    record, began = replace(fresh, results=dict(before)), time.perf_counter()
    for part in PARTS:
        if part.name not in names or record.results.get(part.name, {}).get("status") == "done":
            continue
        left_s = total_s - (time.perf_counter() - began)
        found = run(part, left_s) if left_s > 0 else {"status": "skipped", "why": "no time was left"}
        record = replace(record, results={**record.results, part.name: found})
        record.save(path)
        print(f"{part.name}: {found['status']}{_seconds(found)}{_why(found)}", flush=True)
    return record


def _seconds(found: Mapping[str, Any]) -> str:
    return f" in {found['seconds']:.0f} s" if "seconds" in found else ""


def _why(found: Mapping[str, Any]) -> str:
    if found["status"] == "failed":
        return ": " + (found["output"][-1] if found["output"] else "it printed nothing")
    return f": {found['why']}" if "why" in found else ""


def show(results: Mapping[str, Any]) -> str:
    """What was done, as a table in Markdown."""
    lines = ["| part | what it finds out | |", "|---|---|---|"]
    for part in PARTS:
        found = results.get(part.name)
        state = "never run" if found is None else f"{found['status']}{_seconds(found)}{_why(found)}"
        lines.append(f"| `{part.name}` | {part.says} | {state} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; returns 0 if none failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--routers", type=Path, help="folder of the published router files")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of records (default %(default)s)"
    )
    parser.add_argument(
        "--part", action="append", choices=[part.name for part in PARTS], help="repeatable; by default all"
    )
    parser.add_argument(
        "--minutes", type=float, default=TOTAL_S / 60, help="of all parts together (default %(default)g)"
    )
    parser.add_argument("--again", action="store_true", help="take parts anew that are done")
    parser.add_argument(
        "--tiny", action="store_true", help="small models, on a CPU too, to see that it works"
    )
    parser.add_argument("--show", action="store_true", help="run nothing, print what was done")
    options = parser.parse_args(arguments)
    path = options.out / "gpu.json"
    try:
        if options.show:
            record = scaling.read_record(path, COMMAND)
        else:
            run = Run(options.out.resolve(), options.routers and options.routers.resolve(), options.tiny)
            names = options.part or [part.name for part in PARTS]
            record = take(run, path, names, options.again, 60 * options.minutes)
    except L2CError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1
    print(show(record.results))
    return int(any(found["status"] in ("failed", "stopped") for found in record.results.values()))


if __name__ == "__main__":
    sys.exit(main())
