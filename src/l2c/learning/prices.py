"""What the parts of learning take, and how many of each its stages are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from l2c.hosts.base import Host
from l2c.learning.mask_search import FINALISTS
from l2c.learning.settings import LearnSettings
from l2c.learning.solver import FIRST_ORDERS, SEARCHED, first_look

RECALLED = 0.3
"""Share of a trial of noise levels that a run before has made, where nothing is reused; at 8 evaluations a third."""


@dataclass(frozen=True)
class Prices:
    """Seconds of what learning is made of, for one picture each.

    Attributes:
        run_s: Of a run besides its evaluations.
        evaluation_s: Of an evaluation that computes everything.
        sample_s: Of a run with the mask.
        step_s: Of a step of learning.
        attach_s: Of what a mask takes before it samples, whatever the number of pictures.
        path_s: Of an evaluation of runs that are made together; 0 where none can be.
        fit_s: Of a run to which a solver is fitted, likewise.
    """

    run_s: float
    evaluation_s: float
    sample_s: float
    step_s: float
    attach_s: float
    path_s: float = 0.0
    fit_s: float = 0.0

    def whole(self, evaluations: int) -> float:
        """Of a run that computes everything."""
        return self.run_s + evaluations * self.evaluation_s


@dataclass(frozen=True)
class Structures:
    """What a learned solver is searched among, for each budget.

    Attributes:
        searched: Structures that a mask is searched for.
        whole: Those that compute everything, for which there is nothing to search.
        starts: Noise levels that each may begin with.
        known: Evaluations of each known solver that it is compared with.
    """

    searched: int
    whole: int
    starts: int
    known: Sequence[int]


def stage_seconds(
    prices: Prices, settings: LearnSettings, base: Host, budgets: int, solver: Structures | None = None
) -> dict[str, float]:
    """Seconds of each stage.

    Args:
        prices: What each part takes.
        settings: What decides how many there are.
        base: What learning is for.
        budgets: Schedules to learn.
        solver: Where one is learned with them: it is fitted for each mask and each set of noise levels, to solutions
            with all that they come through, which are made together.
    """
    own, fine = len(base.run.timesteps), base.reference(settings.reference_steps)
    pictures, held_out = settings.num_examples + settings.num_validation, settings.num_held_out
    others = held_out + (0 if base.batched else 2)  # everything computed, and whether two runs are the same
    learned = settings.num_examples - held_out
    judged = min(settings.trial_examples, learned)
    trial_s, trials, fitted = prices.attach_s + judged * prices.sample_s, settings.trials, 0
    compared_s = begun_s = 0.0
    if solver is None:
        finalists = min(FINALISTS, trials) * (trials > 1)
        compared_s = finalists * (prices.attach_s + settings.num_fitted * prices.sample_s)
    else:
        if prices.fit_s and fine is not base:
            fitted = settings.num_fitted
            trial_s = prices.attach_s + judged * prices.fit_s
            levels: float = settings.num_levels(reuses=not solver.whole)
            if solver.whole:
                levels *= 1 - RECALLED
            begun_s = (2 + levels) * fitted * prices.fit_s + 2 * settings.num_validation * prices.sample_s
        structures = solver.searched + solver.whole
        ahead = min(
            SEARCHED, structures
        )  # taken to be such that masks are searched for, as far as there are any
        looks = first_look(trials) if structures > 1 else 0
        if structures > 1:
            trials = (min(ahead, solver.searched) + 1) * looks
        trials *= bool(solver.searched)
        if structures > 1:
            judged_s = trial_s + judged * prices.fit_s * bool(fitted)  # by as many pictures again
            compared_s = (structures + ahead) * judged_s
            if (
                solver.searched and solver.whole
            ):  # the best one and that which reuses nothing, by more pictures
                crossed = 2 * fitted * prices.fit_s if fitted else settings.num_fitted * prices.sample_s
                compared_s += 2 * (prices.attach_s + crossed)
        if solver.starts > 1:
            more = sum(order < settings.history for order in FIRST_ORDERS[1:])
            compared_s += (solver.searched * (solver.starts + more) + solver.whole * solver.starts) * trial_s
        begun_s += held_out * sum(map(prices.whole, solver.known))
    rounds = settings.iterations // settings.validate_every + 1 if settings.validate_every else 0
    steps = settings.iterations * settings.batch_size * prices.step_s
    made = rounds * settings.num_validation + 2 * held_out
    count = len(fine.run.timesteps)
    solved = (pictures - fitted) * prices.whole(count) + fitted * count * prices.path_s
    return {
        "fine-step solutions": solved + others * prices.whole(own),
        "searching masks": budgets * (trials * trial_s + compared_s),
        "learning": budgets * (steps + begun_s + made * prices.sample_s),
    }
