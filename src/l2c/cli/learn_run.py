"""What `l2c learn` does: loads, learns under a progress bar, writes the schedule, and clears up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from l2c.cli.budgets import Budget
from l2c.cli.console import Interrupted, note, print_json, progress_bar, results, seconds
from l2c.cli.learning import shower, tell_end, write_learned
from l2c.cli.schedules import print_family, print_schedule
from l2c.devices import resolve_dtype
from l2c.errors import ConfigError
from l2c.files import check_output_file
from l2c.learning.data import ImageData, load_images
from l2c.learning.end_to_end import LearnSettings
from l2c.learning.learn import learn_family
from l2c.learning.paper import RouterSettings, learn_router
from l2c.learning.session import OnProgress, Session
from l2c.learning.solver import learn_solver
from l2c.models import load_model
from l2c.processes import is_main, own_device, part
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler
from l2c.schedule.family import ScheduleFamily


@dataclass(frozen=True)
class LearnRequest:
    """What to learn for, as on the command line."""

    model: str
    solver: str
    steps: int
    spacing: str
    guidance: float
    budget: Budget
    per_computed: int | None
    data: Path | None
    device: str
    dtype: str


def run_learn(
    request: LearnRequest,
    settings: LearnSettings | RouterSettings,
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
    model = load_model(request.model, dtype=resolve_dtype(request.dtype), device=own_device(request.device))
    began = perf_counter()
    with progress_bar("figure", "computed") as bar:
        name = "loss" if isinstance(settings, RouterSettings) else "error"
        family = _learn(model, request, settings, session, shower(bar, name))
    took_s = perf_counter() - began
    asked = len(request.budget.amounts) if isinstance(settings, LearnSettings) else 1
    done = [int(schedule.provenance["iterations"]) for schedule in family]
    finished = len(family) == asked and min(done) == settings.iterations
    if not any(done):
        raise Interrupted("interrupted before anything was learned")
    if is_main():
        write_learned(family, out, session.checkpoint, finished=finished)
        _print(family, out, took_s, as_json)
    part()
    progress = f"{done[-1]} of {settings.iterations} iterations"
    if asked > 1:
        progress = _progress_of_budgets(family, asked, settings.iterations)
    interrupted = any(schedule.provenance["interrupted"] for schedule in family) or len(family) < asked
    tell_end(progress, out, interrupted=interrupted, finished=finished)


def _progress_of_budgets(family: ScheduleFamily, asked: int, iterations: int) -> str:
    """How many budgets of a family were learned to the end, and how far the others came."""
    done = {schedule.provenance["budget"]: schedule.provenance["iterations"] for schedule in family}
    short = [f"{budget:g} has {some} of {iterations}" for budget, some in done.items() if some < iterations]
    told = f" ({', '.join(short)} iterations)" if short else ""
    return f"{len(done) - len(short)} of {asked} budgets{told}"


def _learn(
    model: nn.Module,
    request: LearnRequest,
    settings: LearnSettings | RouterSettings,
    session: Session,
    on_progress: OnProgress,
) -> ScheduleFamily:
    """The schedules that were asked for, mostly one."""
    model_name = Path(request.model).name if Path(request.model).exists() else request.model
    how: dict[str, Any] = {"session": session, "model_name": model_name, "on_progress": on_progress}
    if isinstance(settings, RouterSettings):
        schedule = learn_router(
            model,
            request.solver,
            request.steps,
            spacing=request.spacing,
            guidance=request.guidance,
            data=None if request.data is None else _load_images(request.data, Denoiser.of(model)),
            settings=settings,
            **how,
        )
        return ScheduleFamily([schedule])
    budget = request.budget
    if budget.unit == "evaluations":
        learned = learn_solver(
            model,
            budget.amounts[0],
            guidance=request.guidance,
            per_computed=request.per_computed,
            settings=settings,
            **how,
        )
        return ScheduleFamily([learned])
    sampler = Sampler(
        Denoiser.of(model), request.solver, request.steps, request.spacing, Guidance(request.guidance)
    )
    return learn_family(
        model,
        request.solver,
        request.steps,
        budgets=budget.amounts,
        spacing=request.spacing,
        guidance=request.guidance,
        costs=budget.costs(sampler),
        settings=settings,
        **how,
    )


def _load_images(path: Path, denoiser: Denoiser) -> ImageData:
    if denoiser.latent:
        raise ConfigError("--data takes pictures but the model works on latents; leave it out")
    channels, height, _ = denoiser.sample_shape
    return load_images(path, height, channels, num_classes=denoiser.num_classes)


def _print(family: ScheduleFamily, out: Path, took_s: float, as_json: bool) -> None:
    summaries = [schedule.summary() for schedule in family]
    if as_json:
        found = {"file": str(out), "seconds": round(took_s, 1)}
        print_json({**found, **summaries[0]} if len(family) == 1 else {**found, "schedules": summaries})
        return
    if len(family) > 1:
        print_family(family, str(out))
    else:
        print_schedule(summaries[0], str(out), rows=False)
        _print_errors(next(iter(family)).provenance)
    note(f"learned in {seconds(took_s)}")


def _print_errors(provenance: Mapping[str, Any]) -> None:
    """How close the pictures come, where learning measured that."""
    if "held_out_error" not in provenance:
        return
    console = results()
    line = f"\nError of pictures that were not learned on: {provenance['held_out_error']:.4f}"
    if "held_out_error_of_everything" in provenance:
        line += f"; with everything computed {provenance['held_out_error_of_everything']:.4f}"
    line += f"; before learning, with the same mask, {provenance['held_out_error_before']:.4f}"
    console.print(line)
    if "fewer_steps" in provenance:
        plain = sorted(provenance["fewer_steps"].items(), key=lambda item: item[1])
        listed = ", ".join(f"{name} {error:.4f}" for name, error in plain)
        console.print(f"Chosen: {provenance['structure']}. Plain fewer steps at that cost: {listed}")
