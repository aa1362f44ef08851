"""What commands that learn do: load, learn under a progress bar, write, print, and clear up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.progress import Progress as Bar

from l2c.cli.console import Interrupted, note, print_json, progress_bar, results, seconds
from l2c.cli.options import check_outputs
from l2c.cli.targets import load, name_of
from l2c.errors import OutputError
from l2c.learning.estimate import LearningEstimate
from l2c.learning.paper import RouterSettings
from l2c.learning.session import LEARNING, SEARCHING, OnProgress, Progress, Session
from l2c.learning.settings import LearnSettings
from l2c.processes import is_main, part
from l2c.schedule.family import ScheduleFamily
from l2c.schedule.schedule import CacheSchedule

Learn = Callable[..., CacheSchedule | ScheduleFamily]
"""Called with the target, and with session, settings, name and progress as `l2c.learn` takes them."""


@dataclass(frozen=True)
class LearnCommand:
    """What is learned on, how, and where the result goes, as on the command line."""

    given: Mapping[str, Any]
    settings: LearnSettings | RouterSettings
    session: Session
    out: Path
    as_json: bool

    @classmethod
    def of(cls, given: Mapping[str, Any], settings: LearnSettings | RouterSettings) -> LearnCommand:
        """From the options that a command was given.

        Raises:
            ConfigError: If one is out of range.
        """
        out, minutes, checkpoint = given["out"], given["max_minutes"], given["checkpoint"]
        session = Session(
            checkpoint=checkpoint or out.with_name(f"{out.name}.checkpoint"),
            save_every_s=given["save_every"],
            restart=given["restart"],
            time_limit_s=None if minutes is None else 60 * minutes,
            log_dir=given["log_dir"],
        )
        check_outputs({**given, "checkpoint": session.checkpoint}, out=".safetensors", checkpoint="")
        return cls(given, settings, session, out, given["as_json"])

    def tell(self, estimate: LearningEstimate) -> None:
        """Prints what learning would do."""
        if self.as_json:
            print_json(estimate.to_json())
        else:
            results().print(str(estimate), soft_wrap=True)

    def run(
        self, learn: Learn, tell: Callable[[list[CacheSchedule]], None], asked: int = 1, **more: Any
    ) -> None:
        """Learns, writes and prints; the checkpoint is removed when all is done.

        Args:
            learn: Learns.
            tell: Prints what was learned, for people.
            asked: How many schedules there are to be.
            more: What else to print as JSON.

        Raises:
            Interrupted: If Ctrl-C ended it, with or without something learned.
            L2CError: Whatever is wrong.
        """
        target = load(self.given)
        began = perf_counter()
        with progress_bar("figure", "computed") as bar:
            learned = learn(
                target,
                settings=self.settings,
                session=self.session,
                model_name=name_of(self.given["model"], self.given["lora"]),
                on_progress=shower(bar, "loss" if isinstance(self.settings, RouterSettings) else "error"),
            )
        took_s = perf_counter() - began
        schedules = list(learned) if isinstance(learned, ScheduleFamily) else [learned]
        done = [int(schedule.provenance["iterations"]) for schedule in schedules]
        ended = any(one.provenance["interrupted"] or one.provenance["time_was_up"] for one in schedules)
        finished = len(schedules) == asked and not ended
        if not any(done):
            raise Interrupted("interrupted before anything was learned")
        if is_main():
            self._write(learned if len(schedules) > 1 else schedules[0], finished=finished)
            if self.as_json:
                found = {"file": str(self.out), "seconds": round(took_s, 1), **more}
                every = [schedule.summary() for schedule in schedules]
                print_json({**found, **every[0]} if len(every) == 1 else {**found, "schedules": every})
            else:
                tell(schedules)
                note(f"learned in {seconds(took_s)}")
        part()
        interrupted = any(one.provenance["interrupted"] for one in schedules) or len(schedules) < asked
        self._tell_end(schedules, asked, interrupted=interrupted, finished=finished)

    def _write(self, learned: ScheduleFamily | CacheSchedule, *, finished: bool) -> None:
        """Writes the schedules, and only then removes the checkpoint."""
        checkpoint = self.session.checkpoint
        assert checkpoint is not None
        try:
            learned.save(self.out)
        except OutputError as error:
            if not checkpoint.exists():
                raise
            raise OutputError(
                f"{error}, and add --checkpoint {checkpoint}, which has what was learned"
            ) from error
        if finished:
            checkpoint.unlink(missing_ok=True)

    def _tell_end(
        self, schedules: list[CacheSchedule], asked: int, *, interrupted: bool, finished: bool
    ) -> None:
        """Says that learning ended early, if it did.

        Raises:
            Interrupted: If by Ctrl-C.
        """
        total = self.settings.iterations
        progress = f"{schedules[-1].provenance['iterations']} of {total} iterations"
        if asked > 1:
            progress = _progress_of_budgets(schedules, asked, total)
        ending = f"after {progress}; {self.out} has what was learned, and the same command goes on from there"
        if interrupted:
            raise Interrupted(f"interrupted {ending}")
        if not finished and is_main():
            note(f"the time was up {ending}")


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
