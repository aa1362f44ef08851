"""`measure_schedules`: how long sampling takes with schedules and without, by engine and batch size."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Field

from l2c.bench.latency import Latency, SpeedUp, device_floor, floor_s, measure_latency
from l2c.cache.cached_model import check_model
from l2c.documents import Count, check_value
from l2c.errors import L2CError
from l2c.hosts.base import Host
from l2c.hosts.targets import host_for, host_of
from l2c.records import Record, describe_device
from l2c.sampling.compiled import release_engines
from l2c.schedule.schedule import CacheSchedule

EVERYTHING = "everything computed"
"""The name of the baseline."""

OnProgress = Callable[[str, int | None, int | None], None]
"""Called as (what is being timed, repetition, repetitions); both are None for the first calls."""

_CPU_MEMORY = ("can't allocate memory", "not enough memory")  # what PyTorch's allocator says


@dataclass(frozen=True)
class _Group:
    """Schedules for the same run, which can be compared; None computes everything and is the baseline."""

    host: Host
    schedules: dict[str, CacheSchedule | None] = field(default_factory=lambda: {EVERYTHING: None})

    @property
    def title(self) -> str:
        run = self.host.run
        guided = "without guidance" if run.guidance in (None, 1) else f"guidance {run.guidance:g}"
        if run.weights is None:  # a pipeline's scheduler says its spacing in its own words
            spacing = run.spacing if "=" in run.spacing else f"{run.spacing} spacing"
            return f"{run.solver}, {len(run.timesteps)} evaluations, {spacing}, {guided}"
        learned = " and ".join(name for name in self.schedules if name != EVERYTHING)
        return f"the solver of {learned}, {len(run.timesteps)} evaluations, {guided}"

    def rows(self, found: Iterable[Latency], matmul_flops: float) -> list[dict[str, Any]]:
        """What was timed, each against everything computed by the same engine at the same batch size."""
        rows = []
        baselines = {row.engine: row for row in found if row.schedule == EVERYTHING}
        for row in found:
            speed_up = SpeedUp.of(row, baselines[row.engine])
            least_s = floor_s(self.host, self.schedules[row.schedule], row.images, matmul_flops)
            rows.append(
                {
                    "run": self.title,
                    **row.to_json(),
                    "seconds": list(row.seconds),
                    "speed_up": asdict(speed_up),
                    "share_of_mac_ratio": speed_up.median * row.macs_fraction,
                    "floor_s": least_s,
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        run = self.host.run
        return {
            "run": self.title,
            "solver": run.solver,
            "steps": run.steps,
            "spacing": run.spacing,
            "guidance": run.guidance,
            "evaluations": len(run.timesteps),
            "schedules": list(self.schedules),
        }


def measure_schedules(
    target: Any,
    schedules: Mapping[str, CacheSchedule] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    engines: Sequence[str] = ("auto",),
    repetitions: int = 5,
    any_weights: bool = False,
    names: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = lambda what, repetition, repetitions: None,
    **run: Any,
) -> Record:
    """Times sampling with each schedule beside a run of the same solver that computes everything, in turn.

    A batch that does not fit into memory is left out, which `results["out_of_memory"]` says.

    Args:
        target: A model, a diffusers pipeline without a cache enabled, or a host.
        schedules: By name; without any, only everything computed is timed.
        batch_sizes: Pictures at a time.
        engines: As for `Sampler.compile`; each is timed. A pipeline runs as it is, compiled if its transformer is.
        repetitions: Timed runs of each kind.
        any_weights: Warn, instead of refusing, when a schedule was learned on other weights.
        names: What else belongs to the record's settings, such as the model's name; plain data.
        note: Called with a sentence that the user should read.
        on_progress: See `OnProgress`.
        run: How the target is sampled, see `l2c.learn`; the schedules' own runs where nothing is said.

    Raises:
        ConfigError: If an argument is out of range, or an engine does not fit the model or its device.
        ContractError: If a schedule was made for another model or run.
        L2CError: If no batch fits into memory.
    """
    check_value("--batch-sizes", list(batch_sizes), Annotated[list[Count], Field(min_length=1)])
    given = {name: value for name, value in run.items() if value is not None}
    groups = _groups(target, schedules or {}, any_weights, given)
    host = groups[0].host
    modes = list(dict.fromkeys(host.resolve_engine(engine) for engine in engines))
    floor = device_floor(host.device, next(next(iter(host.models.values())).parameters()).dtype)
    rows: list[dict[str, Any]] = []
    too_large: list[dict[str, Any]] = []
    for images in dict.fromkeys(batch_sizes):
        for group in groups:
            found = _measure(group, modes, images, repetitions, on_progress)
            if found is None:
                note(f"out of memory with {pictures(images)} at a time ({group.title})")
                too_large.append({"run": group.title, "images": images})
            else:
                rows += group.rows(found, floor["matmul_flops"])
    if not rows:
        sizes = ",".join(map(str, batch_sizes))
        raise L2CError(
            f"out of memory at every batch size ({sizes}); use smaller --batch-sizes or --dtype bfloat16"
        )
    return Record(
        command="bench",
        config={
            **(names or {}),
            "any_weights": any_weights,
            "batch_sizes": list(dict.fromkeys(batch_sizes)),
            "engines": modes,
            "repetitions": repetitions,
            "runs": [group.to_json() for group in groups],
        },
        timings={
            f"{row['run']}: {row['schedule']}, {row['engine']}, {pictures(row['images'])}": row["seconds"]
            for row in rows
        },
        results={"rows": rows, "device_floor": floor, "out_of_memory": too_large},
        device=describe_device(str(host.device)),
    )


def pictures(count: int) -> str:
    """How many, in words.

    >>> pictures(1), pictures(8)
    ('1 picture', '8 pictures')
    """
    return "1 picture" if count == 1 else f"{count} pictures"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory is short on the device or the host."""
    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_MEMORY):
        return True
    return is_out_of_memory(error.__cause__ or error.__context__)


def _groups(
    target: Any, schedules: Mapping[str, CacheSchedule], any_weights: bool, run: Mapping[str, Any]
) -> list[_Group]:
    """Schedules by their runs, checked here and for once, so that no run has to compare weights again."""
    groups: dict[Any, _Group] = {}
    for name, schedule in schedules.items():
        host = host_for(target, schedule, measure_schedules, **run).for_schedule(schedule)
        schedule.contract.check_run(host.run)
        for model in host.models.values():
            check_model(model, schedule, any_weights=any_weights)
        unbound = replace(schedule, contract=replace(schedule.contract, fingerprint=()))
        groups.setdefault(host.run, _Group(host)).schedules[name] = unbound
    return list(groups.values()) or [_Group(host_of(target, measure_schedules, **run))]


def _measure(
    group: _Group, modes: Sequence[str], images: int, repetitions: int, on_progress: OnProgress
) -> list[Latency] | None:
    """Times one batch size; None if the memory is not enough."""
    title, found = f"{pictures(images)} at a time", None
    on_progress(f"{title}, first calls", None, None)
    try:
        found = measure_latency(
            group.host,
            group.schedules,
            modes,
            images,
            repetitions,
            on_run=lambda name, repetition: on_progress(f"{title}, {name}", repetition, repetitions),
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    for model in group.host.models.values():
        release_engines(model)
    gc.collect()  # only here, because until now the error held what the run had made
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found
