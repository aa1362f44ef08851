"""The whole way on the small model that comes with the package: learn, sample, compare, show.

Everything is kept in one folder: the schedule, the pictures, the record, and a page that shows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from l2c.bench.timing import Timing, interleave
from l2c.evaluation.metrics import psnr, rmse
from l2c.files import atomic_write
from l2c.layers import find_layers
from l2c.learning.learn import learn
from l2c.learning.session import Progress, Session
from l2c.learning.settings import LearnSettings
from l2c.models import CIFAR10_CLASSES, load_model
from l2c.records import Record, describe_device
from l2c.report.demo_page import demo_page
from l2c.report.figures import heat_map
from l2c.report.pictures import difference_gain, difference_pixels, picture_grid, png, to_pixels
from l2c.sampling.images import sample
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

MODEL = "dit-mini-cifar10"
FINE_RUN: dict[str, Any] = {"solver": "dpmsolver++3", "steps": 50, "spacing": "logsnr"}
"""A run fine enough to stand for the exact solution: what all variants are an approximation of."""
CLASS_SEEDS = (5, 7, 5, 0, 6, 5, 0, 1, 6, 9)
"""For each class, a seed at which the small model draws something that one recognises."""

SHIPPED_SCHEDULE = "dit-mini-cifar10-ddim-20.safetensors"
PAGE = "index.html"
FULL, FRESH, SHIPPED = "full", "cached", "shipped"
TITLES = {FULL: "everything computed", FRESH: "schedule just learned", SHIPPED: "schedule shipped with l2c"}
_SCALE, _COLUMNS = 6, 5


LEARNING = LearnSettings(
    iterations=10, batch_size=2, num_examples=8, reference_steps=25, trials=8, trial_examples=2
)
"""As much learning as a demonstration has time for."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        model: Name or path of the model, which must make pictures.
        solver: Solver of the run.
        steps: Model evaluations of the run.
        guidance: Guidance scale.
        labels: Class of each picture.
        seeds: Seed of each picture.
        learning: How the schedule is learned.
        learning_limit_s: Seconds after which learning ends, which keeps the demo short on a slow machine.
        repetitions: How often each variant is timed.
        compare_limit_s: No further repetition is begun if it would probably end after so many seconds.
        budget: Share of the MACs that schedules may take.
        shipped: Family whose schedule for the budget is compared beside the learned one; None for none.
    """

    model: str = MODEL
    solver: str = "ddim"
    steps: int = 20
    guidance: float = 1.5
    labels: tuple[int, ...] = tuple(range(10))
    seeds: tuple[int, ...] = CLASS_SEEDS
    learning: LearnSettings = field(default_factory=lambda: LEARNING)
    learning_limit_s: float = 75.0
    repetitions: int = 3
    compare_limit_s: float = 90.0
    budget: float = 0.5
    shipped: Path | None = field(default_factory=lambda: shipped_schedule())

    @classmethod
    def quick(cls) -> DemoSettings:
        """Few pictures, hardly any learning, one repetition: to see that everything works."""
        learning = LearnSettings(
            iterations=2, batch_size=1, num_examples=4, reference_steps=10, trials=2, trial_examples=1
        )
        labels = (1, 7, 8, 9)
        seeds = tuple(CLASS_SEEDS[label] for label in labels)
        return cls(labels=labels, seeds=seeds, learning=learning, learning_limit_s=20.0, repetitions=1)

    @property
    def num_runs(self) -> int:
        """Timed runs, and the one in fine steps."""
        return 1 + self.repetitions * (2 if self.shipped is None else len(TITLES))


@dataclass(frozen=True)
class _Variant:
    """One way of sampling, with what came out."""

    key: str
    schedule: CacheSchedule | None
    images: Tensor
    timing: Timing


def shipped_schedule() -> Path | None:
    """The family that comes with the package, learned for longer than the demo can."""
    path = Path(str(resources.files("l2c") / "assets" / SHIPPED_SCHEDULE))
    return path if path.is_file() else None


def learn_briefly(
    target: Any, settings: Any, name: str, on_learning: Callable[[Progress], None] | None, **run: Any
) -> tuple[CacheSchedule, dict[str, Any]]:
    """A schedule with the settings of a demonstration, and how it was learned, in plain data.

    Raises:
        KeyboardInterrupt: If Ctrl-C ended it.
    """
    began = perf_counter()
    schedule = learn(
        target,
        budget=settings.budget,
        settings=settings.learning,
        session=Session(time_limit_s=settings.learning_limit_s),
        model_name=name,
        on_progress=on_learning,
        **run,
    )
    if schedule.provenance["interrupted"]:
        raise KeyboardInterrupt  # which learning had caught
    return schedule, {**schedule.provenance, "seconds": round(perf_counter() - began, 1)}


def run_demo(
    folder: Path,
    settings: DemoSettings | None = None,
    device: str = "cpu",
    *,
    on_learning: Callable[[Progress], None] | None = None,
    on_sampling: Callable[[str, int], None] | None = None,
) -> Record:
    """Learns a schedule, samples with and without, and writes everything into a folder that exists.

    Args:
        folder: Where to.
        settings: What to do.
        device: Where to compute.
        on_learning: Called after every iteration of learning.
        on_sampling: Called as (title, repetition) before every timed run.

    Returns:
        The record, also written as `record.json`; its results hold a list `variants`.

    Raises:
        L2CError: Whatever is wrong.
        KeyboardInterrupt: Also while learning.
    """
    settings = settings or DemoSettings()
    model = load_model(settings.model, device=device)
    run = {"solver": settings.solver, "steps": settings.steps, "guidance": settings.guidance}
    fresh, learning = learn_briefly(model, settings, settings.model, on_learning, **run)
    schedules: dict[str, CacheSchedule | None] = {FULL: None, FRESH: fresh}
    if settings.shipped is not None:
        schedules[SHIPPED] = ScheduleFamily.load(settings.shipped).at(settings.budget)
    variants = _compare(model, schedules, settings, on_sampling)
    if on_sampling is not None:
        on_sampling("fine steps, to measure errors", 0)
    fine = sample(model, settings.labels, settings.seeds, guidance=settings.guidance, **FINE_RUN).cpu()
    files, gain = _write(folder, variants)
    record = Record(
        command="demo",
        config={
            **_plain(asdict(settings)),
            "class_names": [CIFAR10_CLASSES[label] for label in settings.labels],
        },
        seeds=settings.seeds,
        timings={variant.key: list(variant.timing.seconds) for variant in variants},
        results={
            "variants": _results(model, variants, fine, settings.steps),
            "fine_run": FINE_RUN,
            "difference_gain": gain,
            "learning": learning,
            "files": files,
        },
        device=describe_device(device),
    )
    record.save(folder / "record.json")
    images = {name: (folder / name).read_bytes() for name in files if name.endswith(".png")}
    atomic_write(folder / PAGE, demo_page(record.to_json(), images).encode())
    return record


def _compare(
    model: nn.Module,
    schedules: Mapping[str, CacheSchedule | None],
    settings: DemoSettings,
    on_sampling: Callable[[str, int], None] | None,
) -> list[_Variant]:
    """Samples the same noise in every way, in turn; one picture each is the warm-up."""
    images: dict[str, Tensor] = {}

    def run(key: str, count: int) -> None:
        images[key] = sample(
            model,
            settings.labels[:count],
            settings.seeds[:count],
            solver=settings.solver,
            steps=settings.steps,
            guidance=settings.guidance,
            schedule=schedules[key],
        )

    def announce(key: str, repetition: int) -> None:
        if on_sampling is not None:
            on_sampling(TITLES[key], repetition)

    timings = interleave(
        {key: partial(run, key, len(settings.labels)) for key in schedules},
        settings.repetitions,
        warm_ups={key: partial(run, key, 1) for key in schedules},
        time_limit_s=settings.compare_limit_s,
        on_run=announce,
    )
    return [_Variant(key, schedules[key], images[key].cpu(), timings[key]) for key in schedules]


def _results(model: nn.Module, variants: list[_Variant], fine: Tensor, steps: int) -> list[dict[str, Any]]:
    """Figures of every variant, in plain data; PSNR is None for what it is measured against."""
    full = variants[0]
    rows = []
    for variant in variants:
        decibels = psnr(variant.images, full.images)
        schedule, timing = variant.schedule, variant.timing
        rows.append(
            {
                "key": variant.key,
                "title": TITLES[variant.key],
                **timing.against(full.timing),
                "macs": find_layers(model).full_macs * steps if schedule is None else schedule.cost.macs,
                "fraction": 1.0 if schedule is None else schedule.cost.fraction,
                "psnr_db": None if schedule is None else _finite(decibels.mean().item()),
                "error": rmse(variant.images, fine).mean().item(),
                "psnr_min_db": None if schedule is None else _finite(decibels.min().item()),
            }
        )
    return rows


def _write(folder: Path, variants: list[_Variant]) -> tuple[list[str], int]:
    """Writes schedules, grids, differences and heat maps.

    Returns:
        Names of the files, and the factor by which differences are amplified.
    """
    pixels = {variant.key: to_pixels(variant.images) for variant in variants}
    gain = min(difference_gain(pixels[v.key], pixels[FULL]) for v in variants[1:])
    files: dict[str, bytes] = {}
    saved: list[str] = []
    for variant in variants:
        key = variant.key
        files[f"{key}.png"] = png(picture_grid(pixels[key], _COLUMNS, _SCALE))
        if variant.schedule is None:
            continue
        suffix = "" if key == FRESH else f"-{key}"
        difference = difference_pixels(pixels[key], pixels[FULL], gain)
        files[f"difference{suffix}.png"] = png(picture_grid(difference, _COLUMNS, _SCALE))
        files[f"heatmap{suffix}.png"] = heat_map(variant.schedule.summary())
        variant.schedule.save(folder / f"schedule{suffix}.safetensors")
        saved.append(f"schedule{suffix}.safetensors")
    for name, data in files.items():
        atomic_write(folder / name, data)
    return [*files, *saved], gain


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Settings in the types that JSON has."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
    return {key: value.name if isinstance(value, Path) else value for key, value in plain.items()}
