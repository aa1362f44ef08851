"""What commands that learn do alike: show how far they are, and write what they have learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import Progress as Bar

from l2c.cli.console import Interrupted, note, seconds
from l2c.errors import OutputError
from l2c.files import remove_partial
from l2c.learning.session import LEARNING, SEARCHING, OnProgress, Progress
from l2c.processes import is_main
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule


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


def write_learned(
    schedules: ScheduleFamily | CacheSchedule, out: Path, checkpoint: Path, *, finished: bool
) -> None:
    """Writes the schedules, and only then removes the checkpoint."""
    try:
        remove_partial(out)
        if isinstance(schedules, ScheduleFamily) and len(schedules) == 1:
            schedules = next(iter(schedules))
        schedules.save(out)
    except OutputError as error:
        if not checkpoint.exists():
            raise
        raise OutputError(
            f"{error}, and add --checkpoint {checkpoint}, which has what was learned"
        ) from error
    if finished:
        checkpoint.unlink(missing_ok=True)


def tell_end(progress: str, out: Path, *, interrupted: bool, finished: bool) -> None:
    """Says that learning ended early, if it did.

    Args:
        progress: How far it came.
        out: The file that was written.
        interrupted: Whether by Ctrl-C.
        finished: Whether it did not.

    Raises:
        Interrupted: If by Ctrl-C.
    """
    ending = f"after {progress}; {out} has what was learned, and the same command goes on from there"
    if interrupted:
        raise Interrupted(f"interrupted {ending}")
    if not finished and is_main():
        note(f"the time was up {ending}")
