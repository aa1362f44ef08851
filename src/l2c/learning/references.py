"""What closed-loop learning comes close to: fine-step solutions of drawn examples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.errors import ConfigError, OneByOneError, Told
from l2c.hosts.base import Examples, Host, errors, filled_up
from l2c.learning.least_squares import Paths
from l2c.learning.settings import LearnSettings
from l2c.learning.solutions import Solutions
from l2c.learning.trainer import Trainer

logger = logging.getLogger(__name__)

TARGETS, PATHS = "fine-step solutions", "paths to solutions"
VALIDATION = f"{TARGETS} for validation"
"""What solutions are called, for people and where they are kept."""
REPEATS = 0.01
"""Relative error of two runs from the same noise that is rounding, as kernels that add up in any order have it."""


@dataclass(frozen=True)
class References:
    """Examples, and the solutions (B, ...) that runs of them come close to.

    Attributes:
        examples: What is run.
        target: The solutions.
        validation: Others, by which the best state is kept; None if the last one is.
        fitting: Those of them, with paths, that steps of a solver are fitted to; None if there are none.
        paths: How the solutions were come to; None if only they are known.
    """

    examples: Examples
    target: Tensor
    validation: References | None = None
    fitting: References | None = None
    paths: Paths | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, rows: Sequence[int] | slice) -> References:
        """Some of them."""
        chosen = rows if isinstance(rows, slice) else list(rows)
        paths = self.paths and self.paths.rows(chosen)
        return References(self.examples.rows(rows), self.target[chosen], paths=paths)


@torch.no_grad()
def solve(trainer: Trainer, host: Host, settings: LearnSettings, *, fit_solver: bool = False) -> References:
    """References of so many examples as the settings say, held-out ones first.

    They are shared by the processes and kept in the checkpoint, and in the folder of the session for other runs.

    Args:
        trainer: Processes, checkpoint and limits.
        host: What they are solved for.
        settings: How many, and how.
        fit_solver: Whether steps of a solver are fitted, for which the first of those to learn on have their paths,
            where these can be had. Of several sizes of pictures these are of one.

    Raises:
        NumericsError: If one of them is not finite.
        ConfigError: If the time is up before they are done.
    """
    key = (settings.seed, "pictures")
    held_out = settings.num_held_out
    examples = host.examples(settings.num_examples, *key, held_out=held_out)
    _check_repeats(host, examples)
    size = round_size(trainer, host)
    fine = host.reference(settings.reference_steps)
    others = examples.rows([])
    if settings.num_validation:
        others = host.examples(held_out + settings.num_validation, *key, "validation", held_out=held_out)
        others = others.rows(slice(held_out, None))  # with prompts that are not held out
    count, fitting, fitted = 0, None, examples.rows([])
    if fit_solver and fine is not host:
        alike = of_first_size(examples, range(held_out, len(examples)))[: settings.num_fitted]
        unlike = [row for row in range(held_out, len(examples)) if row not in alike]
        examples, count = examples.rows([*range(held_out), *alike, *unlike]), len(alike)
        fitted = examples.rows(slice(held_out, held_out + count))
    before = Solutions.of(trainer, host, fine, {TARGETS: examples, PATHS: fitted, VALIDATION: others})
    before.take()
    if count:
        fitting = _with_paths(trainer, host, fine, fitted)
    known = 0 if fitting is None else count
    rest = examples.rows([*range(held_out), *range(held_out + known, len(examples))])
    target = trainer.compute(TARGETS, fine.sample, rest, size).to(host.device)
    if fitting is not None:
        solved = fitting.target
        if solved.shape[1:] != target.shape[1:]:  # of one size among several
            solved = filled_up(solved, target[0].numel())
        target = torch.cat([target[:held_out], solved, target[held_out:]])
    validation = None
    if len(others):
        checked = trainer.compute(VALIDATION, fine.sample, others, size)
        validation = References(others, checked.to(host.device))
    before.put()
    return References(examples, target, validation, fitting)


def _with_paths(trainer: Trainer, host: Host, fine: Host, examples: Examples) -> References | None:
    """Solutions with their paths, made in one go; None where a pipeline draws one picture at a time.

    Raises:
        ConfigError: If they do not fit into memory.
    """

    def states_of(some: Examples) -> Tensor:
        return torch.stack(list(fine.together(some)[1]), dim=1)

    too_much = (
        f"the {len(examples)} pictures that a solver is fitted to, run in one call, take more memory than "
        f"{host.device} has; take fewer fit_examples and trial_examples, or fewer pixels"
    )
    try:
        with Told(ConfigError, too_much, torch.OutOfMemoryError):
            states = trainer.compute(PATHS, states_of, examples, len(examples))
    except OneByOneError as error:
        logger.info("solvers begin at a known one, since their steps cannot be fitted: %s", error)
        return None
    paths = Paths(fine.run.log_snrs, states.to(host.device))
    return References(examples, paths.at(None), paths=paths)


def _check_repeats(host: Host, examples: Examples) -> None:
    """Refuses a host of foreign code that makes another picture from the same noise, of which nothing can be learned.

    Raises:
        ConfigError: If two runs differ by more than rounding.
    """
    if host.batched:
        return
    first, second = (host.sample(examples.rows([0])) for _ in range(2))
    error = errors(second, first, "relative").item()
    if error > REPEATS:
        raise ConfigError(
            f"two runs of {type(host.target).__name__} from the same noise differ by {error:.1%} under "
            f"{host.run.solver}, so that no schedule can be learned for it; set one that draws no noise of its own"
        )


def of_first_size(examples: Examples, rows: Sequence[int]) -> list[int]:
    """Those of some rows whose pictures have the size of the first of them."""
    sizes = examples.sizes
    return [row for row in rows if sizes[row] == sizes[rows[0]]]


def round_size(trainer: Trainer, host: Host) -> int:
    """Examples that all processes together run at a time where no gradients are taken."""
    return 2 * trainer.settings.batch_size if host.batched else trainer.processes.num_groups
