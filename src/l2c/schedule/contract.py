"""`Contract`: the run and the weights that a schedule was made for, compared with those that it meets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from l2c.errors import ContractError

FINGERPRINT_TOLERANCE = 0.05
TIMESTEP_TOLERANCE = 0.02
LOG_SNR_TOLERANCE = 0.02


@dataclass(frozen=True)
class Run:
    """A sampling run as a schedule sees it.

    Attributes:
        solver: Name of the solver.
        steps: Number of steps asked of the solver.
        spacing: Spacing of its evaluations.
        timesteps: Training timestep of every model evaluation, 0 to 999, in order.
        log_snrs: Half log-SNR log(alpha / sigma) of every evaluation.
        guidance: Guidance scale; 1 is without guidance. None: any.
        weights: Of a solver that was learned with the schedule, the table of `l2c.sampling.linear.LinearSolver`;
            None for one that has a name.
    """

    solver: str
    steps: int
    spacing: str
    timesteps: tuple[float, ...]
    log_snrs: tuple[float, ...]
    guidance: float | None = None
    weights: tuple[tuple[float, ...], ...] | None = None

    @property
    def title(self) -> str:
        """For people: `ddim with 50 steps (linspace spacing)`."""
        return f"{self.solver} with {self.steps} steps ({self.spacing} spacing)"


@dataclass(frozen=True)
class Contract:
    """What a schedule was made for.

    Attributes:
        run: Solver, timesteps and guidance.
        model: Name or file of the model, for people.
        fingerprint: Of the weights (`l2c.layers.fingerprint`), of several models that share a schedule one after
            another; empty fits any weights of the architecture.
        prediction_type: What the network predicts: `epsilon`.
    """

    run: Run
    model: str = ""
    fingerprint: tuple[float, ...] = ()
    prediction_type: str = "epsilon"

    def check_run(self, run: Run) -> None:
        """Compares a run with the one that the schedule was made for.

        Raises:
            ContractError: If the number of evaluations, the solver, the timesteps or the noise levels differ.
        """
        mine, count, want = self.run, len(run.timesteps), len(self.run.timesteps)
        same = (
            f"sample with solver '{mine.solver}', {mine.steps} steps and '{mine.spacing}' spacing"
            if mine.weights is None
            else "name no solver, steps or spacing, since the schedule brings its own solver"
        )
        advice = (
            f"{same}, or get a schedule for this run with: l2c learn --solver {run.solver} --steps {run.steps} "
            f"--spacing {run.spacing}"
        )
        if count != want:
            raise ContractError(f"schedule covers {want} evaluations but {run.title} makes {count}; {advice}")
        if mine.solver != run.solver:
            raise ContractError(f"schedule was made for {mine.title} but the run uses {run.title}; {advice}")
        for what, ours, theirs, tolerance in (
            ("timestep", mine.timesteps, run.timesteps, TIMESTEP_TOLERANCE),
            ("half log-SNR", mine.log_snrs, run.log_snrs, LOG_SNR_TOLERANCE),
        ):
            gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
            if max(gaps, default=0.0) > tolerance:
                at = gaps.index(max(gaps))
                raise ContractError(
                    f"schedule was made for {mine.title}, whose evaluation {at} is at {what} {ours[at]:g}, but in "
                    f"{run.title} it is at {theirs[at]:g}; {advice}"
                )
        if mine.weights != run.weights:
            raise ContractError(f"the run has another learned solver than the schedule; {advice}")

    def guidance_note(self, run: Run) -> str | None:
        """What to tell whoever samples with another guidance scale than the schedule was learned with."""
        mine = self.run.guidance
        if mine is None or run.guidance is None or math.isclose(mine, run.guidance):
            return None
        return (
            f"the schedule was learned with guidance {mine:g} and the run uses {run.guidance:g}; it works, but "
            "how close the pictures are was not measured there"
        )

    def compare_weights(self, other: tuple[float, ...]) -> ContractError | None:
        """The error to raise when a model's fingerprint is not the one learned on; None when they agree."""
        if not self.fingerprint or not other:
            return None
        size = len(other)
        known = [self.fingerprint[at : at + size] for at in range(0, len(self.fingerprint), size)]
        differing = min(
            sum(not abs(a - b) <= FINGERPRINT_TOLERANCE for a, b in zip(one, other, strict=True))
            for one in known
        )
        if not differing:
            return None
        return ContractError(
            f"the schedule was learned on other weights ({self.model or 'unnamed model'}): {differing} of "
            f"{size} layers differ; learn one for these weights with l2c learn, or accept the difference "
            "with any_weights=True (--any-weights)"
        )
