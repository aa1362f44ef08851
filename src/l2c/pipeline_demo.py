"""The whole way on the text-to-image pipeline that comes with the package: learn for half of the work, draw, judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.bench.timing import Timing, interleave
from l2c.demo import learn_briefly
from l2c.evaluation.metrics import rmse
from l2c.files import atomic_write
from l2c.hosts.enable import enable_cache
from l2c.hosts.pipeline.conditions import SeededConditions
from l2c.hosts.pipeline.decoding import PipelineDecoder
from l2c.hosts.pipeline.loading import load_pipeline
from l2c.hosts.targets import host_of
from l2c.learning.session import Progress
from l2c.learning.settings import LearnSettings
from l2c.records import Record, describe_device
from l2c.report.pictures import to_pixels
from l2c.report.prompt_sheet import prompt_sheet
from l2c.scenes import CALL, PIPELINE, adherence, scene_prompts, summarise_adherence
from l2c.schedule.schedule import CacheSchedule

FULL, HALF = "everything computed", "half of the work"
SHEET = "pictures.png"

LEARNING = LearnSettings(
    iterations=4,
    batch_size=4,
    num_examples=32,
    reference_steps=60,
    trials=3,
    trial_examples=8,
    level_trials=24,
    tail=0,
)
"""As much learning as a demonstration has time for; on slow machines, the limit ends the search of noise levels."""


@dataclass(frozen=True)
class PipelineDemoSettings:
    """What the demo does.

    Attributes:
        evaluations: What a picture may cost, half of the pipeline's own.
        pictures: How many are drawn, of prompts that neither the pipeline nor the schedule has learned on.
        fine_steps: Steps of the run that stands for the exact solution.
        learning: How the schedule is learned.
        learning_limit_s: Seconds after which learning ends, which keeps the demo short on a slow machine, or None.
        repetitions: How often each way of drawing is timed.
        compare_limit_s: No further repetition is begun if it would probably end after so many seconds.
    """

    evaluations: float = CALL["num_inference_steps"] / 2
    pictures: int = 10
    fine_steps: int = 60
    learning: LearnSettings = field(default_factory=lambda: LEARNING)
    learning_limit_s: float | None = 150.0
    repetitions: int = 3
    compare_limit_s: float = 45.0

    @classmethod
    def quick(cls) -> PipelineDemoSettings:
        """Few pictures, hardly any learning, one repetition: to see that everything works."""
        learning = LearnSettings(
            iterations=2, batch_size=1, num_examples=4, reference_steps=12, trials=2, trial_examples=1
        )
        return cls(pictures=4, fine_steps=30, learning=learning, learning_limit_s=None, repetitions=1)

    @property
    def num_runs(self) -> int:
        """Timed runs, and the one in fine steps."""
        return 1 + 2 * self.repetitions


def run_pipeline_demo(
    folder: Path,
    settings: PipelineDemoSettings | None = None,
    device: str = "cpu",
    *,
    on_learning: Callable[[Progress], None] | None = None,
    on_sampling: Callable[[str, int], None] | None = None,
) -> Record:
    """Learns a schedule, draws pictures with and without, and writes everything into a folder that exists.

    Arguments, what is returned and errors are those of `run_demo`.
    """
    settings = settings or PipelineDemoSettings()
    pipe = load_pipeline(PIPELINE, device=device, quiet=True)
    run = {"prompts": scene_prompts(settings.learning.num_examples), **CALL}
    cost = {"solver": "auto", "evaluations": settings.evaluations, "per_computed": 1}
    schedule, learning = learn_briefly(pipe, settings, PIPELINE, on_learning, **cost, **run)
    share = schedule.cost.fraction * schedule.num_evaluations / CALL["num_inference_steps"]
    prompts, seeds = scene_prompts(settings.pictures, held_out=True), tuple(range(settings.pictures))
    pictures, timings = _draw(pipe, schedule, prompts, seeds, settings, on_sampling)
    if on_sampling is not None:
        on_sampling("fine steps, to measure errors", 0)
    fine = _solution(pipe, prompts, seeds, settings.fine_steps)
    variants = [
        _figures(key, pictures[key], fine, prompts, timings[key], timings[FULL], fraction)
        for key, fraction in ((FULL, 1.0), (HALF, share))
    ]
    titles = {variant["title"]: _caption(variant) for variant in variants}
    sheet = prompt_sheet({titles[key]: to_pixels(pictures[key]) for key in titles}, prompts)
    atomic_write(folder / SHEET, sheet)
    schedule.save(folder / "schedule.safetensors")
    record = Record(
        command="demo --pipeline",
        config={"pipeline": PIPELINE, "call": dict(CALL), "prompts": prompts, **asdict(settings)},
        seeds=seeds,
        timings={key: list(timing.seconds) for key, timing in timings.items()},
        results={
            "variants": variants,
            "learning": learning,
            "fine_run": {"steps": settings.fine_steps},
            "files": [SHEET, "schedule.safetensors"],
        },
        device=describe_device(device),
    )
    record.save(folder / "record.json")
    return record


def _draw(
    pipe: Any,
    schedule: CacheSchedule,
    prompts: list[str],
    seeds: tuple[int, ...],
    settings: PipelineDemoSettings,
    on_sampling: Callable[[str, int], None] | None,
) -> tuple[dict[str, Tensor], Mapping[str, Timing]]:
    """Pictures in [-1, 1] by the pipeline's own call, with the schedule and without, in turn."""
    pictures: dict[str, Tensor] = {}

    def call(key: str, count: int) -> None:
        noise = [torch.Generator().manual_seed(seed) for seed in seeds[:count]]
        steps = CALL["num_inference_steps"] if key == FULL else schedule.num_evaluations
        how = {**CALL, "num_inference_steps": steps}
        made = pipe(prompts[:count], generator=noise, output_type="pt", **how).images
        pictures[key] = made.float().cpu() * 2 - 1

    def around(key: str) -> AbstractContextManager[object]:
        return enable_cache(pipe, schedule) if key == HALF else nullcontext()

    timings = interleave(
        {key: partial(call, key, len(prompts)) for key in (FULL, HALF)},
        settings.repetitions,
        warm_ups={key: partial(call, key, 1) for key in (FULL, HALF)},
        time_limit_s=settings.compare_limit_s,
        on_run=on_sampling,
        around=around,
    )
    return pictures, timings


@torch.no_grad()
def _solution(pipe: Any, prompts: list[str], seeds: tuple[int, ...], steps: int) -> Tensor:
    """The pictures in fine steps, from the same noise."""
    host = host_of(pipe, prompts=prompts, **CALL)
    examples = host.seeded(seeds)
    assert isinstance(examples, SeededConditions)
    latents = host.reference(steps).sample(examples)
    decode = PipelineDecoder(pipe, CALL)
    return torch.cat(
        [
            decode(one[None], condition).cpu()
            for one, condition in zip(latents, examples.conditions, strict=True)
        ]
    )


def _figures(
    title: str,
    pictures: Tensor,
    fine: Tensor,
    prompts: list[str],
    timing: Timing,
    full: Timing,
    fraction: float,
) -> dict[str, Any]:
    """Figures of a way of drawing, in plain data."""
    return {
        "title": title,
        **timing.against(full),
        "fraction": fraction,
        "adherence": summarise_adherence(adherence((pictures + 1) / 2, prompts)),
        "error": rmse(pictures, fine).mean().item(),
    }


def _caption(variant: Mapping[str, Any]) -> str:
    return (
        f"{variant['title']}\n{variant['median_s']:.2f} s, {variant['fraction']:.0%} of the MACs\n"
        f"{variant['adherence']['objects']:.0%} of objects as told\nerror {variant['error']:.4f}"
    )
