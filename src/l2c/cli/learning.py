"""What commands that learn do: load, learn under a progress bar, write, print, and clear up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.progress import Progress as Bar

from l2c.cli.console import Interrupted, note, print_json, progress_bar, seconds
from l2c.cli.options import check_outputs
from l2c.cli.targets import load, name_of
from l2c.errors import OutputError
from l2c.learning.paper import RouterSettings
from l2c.learning.session import LEARNING, SEARCHING, OnProgress, Progress, Session, solutions_folder
from l2c.learning.settings import LearnSettings
from l2c.processes import is_main, part
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule


def session_of(given: Mapping[str, Any]) -> Session:
    """How learning is carried out, by the options that a command was given.

    Raises:
        ConfigError: If one is out of range.
        OutputError: If what is to be written cannot be.
    """
    out, minutes = given["out"], given["max_minutes"]
    session = Session(
        checkpoint=given["checkpoint"] or out.with_name(f"{out.name}.checkpoint"),
        save_every_s=given["save_every"],
        restart=given["restart"],
        time_limit_s=None if minutes is None else 60 * minutes,
        log_dir=given["log_dir"],
        solutions=solutions_folder(),
    )
    check_outputs({**given, "checkpoint": session.checkpoint}, out=".safetensors", checkpoint="")
    return session


def run_learning(
    given: Mapping[str, Any],
    settings: LearnSettings | RouterSettings,
    learn: Callable[..., CacheSchedule | ScheduleFamily],
    tell: Callable[[list[CacheSchedule]], None],
    asked: int = 1,
    **more: Any,
) -> None:
    """Learns, writes and prints; the checkpoint is removed when all is done.

    Args:
        given: What the command was given.
        settings: How it learns.
        learn: Learns; called with the target, and with session, settings, name and progress as `l2c.learn` takes them.
        tell: Prints what was learned, for people.
        asked: How many schedules there are to be.
        more: What else to print as JSON.

    Raises:
        Interrupted: If Ctrl-C ended it, with or without something learned.
        L2CError: Whatever is wrong.
    """
    session, out = session_of(given), given["out"]
    target = load(given)
    began = perf_counter()
    with progress_bar("figure", "computed") as bar:
        learned = learn(
            target,
            settings=settings,
            session=session,
            model_name=name_of(given["model"], given["lora"]),
            on_progress=shower(bar, "loss" if isinstance(settings, RouterSettings) else "error"),
        )
    took_s = perf_counter() - began
    schedules = list(learned) if isinstance(learned, ScheduleFamily) else [learned]
    made = [schedule.provenance for schedule in schedules]
    interrupted = any(one["interrupted"] for one in made) or len(schedules) < asked
    finished = not interrupted and not any(one["time_was_up"] for one in made)
    if not any(one["iterations"] for one in made):
        raise Interrupted("interrupted before anything was learned")
    if is_main():
        _write(learned if len(schedules) > 1 else schedules[0], out, session.checkpoint, finished=finished)
        if given["as_json"]:
            found = {"file": str(out), "seconds": round(took_s, 1), **more}
            every = [schedule.summary() for schedule in schedules]
            print_json({**found, **every[0]} if len(every) == 1 else {**found, "schedules": every})
        else:
            tell(schedules)
            note(f"learned in {seconds(took_s)}")
    part()
    progress = f"{made[-1]['iterations']} of {settings.iterations} iterations"
    if asked > 1:
        progress = _progress_of_budgets(schedules, asked, settings.iterations)
    ending = f"after {progress}; {out} has what was learned, and the same command goes on from there"
    if interrupted:
        raise Interrupted(f"interrupted {ending}")
    if not finished and is_main():
        note(f"the time was up {ending}")


def _write(
    learned: ScheduleFamily | CacheSchedule, out: Path, checkpoint: Path | None, *, finished: bool
) -> None:
    """Writes the schedules, and only then removes the checkpoint."""
    assert checkpoint is not None
    try:
        learned.save(out)
    except OutputError as error:
        if not checkpoint.exists():
            raise
        raise OutputError(
            f"{error}, and add --checkpoint {checkpoint}, which has what was learned"
        ) from error
    if finished:
        checkpoint.unlink(missing_ok=True)


def _progress_of_budgets(schedules: Iterable[CacheSchedule], asked: int, iterations: int) -> str:
    """How many budgets of a family were learned to the end, and how far the others came."""
    done = {one.provenance["budget"]: one.provenance for one in schedules}
    short = [
        f"{budget:g} has {how['iterations']} of {iterations}"
        for budget, how in done.items()
        if how["iterations"] < iterations and (how["interrupted"] or how["time_was_up"])
    ]
    told = f" ({', '.join(short)} iterations)" if short else ""
    return f"{len(done) - len(short)} of {asked} budgets{told}"


def shower(bar: Bar, name: str) -> OnProgress:
    """Shows progress on the bar, or where there is none, such as in log files, in a line now and then."""
    task = bar.add_task("preparing", total=None, figure="", computed="")
    stage = ""

    def show(progress: Progress) -> None:
        nonlocal stage
        done, total = progress.iteration, progress.iterations
        learning = progress.stage.startswith((LEARNING, SEARCHING))
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
