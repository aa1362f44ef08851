"""`Contract`: the run and the weights that a schedule was made for, compared with those that it meets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from l2c.documents import MOST_EVALUATIONS, MOST_LAYERS, Count, Finite
from l2c.errors import ContractError
from l2c.schedule.scales import scales_in

FINGERPRINT_TOLERANCE = 0.1
"""What eight bits move a number of a fingerprint by; other checkpoints move it by about 1."""
TIMESTEP_TOLERANCE = 0.02
LOG_SNR_TOLERANCE = 0.02
LAST_TOLERANCE = 1e-3
"""Of a last noise level in half log-SNR that stays where it is while all others are shifted."""
LARGEST_LOG_SNR = 7.0
"""Half log-SNRs are kept within this: a flow begins at pure noise, where they are infinite."""

MOST_DEGREE = 3
"""Of a polynomial in the guidance scale."""

Levels = Annotated[tuple[Finite, ...], Field(max_length=MOST_EVALUATIONS)]
"""A number of every evaluation."""


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
        weights: Of a solver that was learned with the schedule, the table of `l2c.sampling.linear.LinearSolver`, or
            several side by side; None for one that has a name.
        call: What else a pipeline was called with that changes the run, by name: further guidance scales, `eta`. Empty
            if that is not known.
        guidance_range: Lowest and highest guidance scale that the schedule was learned for, where it is not one only.
        guidance_degree: Of the polynomial in the guidance scale that the weights are; its coefficients are so many
            tables side by side and one more, see `at_guidance`.
    """

    solver: str
    steps: Count
    spacing: str
    timesteps: Levels
    log_snrs: Levels
    guidance: Annotated[Finite, Field(ge=0)] | None = None
    weights: tuple[tuple[Finite, ...], ...] | None = None
    call: tuple[tuple[str, Finite | str | tuple[Finite, ...]], ...] = ()
    guidance_range: tuple[Finite, Finite] | None = None
    guidance_degree: Annotated[int, Field(ge=0, le=MOST_DEGREE)] = 0

    def since(self, first: int) -> Run:
        """What is left of the run from an evaluation on, as image to image begins late."""
        return (
            replace(self, timesteps=self.timesteps[first:], log_snrs=self.log_snrs[first:]) if first else self
        )

    @property
    def scales(self) -> int:
        """Scales of detail that a learned solver weighs apart; 1 for every other solver."""
        if self.weights is None:
            return 1
        return scales_in(self.weights, len(self.timesteps), self.guidance_degree)

    def powers(self, scales: Tensor | None) -> Tensor | None:
        """Of guidance scales (B,), see `guidance_powers`; None where weights do not follow them, or there are none."""
        if scales is None or not self.guidance_degree or self.guidance_range is None:
            return None
        return guidance_powers(scales, self.guidance_range, self.guidance_degree)

    def at_guidance(self, guidance: float | None) -> Run:
        """The run at one scale of its range, whose solver has one table; the middle of the range for None.

        Beyond the range, the table is that of its nearer end.
        """
        if self.guidance_range is None or self.weights is None:
            return self
        scale = sum(self.guidance_range) / 2 if guidance is None else guidance
        powers = self.powers(torch.tensor([scale]))
        if powers is None:
            return self
        table = torch.tensor(self.weights).view(len(self.weights), powers.shape[1], -1)
        weights = torch.einsum("p,npk->nk", powers[0], table)
        return replace(self, weights=tuple(map(tuple, weights.tolist())), guidance_degree=0)

    @property
    def version(self) -> int:
        """Of the file format that it needs."""
        if self.guidance_degree:
            return 4
        return 3 if self.scales > 1 else 1 if self.guidance_range is None else 2

    @property
    def by_scheduler(self) -> bool:
        """Whether the solver is a diffusers scheduler, whose settings stand in place of the spacing."""
        return self.solver.endswith("Scheduler")

    @property
    def title(self) -> str:
        """For people: `ddim with 50 steps (linspace spacing)`."""
        spacing = self.spacing if self.by_scheduler else f"{self.spacing} spacing"
        return f"{self.solver} with {self.steps} steps ({spacing})"

    @property
    def how_to_ask(self) -> str:
        """What to do to get this run."""
        if self.weights is not None:
            return "name no solver, steps or spacing, since the schedule brings its own solver"
        if self.by_scheduler:
            return f"set the scheduler as it was, with {self.steps} steps"
        return f"sample with solver '{self.solver}', {self.steps} steps and '{self.spacing}' spacing"

    @property
    def how_to_learn(self) -> str:
        """The command that learns a schedule for this run."""
        if self.weights is not None:
            return "l2c learn MODEL --solver auto"
        named = "" if self.by_scheduler else f" --solver {self.solver} --spacing {self.spacing}"
        return f"l2c learn MODEL --steps {self.steps}{named}"

    @property
    def about_shifts(self) -> str:
        """What may have moved the timesteps of a scheduler."""
        if not self.by_scheduler:
            return ""
        return " (where the scheduler shifts its timesteps with the resolution, another resolution is another run)"


@dataclass(frozen=True)
class Contract:
    """What a schedule was made for.

    Attributes:
        run: Solver, timesteps and guidance.
        model: Name or file of the model, for people.
        fingerprint: Of the weights (`l2c.layers.fingerprint`), of several models that share a schedule one after
            another; empty fits any weights of the architecture.
        prediction_type: What the network predicts, as diffusers names it: `epsilon`, `flow_prediction`, ...
    """

    run: Run
    model: str = ""
    fingerprint: Annotated[tuple[Finite, ...], Field(max_length=4 * MOST_LAYERS)] = ()
    prediction_type: str = "epsilon"

    def check_run(self, run: Run) -> None:
        """Compares a run with the one that the schedule was made for.

        Raises:
            ContractError: If the number of evaluations, the solver, the timesteps or the noise levels differ.
        """
        if problem := self.run_problem(run):
            raise problem

    def run_problem(self, run: Run) -> ContractError | None:
        """The error to raise when a run is not the one that the schedule was made for; None when it is."""
        mine, count, want = self.run, len(run.timesteps), len(self.run.timesteps)
        advice = f"{mine.how_to_ask}, or get a schedule for this run with: {run.how_to_learn}"
        if count != want:
            return ContractError(
                f"schedule covers {want} evaluations but {run.title} makes {count}; {advice}"
            )
        if mine.solver != run.solver or (mine.by_scheduler and mine.spacing != run.spacing):
            return ContractError(f"schedule was made for {mine.title} but the run uses {run.title}; {advice}")
        if self.shift(run) is not None:
            return None
        for what, ours, theirs, tolerance in (
            ("timestep", mine.timesteps, run.timesteps, TIMESTEP_TOLERANCE),
            ("half log-SNR", mine.log_snrs, run.log_snrs, LOG_SNR_TOLERANCE),
        ):
            for at, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                if not (abs(a - b) <= tolerance or a == b):  # NaN is not within it, either
                    return ContractError(
                        f"schedule was made for {mine.title}, whose evaluation {at} is at {what} {a:g}, but in "
                        f"{run.title} it is at {b:g}{mine.about_shifts}; {advice}"
                    )
        if mine.at_guidance(run.guidance).weights != run.at_guidance(run.guidance).weights:
            return ContractError(f"the run has another learned solver than the schedule; {advice}")
        return None

    def shift(self, run: Run) -> float | None:
        """How far all noise levels of a flow's run are shifted in half log-SNR; None if they are not all alike.

        Dynamic shifting moves them so with the resolution. Levels at the ends, where log-SNRs are kept within bounds,
        do not count. Where a scheduler stretches the shifted levels to a last one that stays, as that of Qwen-Image,
        this moves all log(1 / z - 1 / z_last) alike, with signals z, and the move of the first level is told.
        """
        same = self.run.by_scheduler and len(run.log_snrs) == len(self.run.log_snrs)
        if not same or self.prediction_type != "flow_prediction":
            return None
        levels = [
            (a, b)
            for a, b in zip(self.run.log_snrs, run.log_snrs, strict=True)
            if max(abs(a), abs(b)) < LARGEST_LOG_SNR
        ]
        moved = [b - a for a, b in levels]
        if len(moved) > 2 and abs(moved[-1]) <= LAST_TOLERANCE < abs(moved[0]):
            last_a, last_b = (math.exp(-level) for level in levels[-1])
            apart = [(math.exp(-a) - last_a, math.exp(-b) - last_b) for a, b in levels[:-1]]
            if min(map(min, apart)) <= 0:
                return None
            moved = [moved[0] + math.log(a / b) - math.log(apart[0][0] / apart[0][1]) for a, b in apart]
        if not moved or not max(moved) - min(moved) <= LOG_SNR_TOLERANCE:
            return None
        return moved[0]

    def notes(self, run: Run, *, shifted: bool = True) -> Iterator[str]:
        """What to tell whoever samples in another way than the schedule was learned for, where that is possible.

        Args:
            run: The run.
            shifted: Whether to tell of shifted noise levels, for which the size of pictures is the usual reason.
        """
        if note := self.guidance_note(run):
            yield note
        now = dict(run.call)
        for name, value in self.run.call:
            if now.get(name, value) != value:
                yield (
                    f"the schedule was made with {name}={_text(value)} and the run uses {_text(now[name])}; it works, "
                    "but how close the pictures are was not measured there: l2c.check tells"
                )
        if shifted and abs(shift := self.shift(run) or 0.0) > LOG_SNR_TOLERANCE:
            yield (
                f"the noise levels of the run are shifted by {shift:.2f} in half log-SNR, as by another resolution; it "
                "works, but how close the pictures are was not measured there: l2c.check tells"
            )

    def guidance_note(self, run: Run) -> str | None:
        """What to tell whoever samples with another guidance scale than the schedule was learned with."""
        mine, now = self.run.guidance, run.guidance
        if mine is None or now is None:
            return None
        low, high = self.run.guidance_range or (mine, mine)
        if low <= now <= high or math.isclose(now, low) or math.isclose(now, high):
            return None
        learned = f"{mine:g}" if self.run.guidance_range is None else f"from {low:g} to {high:g}"
        return (
            f"the schedule was learned with guidance {learned} and the run uses {now:g}; it works, but how close the "
            "pictures are was not measured there"
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


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def guidance_powers(scales: Tensor, bounds: tuple[float, float], degree: int) -> Tensor:
    """Powers 0 to `degree` (B, degree + 1) of guidance scales (B,), which go from -1 to 1 within bounds.

    >>> guidance_powers(torch.tensor([1.0, 2.0, 9.0]), (1, 5), 2).tolist()
    [[1.0, -1.0, 1.0], [1.0, -0.5, 0.25], [1.0, 1.0, 1.0]]
    """
    low, high = bounds
    along = ((2 * scales - low - high) / (high - low)).clamp(-1, 1)
    return torch.stack([along**power for power in range(degree + 1)], dim=1)
