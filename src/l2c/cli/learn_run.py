"""What `l2c learn` does: loads, learns under a progress bar, writes the schedule, and clears up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.progress import Progress as Bar
from torch import nn

from l2c.cache.schedule import CacheSchedule
from l2c.cli.console import Interrupted, is_main, note, print_json, progress_bar, results, seconds
from l2c.cli.options import resolve_device, resolve_dtype
from l2c.cli.schedules import print_schedule
from l2c.errors import ConfigError, OutputError
from l2c.files import check_output_file, remove_partial
from l2c.learning.data import ImageData, load_images
from l2c.learning.end_to_end import PredictorSettings, fit_predictor
from l2c.learning.learn import LearnSettings
from l2c.learning.learn import learn as learn_router
from l2c.learning.session import LEARNING, OnProgress, Progress, Session
from l2c.methods.interval import interval
from l2c.models import load_model
from l2c.sampling.denoiser import Denoiser


@dataclass(frozen=True)
class LearnRequest:
    """What to learn for, as on the command line."""

    model: str
    solver: str
    steps: int
    spacing: str
    guidance: float
    every: int
    data: Path | None
    device: str
    dtype: str


def run_learn(
    request: LearnRequest,
    settings: LearnSettings | PredictorSettings,
    session: Session,
    out: Path,
    as_json: bool,
) -> None:
    """Learns, writes and prints a schedule; the checkpoint is removed when all is done.

    Raises:
        Interrupted: If Ctrl-C ended it, with or without something learned.
        L2CError: Whatever is wrong.
    """
    assert session.checkpoint is not None
    for path in (out, session.checkpoint):
        check_output_file(path)
    model = load_model(
        request.model, dtype=resolve_dtype(request.dtype), device=_resolve_device(request.device)
    )
    began = perf_counter()
    with progress_bar("figure", "computed") as bar:
        name = "loss" if isinstance(settings, LearnSettings) else "error"
        schedule = _learn(model, request, settings, session, _shower(bar, name))
    took_s = perf_counter() - began
    done, total = _iterations(schedule), settings.iterations
    if not done:
        raise Interrupted("interrupted before anything was learned")
    if is_main():
        _write(schedule, out, session.checkpoint, finished=done == total)
        _print(schedule, out, took_s, as_json)
    _part()
    ending = f"after {done} of {total} iterations; {out} has what was learned, and the same command goes on from there"
    if schedule.provenance["interrupted"]:
        raise Interrupted(f"interrupted {ending}")
    if done < total and is_main():
        note(f"the time was up {ending}")


def _learn(
    model: nn.Module,
    request: LearnRequest,
    settings: LearnSettings | PredictorSettings,
    session: Session,
    on_progress: OnProgress,
) -> CacheSchedule:
    model_name = Path(request.model).name if Path(request.model).exists() else request.model
    if isinstance(settings, PredictorSettings):
        if request.every < 2:
            raise ConfigError(f"--every must be at least 2 for anything to be reused, got {request.every}")
        mask = interval(model, request.solver, request.steps, request.every, spacing=request.spacing)
        return fit_predictor(
            model,
            mask,
            guidance=request.guidance,
            settings=settings,
            session=session,
            model_name=model_name,
            on_progress=on_progress,
        )
    return learn_router(
        model,
        request.solver,
        request.steps,
        spacing=request.spacing,
        guidance=request.guidance,
        data=None if request.data is None else _load_images(request.data, Denoiser.of(model)),
        settings=settings,
        session=session,
        model_name=model_name,
        on_progress=on_progress,
    )


def _load_images(path: Path, denoiser: Denoiser) -> ImageData:
    if denoiser.latent:
        raise ConfigError("--data takes pictures but the model works on latents; leave it out")
    channels, height, _ = denoiser.sample_shape
    return load_images(path, height, channels, num_classes=denoiser.num_classes)


def _iterations(schedule: CacheSchedule) -> int:
    """Iterations that are in a learned schedule."""
    provenance = schedule.provenance
    return int(provenance.get("predictor_steps", provenance.get("iterations")))


def _shower(bar: Bar, name: str) -> OnProgress:
    """Shows progress on the bar, or where there is none, such as in log files, in a line now and then."""
    task = bar.add_task("preparing", total=None, figure="", computed="")
    stage = ""

    def show(progress: Progress) -> None:
        nonlocal stage
        done, total = progress.iteration, progress.iterations
        learning = progress.stage == LEARNING
        figure = f"{name} {progress.loss if name == 'loss' else progress.error:.3g}" if learning else ""
        fields: dict[str, Any] = {"figure": figure, "computed": f"{progress.fraction:.0%} of MACs"}
        if progress.stage != stage:  # a run that goes on does not begin at 0, which is not speed
            stage = progress.stage
            bar.reset(task, description=stage, total=total, completed=done, **fields)
        bar.update(task, completed=done, **fields)
        if bar.disable and (done % max(1, total // 10) == 0 or done == total):
            left = f"{seconds(progress.left_s)} left"
            note(" ".join(filter(None, (stage, f"{done}/{total}", figure, fields["computed"], left))))

    return show


def _write(schedule: CacheSchedule, out: Path, checkpoint: Path, *, finished: bool) -> None:
    """Writes the schedule, and only then removes the checkpoint."""
    try:
        remove_partial(out)
        schedule.save(out)
    except OutputError as error:
        if not checkpoint.exists():
            raise
        raise OutputError(
            f"{error}, and add --checkpoint {checkpoint}, which has what was learned"
        ) from error
    if finished:
        checkpoint.unlink(missing_ok=True)


def _print(schedule: CacheSchedule, out: Path, took_s: float, as_json: bool) -> None:
    summary, provenance = schedule.summary(), schedule.provenance
    if as_json:
        print_json({"file": str(out), "seconds": round(took_s, 1), **summary})
        return
    print_schedule(summary, str(out), rows=False)
    if "held_out_error" in provenance:
        results().print(
            f"\nError of pictures that were not learned on: {provenance['held_out_error']:.4f}; before learning, "
            f"with the polynomial through the last outputs, {provenance['held_out_error_before']:.4f}"
        )
    note(f"learned in {seconds(took_s)}")


def _resolve_device(name: str) -> str:
    """The device of this process, which is one of its own where several were started together.

    Raises:
        ConfigError: If there is no such device, or it cannot be that of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return resolve_device(name)
    from accelerate import PartialState

    kind = resolve_device(name.partition(":")[0])
    own = str(PartialState(cpu=kind == "cpu").device)
    if name not in ("auto", kind, own) or not own.startswith(kind):
        raise ConfigError(
            f"several processes cannot all have the device '{name}'; say --device {kind}, or none"
        )
    return own


def _part() -> None:
    """Waits for the other processes and lets go of them."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
