"""Which evaluation and which branch is being computed: told by the solver, never inferred."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from l2c.errors import CacheStateError

DEFAULT_BRANCH = "all"


@dataclass
class Clock:
    """Position within a run.

    Attributes:
        num_evaluations: How many evaluations the run makes.
        evaluation: Index of the current evaluation, or -1 before the first and outside a run.
        branch: Name of the current call within the evaluation: `cond`, `uncond`, or `all` for a single call.
        running: Whether a run is in progress.
    """

    num_evaluations: int
    evaluation: int = -1
    branch: str = DEFAULT_BRANCH
    running: bool = False
    _entered: bool = False
    _times: dict[int, int] = field(default_factory=dict)

    def start(self, first: int = 0) -> None:
        """Begins a run, or the part of one that begins at evaluation `first`."""
        self.running, self.evaluation, self.branch = True, first - 1, DEFAULT_BRANCH
        self._entered = False

    def stop(self) -> None:
        """Ends a run, finished or not."""
        self.running, self.evaluation, self.branch = False, -1, DEFAULT_BRANCH
        self._entered = False

    @property
    def entered(self) -> bool:
        """Whether a run is in progress and has reached its first evaluation."""
        return self._entered

    def tick(self, evaluation: int) -> None:
        """Enters an evaluation; they come in order, and none is left out.

        Raises:
            CacheStateError: If no run is in progress or the evaluation is not the next one.
        """
        if not self.running:
            raise CacheStateError("no run is in progress; tick the clock inside `with cache.run():`")
        if evaluation != self.evaluation + 1 or evaluation >= self.num_evaluations:
            raise CacheStateError(
                f"evaluation {evaluation} follows evaluation {self.evaluation} in a run of "
                f"{self.num_evaluations}; every run takes each evaluation once, in order, beginning with 0"
            )
        self.evaluation = evaluation
        self._entered = True

    def place(self, layer: int) -> str:
        """The branch that a layer's values are stored under, with its time where a call has several of it.

        CogView4 calls the same MLP for image and text. The first layer begins a call.
        """
        if layer == 0:
            self._times.clear()
        time = self._times[layer] = self._times.get(layer, -1) + 1
        return f"{self.branch}#{time}" if time else self.branch

    @contextmanager
    def again(self, evaluation: int) -> Iterator[None]:
        """Enters an evaluation once more, wherever the run is by now: a backward pass that computes it again."""
        before = (self.running, self.evaluation, self._entered)
        self.running, self.evaluation, self._entered = True, evaluation, True
        try:
            yield
        finally:
            self.running, self.evaluation, self._entered = before

    @contextmanager
    def in_branch(self, branch: str) -> Iterator[None]:
        """Names the calls made inside the block, which then have stores of their own."""
        previous, self.branch = self.branch, branch
        try:
            yield
        finally:
            self.branch = previous
