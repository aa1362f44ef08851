"""What `l2c bench` does: fits schedules to a model and times them under a progress bar."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2c.bench.latency import Latency, SpeedUp, device_floor, floor_s, measure_latency
from l2c.cache.cached_model import check_model
from l2c.cli.bench_report import EVERYTHING, pictures
from l2c.cli.console import progress_bar, say
from l2c.cli.options import parse_numbers
from l2c.cli.schedules import is_family, read_schedule
from l2c.devices import resolve_device, resolve_dtype
from l2c.errors import CheckpointError, ConfigError, L2CError
from l2c.models import SIZES, build_model, load_model, resolve_name
from l2c.records import RunRecord, describe_device
from l2c.sampling.compiled import engine_of, release_engines, resolve_engine
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.images import resolve_sampler
from l2c.sampling.sampler import Sampler
from l2c.schedule.schedule import CacheSchedule

_CPU_MEMORY = ("can't allocate memory", "not enough memory")  # what PyTorch's allocator says


@dataclass(frozen=True)
class BenchRequest:
    """What to time, as on the command line; None where a schedule or the program decides."""

    model: str
    random_weights: bool
    schedules: tuple[Path, ...]
    budget: float | None
    any_weights: bool
    solver: str | None
    steps: int | None
    spacing: str | None
    guidance: float | None
    guidance_mode: str
    batch_sizes: str
    engines: str
    repetitions: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Contest:
    """Ways of sampling that make the same run, and so can be compared.

    Attributes:
        sampler: Model, solver and guidance.
        schedules: By name; None computes everything, and is the baseline.
    """

    sampler: Sampler
    schedules: dict[str, CacheSchedule | None] = field(default_factory=lambda: {EVERYTHING: None})

    @property
    def title(self) -> str:
        """The run, for people."""
        run, scale = self.sampler.run, self.sampler.guidance.scale
        guided = "without guidance" if scale == 1 else f"guidance {scale:g}"
        if run.weights is None:
            return f"{run.solver}, {len(run.timesteps)} evaluations, {run.spacing} spacing, {guided}"
        learned = " and ".join(name for name in self.schedules if name != EVERYTHING)
        return f"the solver of {learned}, {len(run.timesteps)} evaluations, {guided}"


def run_bench(request: BenchRequest) -> RunRecord:
    """Times everything that was asked for; batches that do not fit into memory are said and left out.

    Raises:
        L2CError: Whatever is wrong, before anything is timed; or if no batch fits into memory.
    """
    batch_sizes = read_batch_sizes(request.batch_sizes)
    schedules = read_schedules(request.schedules, request.budget)
    device = resolve_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    model = _model(request, dtype, device)
    denoiser = Denoiser.of(model)
    engines = _engines(request.engines, denoiser)
    contests = _contests(request, denoiser, schedules)
    floor = device_floor(device, dtype)
    rows: list[dict[str, Any]] = []
    too_large: list[dict[str, Any]] = []
    for images in batch_sizes:
        for contest in contests:
            found = _time(request, contest, engines, images)
            if found is None:
                say("warning", f"out of memory with {pictures(images)} at a time ({contest.title})")
                too_large.append({"run": contest.title, "images": images})
            else:
                rows += _rows(contest, found, floor["matmul_flops"])
    if not rows:
        raise L2CError(
            f"out of memory at every batch size ({request.batch_sizes}); use smaller --batch-sizes or --dtype bfloat16"
        )
    return RunRecord(
        command="bench",
        config=_config(request, contests, engines, batch_sizes),
        timings={
            f"{row['run']}: {row['schedule']}, {row['engine']}, {pictures(row['images'])}": row["seconds"]
            for row in rows
        },
        results={"rows": rows, "device_floor": floor, "out_of_memory": too_large},
        device=describe_device(device),
    )


def read_batch_sizes(text: str) -> list[int]:
    """Numbers of pictures, each once.

    Raises:
        ConfigError: If it is no such list.

    >>> read_batch_sizes("8,1-2,8")
    [8, 1, 2]
    """
    sizes = list(dict.fromkeys(parse_numbers(text, "--batch-sizes")))
    if min(sizes) < 1:
        raise ConfigError(f"--batch-sizes takes numbers of pictures from 1 up, such as 1,8,64, got '{text}'")
    return sizes


def read_schedules(paths: Sequence[Path], budget: float | None) -> dict[str, CacheSchedule]:
    """Schedules by the names that they are shown with: those of their files, in full where these are alike.

    Raises:
        ConfigError: If one is named twice, or the budget fits none of them.
        ScheduleError: If one cannot be read.
    """
    if len(set(paths)) < len(paths):
        raise ConfigError("--schedule names a file twice; name each once")
    families = [] if budget is None else [path for path in paths if is_family(path)]
    if budget is not None and not families:
        raise ConfigError(
            "--budget chooses from families of schedules, and none is given; name the file of one with --schedule"
        )
    names = [path.stem if path.suffix else path.name for path in paths]
    return {
        (name if names.count(name) == 1 and name != EVERYTHING else str(path)): read_schedule(
            path, budget=budget if path in families else None
        )
        for name, path in zip(names, paths, strict=True)
    }


def _model(request: BenchRequest, dtype: torch.dtype, device: str) -> nn.Module:
    if request.random_weights:
        return build_model(request.model, dtype=dtype, device=device)
    try:
        return load_model(request.model, dtype=dtype, device=device)
    except CheckpointError as error:
        if Path(request.model).exists() or not _is_size(request.model):
            raise
        raise CheckpointError(
            f"{error}; or, since weights make no difference to time, add --random-weights"
        ) from error


def _is_size(name: str) -> bool:
    try:
        return resolve_name(name) in SIZES
    except ConfigError:
        return False


def _engines(text: str, denoiser: Denoiser) -> list[str]:
    """The engines that are meant, each once, all of which fit the model and its device."""
    modes = list(dict.fromkeys(resolve_engine(name.strip(), denoiser) for name in text.split(",")))
    for mode in modes:
        if mode != "eager":
            engine_of(denoiser.model, mode)  # refuses what does not fit
    return modes


def _contests(
    request: BenchRequest, denoiser: Denoiser, schedules: Mapping[str, CacheSchedule]
) -> list[Contest]:
    """Schedules with what they are compared with, by run."""
    contests: dict[Any, Contest] = {}
    for name, schedule in schedules.items() or [(EVERYTHING, None)]:
        sampler = resolve_sampler(
            denoiser,
            schedule,
            request.solver,
            request.steps,
            request.spacing,
            request.guidance,
            request.guidance_mode,
        )
        contest = contests.setdefault(sampler.run, Contest(sampler))
        if schedule is not None:
            contest.schedules[name] = _fitting(schedule, sampler, request)
    return list(contests.values())


def _fitting(schedule: CacheSchedule, sampler: Sampler, request: BenchRequest) -> CacheSchedule:
    """The schedule, checked here and for once, so that no run has to compare weights again."""
    any_weights = replace(schedule, contract=replace(schedule.contract, fingerprint=()))
    schedule.contract.check_run(sampler.run)
    checked = any_weights if request.random_weights else schedule
    check_model(sampler.denoiser.model, checked, any_weights=request.any_weights)
    return any_weights


def _time(
    request: BenchRequest, contest: Contest, engines: Sequence[str], images: int
) -> list[Latency] | None:
    """Times one batch size; None if the memory is not enough."""
    model, found = contest.sampler.denoiser.model, None
    with progress_bar() as bar:
        title = f"{pictures(images)} at a time"
        task = bar.add_task(f"{title}, first calls", total=None)
        try:
            found = measure_latency(
                contest.sampler,
                contest.schedules,
                engines,
                images,
                request.repetitions,
                on_run=lambda name, repetition: bar.update(
                    task,
                    description=f"{title}, {name}",
                    completed=repetition,
                    total=request.repetitions,
                ),
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    release_engines(model)
    gc.collect()  # only here, because until now the error held what the run had made
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory is short on the device or the host."""
    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_MEMORY):
        return True
    return is_out_of_memory(error.__cause__ or error.__context__)


def _rows(contest: Contest, found: Iterable[Latency], matmul_flops: float) -> list[dict[str, Any]]:
    """What was timed, each against everything computed by the same engine at the same batch size."""
    rows = []
    baselines = {row.engine: row for row in found if row.schedule == EVERYTHING}
    for row in found:
        speed_up = SpeedUp.of(row, baselines[row.engine])
        rows.append(
            {
                "run": contest.title,
                **row.to_json(),
                "seconds": list(row.seconds),
                "speed_up": asdict(speed_up),
                "share_of_mac_ratio": speed_up.median * row.macs_fraction,
                "floor_s": floor_s(
                    contest.sampler, contest.schedules[row.schedule], row.images, matmul_flops
                ),
            }
        )
    return rows


def _config(
    request: BenchRequest, contests: Sequence[Contest], engines: Sequence[str], batch_sizes: Sequence[int]
) -> dict[str, Any]:
    """Every setting with the values that were used."""
    return {
        **asdict(request),
        "schedules": [str(path) for path in request.schedules],
        "batch_sizes": list(batch_sizes),
        "engines": list(engines),
        "runs": [
            {
                "run": contest.title,
                "solver": contest.sampler.run.solver,
                "steps": contest.sampler.run.steps,
                "spacing": contest.sampler.run.spacing,
                "guidance": contest.sampler.guidance.scale,
                "evaluations": len(contest.sampler.run.timesteps),
                "schedules": list(contest.schedules),
            }
            for contest in contests
        ],
    }
