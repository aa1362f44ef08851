"""Do saved layers save time? Seconds of DiT-XL/2 and U-ViT-H/2 with the published routers, by engine.

    python benchmarks/latency.py --routers FOLDER --out results/latency.json

Weights are random, which makes no difference to time. The folder holds the routers that were published with
Learning-to-Cache (`DDIM50_router.pt`, `dpm50_router.pth`); the 512-pixel DiT takes the mask of the 256-pixel one.
Transformer and solver are timed, without the decoder, in bfloat16 and with guidance in one batch. Everything that is
compared takes turns in one process. `--part` takes some of:

- `tables`: every model, 8 pictures and 1, every engine: everything computed, the published schedule, and the whole
  network at every second evaluation with three-term forecasts, from which the time of an evaluation that reuses every
  layer follows; with the shares of the ideal and the arithmetic floor;
- `throughput`: pictures per second at 1 to 64 pictures;
- `scaling`: time against the fraction computed, steps, pictures and tokens, as `benchmarks/scaling.py`;
- `start`: the first call of a new process, with empty and with filled caches of compiled kernels.

Every part is recorded as soon as it is done. `--show` prints the tables and draws the plot from a record.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import l2c
import scaling
from l2c.bench.latency import device_floor, floor_s, measure_latency
from l2c.bench.runs import random_mask
from l2c.devices import resolve_device
from l2c.errors import L2CError
from l2c.hosts.native import ModelHost
from l2c.layers import find_layers
from l2c.methods.published import import_router
from l2c.models import model_config, random_model
from l2c.records import Record, describe_device
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.schedule import CacheSchedule

COMMAND = "benchmarks/latency.py"
PARTS = ("tables", "throughput", "scaling", "start")
SLOW = "eager"
EVERYTHING, PUBLISHED, THREE_TERMS = scaling.EVERYTHING, "published", "every 2nd, three terms"
TARGETS = {
    "dit-xl-2-256, 8 pictures, everything, s": 0.40,
    "dit-xl-2-256, 8 pictures, published, s": 0.31,
    "dit-xl-2-256, share of the MAC ratio": 0.97,
    "dit-xl-2-256, 1 picture, published, s": 0.075,
    "dit-xl-2-256, reuse of every layer, share of a full evaluation": 0.10,
    "dit-xl-2-256, compile and capture, s": 30.0,
    "dit-xl-2-256, host time per evaluation, us": 150.0,
    "uvit-h-2-256, share of the MAC ratio": 0.95,
}
AT_LEAST = ("share of the MAC ratio",)


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        models: Solver and router file by name of the model; the first one's throughput and first calls count.
        steps: Of every run.
        fast: Engine that is compared with the eager one.
        batches: Pictures in a batch, for the throughput.
        dtype: Of the weights.
        image_size: Size of the input, if not the model's own.
    """

    models: Mapping[str, tuple[str, str]]
    steps: int
    fast: str
    batches: tuple[int, ...]
    dtype: torch.dtype
    image_size: int | None = None

    @property
    def first(self) -> str:
        """Name of the first model."""
        return next(iter(self.models))

    def sampler(self, name: str, device: str) -> Sampler:
        """A model with random weights, and its solver."""
        config = model_config(name)
        config = replace(config, image_size=self.image_size or config.image_size)
        model = random_model(config, dtype=self.dtype, device=device, draw_on=device)
        return Sampler(Denoiser.of(model), self.models[name][0], self.steps)

    def published(self, sampler: Sampler, name: str, routers: Path | None) -> CacheSchedule:
        """The published schedule, on the layers of this model; a random mask of its share where no router fits."""
        file = self.models[name][1]
        if routers is not None and file:
            return scaling.on_mask(sampler, import_router(routers / file).compute)
        mask = random_mask(find_layers(sampler.denoiser.model), self.steps, PUBLISHED_SHARE, seed=0)
        return scaling.on_mask(sampler, mask)


PUBLISHED_SHARE = 0.7
REAL = Workload(
    {
        "dit-xl-2-256": ("ddim", "DDIM50_router.pt"),
        "dit-xl-2-512": ("ddim", "DDIM50_router.pt"),
        "uvit-h-2-256": ("dpmsolver-singlestep", "dpm50_router.pth"),
    },
    steps=50,
    fast="graph",
    batches=(1, 2, 4, 8, 16, 32, 64),
    dtype=torch.bfloat16,
)
TINY = Workload({"dit-mini-cifar10": ("ddim", "")}, 4, SLOW, (1, 2), torch.float32, image_size=8)


def tables(work: Workload, routers: Path | None, device: str, repetitions: int) -> dict[str, Any]:
    """Every model, one picture and eight, every engine."""
    floor = device_floor(device, work.dtype)
    rows: list[dict[str, Any]] = []
    for name in work.models:
        sampler = work.sampler(name, device)
        schedules = {
            EVERYTHING: None,
            PUBLISHED: work.published(sampler, name, routers),
            THREE_TERMS: l2c.methods.interval(
                sampler.denoiser.model, solver=sampler.solver, steps=work.steps, every=2, predictor="taylor-2"
            ),
        }
        for images in (8, 1):
            for engine, times in {SLOW: max(2, repetitions // 3), work.fast: repetitions}.items():
                for found in measure_latency(ModelHost(sampler), schedules, [engine], images, times):
                    best = floor_s(
                        ModelHost(sampler), schedules[found.schedule], images, floor["matmul_flops"]
                    )
                    rows.append({"model": name, **found.to_json(), "floor_s": best})
                    print(line(rows[-1]), flush=True)
        del sampler
    return {"floor": floor, "rows": rows, "figures": figures(rows, work.fast), "fast": work.fast}


def line(row: dict[str, Any]) -> str:
    """One row of the table as text."""
    launch = "" if row["launch_us"] is None else f", launch {row['launch_us']:.0f} us"
    return (
        f"{row['model']:14}{row['images']:3} pictures  {row['engine']:8}{row['schedule']:24}"
        f"{row['median_s']:8.4f} s [{min(row['seconds']):.4f}, {max(row['seconds']):.4f}], floor {row['floor_s']:.4f}, "
        f"MACs {row['macs_fraction']:.3f}, first {row['first_s']:.1f} s, peak {row['peak_bytes'] / 1e9:.2f} GB, "
        f"store {row['store_bytes'] / 1e9:.2f} GB{launch}"
    )


def title(model: str, images: int) -> str:
    """A model and a batch size in words."""
    return f"{model}, {images} picture{'s' * (images > 1)}"


def figures(rows: Sequence[dict[str, Any]], fast: str) -> dict[str, float]:
    """What the targets are about, of captured runs."""
    found: dict[str, float] = {}

    def row(model: str, images: int, schedule: str, engine: str = fast) -> dict[str, Any]:
        wanted = (model, images, schedule, engine)
        return next(r for r in rows if (r["model"], r["images"], r["schedule"], r["engine"]) == wanted)

    for model, images in dict.fromkeys((r["model"], r["images"]) for r in rows):
        full, some = row(model, images, EVERYTHING), row(model, images, PUBLISHED)
        pictures = title(model, images)
        found[f"{pictures}, everything, s"] = full["median_s"]
        found[f"{pictures}, published, s"] = some["median_s"]
        share = paired_ratio(full, some) * some["macs_fraction"]
        found[f"{pictures}, share of the MAC ratio"] = share
        every_2nd = row(model, images, THREE_TERMS)
        # half of the evaluations compute everything
        reuse = 2 * statistics.median(
            b / a for a, b in zip(full["seconds"], every_2nd["seconds"], strict=True)
        ) - 1  # fmt: skip
        found[f"{pictures}, reuse of every layer, share of a full evaluation"] = reuse
        found[f"{pictures}, compile and capture, s"] = max(r["first_s"] - r["median_s"] for r in (full, some))
        if full["launch_us"] is not None:
            found[f"{pictures}, host time per evaluation, us"] = max(full["launch_us"], some["launch_us"])
        eager = row(model, images, EVERYTHING, SLOW), row(model, images, PUBLISHED, SLOW)
        found[f"{pictures}, eager, everything, s"] = eager[0]["median_s"]
        found[f"{pictures}, eager, published, s"] = eager[1]["median_s"]
    return found


def paired_ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float:
    """Median of the ratios of times in the same round."""
    return statistics.median(a / b for a, b in zip(slow["seconds"], fast["seconds"], strict=True))


def throughput(work: Workload, routers: Path | None, device: str, repetitions: int) -> dict[str, Any]:
    """Pictures per second by batch size."""
    sampler = work.sampler(work.first, device)
    schedules = {EVERYTHING: None, PUBLISHED: work.published(sampler, work.first, routers)}
    rows = []
    for images in work.batches:
        for found in measure_latency(
            ModelHost(sampler), schedules, ["auto"], images, max(2, min(repetitions, 64 // images))
        ):
            rows.append({"model": work.first, **found.to_json(), "floor_s": 0.0})
            print(line(rows[-1]), flush=True)
    return {"rows": rows}


def start(work: Workload, routers: Path | None, device: str) -> dict[str, Any]:
    """First calls of new processes, with empty and with filled caches on disk."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        }
        for kind in ("cold", "warm"):
            command = [
                sys.executable,
                __file__,
                *([] if routers is None else ["--routers", str(routers)]),
                *(["--tiny"] if work is TINY else []),
                "--device",
                device,
                "--first-calls",
            ]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
            print(kind, found[kind], flush=True)
    return found


def first_calls(work: Workload, routers: Path | None, device: str) -> dict[str, float]:
    """Seconds of the first calls of this process: everything computed, then the published schedule."""
    began = time.perf_counter()
    sampler = work.sampler(work.first, device)
    noise, labels = (
        seeded_noise(range(8), sampler.denoiser.sample_shape).to(device),
        torch.arange(8, device=device),
    )
    found = {}
    schedules = {EVERYTHING: None, PUBLISHED: work.published(sampler, work.first, routers)}
    found["model_s"] = time.perf_counter() - began
    for name, schedule in schedules.items():
        for call in ("first", "second"):
            began = time.perf_counter()
            sampler.compile(schedule)(noise, labels).cpu()
            found[f"{name}, {call} call, s"] = time.perf_counter() - began
    return found


def summary(results: dict[str, Any]) -> str:
    """The tables as text: seconds by model, batch and engine, and what the targets are about."""
    lines = [
        f"{'seconds':14}{'pictures':>9}{'eager: all':>12}{'published':>11}{'graphs: all':>13}{'published':>11}"
        f"{'floor':>8}{'speed-up':>10}{'of MACs':>9}"
    ]
    rows, fast = results["tables"]["rows"], results["tables"].get("fast", REAL.fast)
    for model, images in dict.fromkeys((row["model"], row["images"]) for row in rows):
        mine = {(r["engine"], r["schedule"]): r for r in rows if (r["model"], r["images"]) == (model, images)}
        full, some = mine[fast, EVERYTHING], mine[fast, PUBLISHED]
        ratio = paired_ratio(full, some)
        lines.append(
            f"{model:14}{images:9}{mine[SLOW, EVERYTHING]['median_s']:12.4f}{mine[SLOW, PUBLISHED]['median_s']:11.4f}"
            f"{full['median_s']:13.4f}{some['median_s']:11.4f}{some['floor_s']:8.4f}{ratio:9.2f}x"
            f"{ratio * some['macs_fraction']:9.1%}"
        )
    return "\n".join(lines)


def straight_lines(results: dict[str, Any]) -> str:
    """Time against the fraction computed, by the captured runs of each model and batch size: three schedules."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in results["tables"]["rows"]:
        if row["engine"] == results["tables"].get("fast", REAL.fast):
            of = points.setdefault(title(row["model"], row["images"]), [])
            of.append((row["macs_fraction"], row["median_s"]))
    return "\n".join(f"{name}: {scaling.Line.through(of)}" for name, of in points.items())


def show(results: dict[str, Any]) -> str:
    """All figures of a record as text, those with targets first."""
    lines = [summary(results)] if "tables" in results else []
    reached = results.get("tables", {}).get("figures", {})
    for name, target in TARGETS.items():
        model, _, rest = name.partition(", ")
        value = reached.get(name, reached.get(f"{model}, 8 pictures, {rest}"))
        if value is not None:
            good = value >= target if rest in AT_LEAST else value <= target
            lines.append(f"{name:70}{value:10.4g}   target {target:g}{'' if good else '   MISSED'}")
    lines += [f"{name:70}{value:10.4g}" for name, value in reached.items()]
    if "tables" in results:
        lines.append(straight_lines(results))
    for part in ("tables", "throughput"):
        lines += [line(row) for row in results.get(part, {}).get("rows", [])]
    if "scaling" in results:
        lines.append(scaling.show(results["scaling"]))
    lines += [f"{kind} start: {found}" for kind, found in results.get("start", {}).items()]
    return "\n".join(lines)


def panels(results: dict[str, Any]) -> list[scaling.Panel]:
    """What is plotted: throughput against batch size, and how time grows."""
    found = scaling.panels(results["scaling"]) if "scaling" in results else []
    if "throughput" in results:
        rows = results["throughput"]["rows"]
        found.append((
            "pictures in a batch", "pictures per second",
            {name: [(r["images"], r["pictures_per_s"]) for r in rows if r["schedule"] == name]
             for name in (EVERYTHING, PUBLISHED)},
        ))  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the figures, writes the record and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--routers", type=Path, help="folder of the published router files")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; by default all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=9, help="timed rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/latency.json"), help="default %(default)s")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument(
        "--tiny", action="store_true", help="a small model and a few steps, to see that it works"
    )
    parser.add_argument("--first-calls", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    work = TINY if options.tiny else REAL
    try:
        if options.first_calls:
            print(json.dumps(first_calls(work, options.routers, options.device)))
            return 0
        if options.show or options.out.exists():
            record = scaling.read_record(options.out, COMMAND)
        else:
            record = Record(COMMAND, {"steps": work.steps, "dtype": str(work.dtype).removeprefix("torch.")})
        if not options.show:
            options.device = resolve_device(options.device)
            for part in options.part or PARTS:
                if options.routers is None and part != "scaling" and not options.tiny:
                    parser.error(f"part {part} needs --routers, the folder of the published router files")
                record = measured(record, part, work, options)
                record.save(options.out)
        print(show(dict(record.results)))
        if drawn := panels(dict(record.results)):
            scaling.plot(drawn, options.out.with_suffix(".png"))
    except L2CError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    return 0


def measured(record: Record, part: str, work: Workload, options: argparse.Namespace) -> Record:
    """The record with one more part."""
    device, repetitions = options.device, options.repetitions
    found = {
        "tables": lambda: tables(work, options.routers, device, repetitions),
        "throughput": lambda: throughput(work, options.routers, device, repetitions),
        "scaling": lambda: scaling.measure(device, repetitions, options.tiny),
        "start": lambda: start(work, options.routers, device),
    }[part]()
    found["device"] = describe_device(device)
    fresh = Record(record.command, record.config)
    return replace(fresh, results={**record.results, part: found}, device=found["device"])


if __name__ == "__main__":
    sys.exit(main())
