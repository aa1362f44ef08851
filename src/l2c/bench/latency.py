"""How long sampling takes: first call, later calls, throughput, memory; against what the device could do at best."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from l2c.bench.timing import interleave, synchronize
from l2c.documents import Count, check_value
from l2c.hosts.base import Host
from l2c.sampling.compiled import engine_of, keep_all_runs, release_engines
from l2c.sampling.memory import planned_store_bytes
from l2c.schedule.schedule import CacheSchedule


@dataclass(frozen=True)
class Latency:
    """Times of one way of sampling at one batch size.

    Attributes:
        schedule: Name of the schedule.
        engine: `graph`, `compile` or `eager`.
        images: Pictures in a batch; the network sees twice as many with guidance.
        macs_fraction: Share of the multiply-accumulates that the schedule leaves.
        first_s: Seconds of the first call, with all compiling and capturing that is not on disk already.
        seconds: Of later calls, which took turns with all other ways.
        launch_us: Microseconds in which the host launches one evaluation while the device is idle; None where it is
            not captured.
        peak_bytes: Most memory of the device that the process had reserved in the calls, weights included; 0 on CPUs.
        store_bytes: Share of it that stored layer outputs take.
    """

    schedule: str
    engine: str
    images: int
    macs_fraction: float
    first_s: float
    seconds: tuple[float, ...]
    launch_us: float | None
    peak_bytes: int
    store_bytes: int

    @property
    def median_s(self) -> float:
        """Median of the later calls."""
        return statistics.median(self.seconds)

    @property
    def pictures_per_s(self) -> float:
        """Throughput."""
        return self.images / self.median_s

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "median_s": self.median_s, "pictures_per_s": self.pictures_per_s}


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster one way is than another, from runs of the same rounds.

    Attributes:
        median: Of the ratios of all rounds.
        least: Smallest of them.
        most: Largest of them.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, faster: Latency, baseline: Latency) -> SpeedUp:
        """Compares two ways that were timed in one call of `measure_latency`."""
        ratios = [slow / fast for fast, slow in zip(faster.seconds, baseline.seconds, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


@torch.no_grad()
def measure_latency(
    host: Host,
    schedules: Mapping[str, CacheSchedule | None],
    engines: Sequence[str] = ("auto",),
    images: int = 8,
    repetitions: int = 7,
    *,
    on_run: Callable[[str, int], None] | None = None,
) -> list[Latency]:
    """Times every schedule with every engine, in turn in one process.

    What has been compiled or captured for the model before is dropped first. All runs that are captured now are kept
    until the end, whatever they take, because one that is dropped would be captured again in the time of its turn.

    Args:
        host: The model or pipeline and its run.
        schedules: By name; None computes everything.
        engines: As for `Sampler.compile`; engines that come out the same are timed once. A pipeline runs as it is.
        images: Pictures in a batch.
        repetitions: Timed calls of each.
        on_run: Called as (name, repetition) before each timed call.

    Raises:
        ConfigError: If there is nothing to time or an engine does not fit.
        ContractError: If a schedule does not fit.
    """
    for name, count in (("images", images), ("schedules", len(schedules)), ("engines", len(engines))):
        check_value(f"the number of {name}", count, Count)
    model = next(iter(host.models.values()))  # pipelines may have several, and no engines
    modes = dict.fromkeys(host.resolve_engine(engine) for engine in engines)
    rows, calls_each = host.rows_and_calls
    release_engines(model)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    first, peak = {}, {}
    with keep_all_runs(model, modes):
        for mode in modes:
            for name, schedule in schedules.items():
                calls[name, mode] = host.ready(schedule, images, mode)
                _reset_peak()
                began = time.perf_counter()
                calls[name, mode]()
                synchronize()
                first[name, mode] = time.perf_counter() - began
                calls[name, mode]()
                peak[name, mode] = torch.cuda.max_memory_reserved() if host.device.type == "cuda" else 0
        timings = interleave(
            {f"{name} {mode}": call for (name, mode), call in calls.items()},
            repetitions,
            warm_ups={},
            on_run=on_run,
        )
        return [
            Latency(
                schedule=name,
                engine=mode,
                images=images,
                macs_fraction=1.0 if schedules[name] is None else schedules[name].cost.fraction,  # type: ignore[union-attr]
                first_s=first[name, mode],
                seconds=timings[f"{name} {mode}"].seconds,
                launch_us=_launch_us(model, call) if mode == "graph" else None,
                peak_bytes=peak[name, mode],
                store_bytes=planned_store_bytes(
                    schedules[name],
                    host.table,
                    rows * images,
                    calls_each,
                    next(model.parameters()).dtype,
                    mode,
                ),
            )
            for (name, mode), call in calls.items()
        ]


def _reset_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _launch_us(model: nn.Module, call: Callable[[], object]) -> float:
    call()
    run = engine_of(model, "graph").runs[-1]
    return 1e6 * statistics.median(run.launch_times())


@torch.no_grad()
def device_floor(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """What the device can do at best: operations per second in a large matrix product, bytes per second in a copy.

    Returns:
        `matmul_flops` and `copy_bytes`, per second; a copied byte counts twice, as read and as written.
    """
    on_cuda = torch.device(device).type == "cuda"
    size = 8192 if on_cuda else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(2**30 if on_cuda else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timings = interleave({"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}, 20)
    return {
        "matmul_flops": 2 * size**3 / timings["matmul"].median_s,
        "copy_bytes": 2 * source.numel() / timings["copy"].median_s,
    }


def floor_s(host: Host, schedule: CacheSchedule | None, images: int, matmul_flops: float) -> float:
    """Seconds that the multiply-accumulates of a run take at the device's best rate."""
    macs = len(host.run.timesteps) * host.table.full_macs if schedule is None else schedule.cost.macs
    rows, calls = host.rows_and_calls
    return 2 * macs * rows * calls * images / matmul_flops
