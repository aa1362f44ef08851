"""What `l2c learn-pipeline` and `l2c repair` do: load, learn under a progress bar, write, print, and clear up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from l2c.cli.console import Interrupted, note, print_json, progress_bar, results, seconds
from l2c.cli.learning import shower, tell_end, write_learned
from l2c.cli.pipelines import in_words_of
from l2c.cli.schedules import print_schedule
from l2c.devices import resolve_dtype
from l2c.errors import ConfigError
from l2c.files import check_output_file
from l2c.hosts.pipeline.fit import fit_predictor
from l2c.hosts.pipeline.learn import learn
from l2c.hosts.pipeline.loading import load_pipeline
from l2c.hosts.pipeline.settings import FitSettings
from l2c.learning.session import OnProgress, Session
from l2c.processes import is_main, own_device, part
from l2c.schedule.schedule import CacheSchedule


@dataclass(frozen=True)
class PipelineRequest:
    """A pipeline, what it is called with, and where the schedule goes, as on the command line."""

    pipeline: str
    device: str
    dtype: str
    lora: str | None
    conditions: list[dict[str, Any]]
    call: dict[str, Any]
    out: Path
    as_json: bool

    @property
    def name(self) -> str:
        """Of the pipeline, for people: without the folders that it is in on this machine."""
        names = [Path(one).name if Path(one).exists() else one for one in (self.pipeline, self.lora) if one]
        return " with ".join(names)


def run_learn_pipeline(
    request: PipelineRequest, budget: float, settings: FitSettings, session: Session
) -> None:
    """Learns, writes and prints a schedule; the checkpoint is removed when all is done.

    Raises:
        Interrupted: If Ctrl-C ended it.
        L2CError: Whatever is wrong.
    """

    def work(pipe: Any, show: OnProgress) -> CacheSchedule:
        return learn(
            pipe,
            request.conditions,
            budget=budget,
            settings=settings,
            session=session,
            model_name=request.name,
            on_progress=show,
            **request.call,
        )

    def tell(schedule: CacheSchedule) -> None:
        print_schedule(schedule.summary(), str(request.out), rows=False)
        made = schedule.provenance
        results().print(
            f"\nError of runs {_held_out(made)}: {made['held_out_error']:.4f} of what the pipeline makes; before "
            f"learning, with the same mask, {made['held_out_error_before']:.4f}",
            soft_wrap=True,
        )

    _run(request, settings, session, work, tell, {})


def run_repair(
    request: PipelineRequest, schedule: CacheSchedule, settings: FitSettings, session: Session
) -> None:
    """Goes on learning a schedule for another variant of its pipeline; see `run_learn_pipeline`.

    Raises:
        ConfigError: If nothing in the schedule was learned.
        Interrupted: If Ctrl-C ended it.
        L2CError: Whatever is wrong.
    """
    if schedule.predictor.coefficients is None:
        raise ConfigError(
            f"the schedule was not learned ({schedule.predictor.name}), so that there is nothing to repair; learn one "
            "with l2c learn-pipeline"
        )
    recorded = schedule.provenance.get("drift", {}).get("error")

    def work(pipe: Any, show: OnProgress) -> CacheSchedule:
        repaired = fit_predictor(
            pipe,
            schedule,
            request.conditions,
            settings=settings,
            session=session,
            on_progress=show,
            **request.call,
        )
        return replace(repaired, contract=replace(repaired.contract, model=request.name))

    def tell(repaired: CacheSchedule) -> None:
        made = repaired.provenance
        when_made = "" if recorded is None else f"; it was {recorded:.4f} when the schedule was made"
        results().print(
            f"{request.out}: error of runs {_held_out(made)} {made['held_out_error_before']:.4f} before and "
            f"{made['held_out_error']:.4f} after the repair{when_made}",
            soft_wrap=True,
        )

    _run(request, settings, session, work, tell, {"error_when_made": recorded})


def _run(
    request: PipelineRequest,
    settings: FitSettings,
    session: Session,
    work: Callable[[Any, OnProgress], CacheSchedule],
    tell: Callable[[CacheSchedule], None],
    more: Mapping[str, Any],
) -> None:
    assert session.checkpoint is not None
    out = request.out
    for path in (out, session.checkpoint):
        check_output_file(path)
    needed = settings.num_runs + settings.num_held_out
    if len(request.conditions) > needed and is_main():
        note(
            f"learning takes the first {needed} of {len(request.conditions)} prompts; a larger --runs takes more"
        )
    dtype, device = resolve_dtype(request.dtype), own_device(request.device)
    pipe = load_pipeline(request.pipeline, dtype=dtype, device=device, lora=request.lora, quiet=True)
    began = perf_counter()
    with (
        progress_bar("figure", "computed") as bar,
        in_words_of(pipe, {**request.call, **request.conditions[0]}),
    ):
        schedule = work(pipe, shower(bar, "error"))
    took_s = perf_counter() - began
    done = int(schedule.provenance["iterations"])
    if not done:
        raise Interrupted("interrupted before anything was learned")
    finished = done == settings.iterations
    if is_main():
        write_learned(schedule, out, session.checkpoint, finished=finished)
        if request.as_json:
            print_json({"file": str(out), "seconds": round(took_s, 1), **more, **schedule.summary()})
        else:
            tell(schedule)
            note(f"learned in {seconds(took_s)}")
    part()
    tell_end(
        f"{done} of {settings.iterations} iterations",
        out,
        interrupted=bool(schedule.provenance["interrupted"]),
        finished=finished,
    )


def _held_out(made: Mapping[str, Any]) -> str:
    """Which runs errors are of."""
    return "that were not learned on" if made["held_out_conditions"] else "with other noise"
