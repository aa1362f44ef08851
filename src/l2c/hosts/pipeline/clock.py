"""The scheduler as the clock: its `set_timesteps` begins a run, each `step` ends an evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from l2c.cache.patch import MethodPatch
from l2c.errors import CacheStateError, ContractError, UndoneOnError


class SchedulerClock:
    """Which evaluation of a scheduler's run is being made.

    Schedulers that evaluate more than once per step, as Heun's does, are stepped once per evaluation, so that
    evaluations are counted by the scheduler's own steps whatever its order. A run that begins later than the
    first timestep, as image to image does, is recognised by the scheduler's begin index, or by the timestep that
    it is first asked about.

    Args:
        scheduler: A diffusers scheduler.
        on_start: Called when a run begins.
        on_end: Called when it ends, finished or not.
        on_step: Called before each step with the prediction that the scheduler is given.

    Attributes:
        finished: Whether the last run reached its last timestep.
        num_evaluations: Number of timesteps of the run; 0 before the first.
        mu: Shift that the timesteps were last set with, under dynamic shifting.
    """

    def __init__(
        self,
        scheduler: Any,
        on_start: Callable[[], None],
        on_end: Callable[[], None],
        on_step: Callable[[Any], None] = lambda prediction: None,
    ) -> None:
        self.scheduler = scheduler
        self.finished = False
        self.num_evaluations = 0
        self.mu: float | None = None
        self._on_start, self._on_end, self._on_step = on_start, on_end, on_step
        self._running = False
        self._index: int | None = None
        self._stepped = False
        self._step_signature = inspect.signature(scheduler.step)
        self._patches = [
            MethodPatch(scheduler, name, replacement)
            for name, replacement in (
                ("set_timesteps", self._set_timesteps),
                ("scale_model_input", self._scale_model_input),
                ("step", self._step),
            )
            if hasattr(scheduler, name)
        ]

    @property
    def running(self) -> bool:
        """Whether timesteps have been set and not all of them stepped through."""
        return self._running

    @property
    def evaluation(self) -> int:
        """Index of the evaluation that the scheduler is at.

        Raises:
            CacheStateError: Outside a run.
        """
        if not self._running:
            raise CacheStateError(
                "the transformer was called with a cache enabled but outside a run of its scheduler "
                f"({type(self.scheduler).__name__}); call the pipeline, or set_timesteps on that scheduler first; if "
                "the pipeline was given another scheduler, disable the cache and enable it again"
            )
        if self._index is None:
            self._index = self._first()
        return self._index

    def _first(self) -> int:
        for name in ("step_index", "begin_index"):
            index = getattr(self.scheduler, name, None)
            if isinstance(index, int):
                return index
        return 0

    def end(self, finished: bool = False) -> None:
        """Ends the run, finished or not."""
        if self._running:
            self._running, self._index, self.finished = False, None, finished
            self._on_end()

    def _set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.end()
        result = original(*args, **kwargs)
        shift = kwargs.get("mu")
        self.mu = None if shift is None else float(shift)
        self.num_evaluations = len(self.scheduler.timesteps)
        self._running, self._index, self._stepped, self.finished = True, None, False, False
        self._on_start()
        return result

    def _scale_model_input(
        self, original: Callable[..., Any], sample: Any, timestep: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        result = original(sample, timestep, *args, **kwargs) if timestep is not None else original(sample)
        if self._running and self._index is None and not hasattr(self.scheduler, "begin_index"):
            self._index = self._position(timestep)
        return result

    def _position(self, timestep: Any) -> int | None:
        times = self.scheduler.timesteps.tolist()
        time = None if timestep is None else float(timestep)
        return times.index(time) if time in times else None

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._running:
            return original(*args, **kwargs)
        at = self.evaluation
        with UndoneOnError(self.end):
            self._on_step(args[0] if args else next(iter(kwargs.values()), None))
            if not self._stepped and not hasattr(self.scheduler, "step_index"):  # later ones would only wait
                given = self._step_signature.bind(*args, **kwargs).arguments.get("timestep")
                self._compare(at, at if given is None else self._position(given))
            result = original(*args, **kwargs)
            after = getattr(self.scheduler, "step_index", None)
            if isinstance(after, int):
                self._compare(at, after - 1)
        self._index, self._stepped = at + 1, True
        if self._index >= self.num_evaluations:
            self.end(finished=True)
        return result

    def _compare(self, ours: int, theirs: int | None) -> None:
        if ours != theirs:
            raise ContractError(
                f"the scheduler stepped from evaluation {theirs} where the cache was at {ours}; a run that begins "
                "later than its first timestep must say so with the scheduler's set_begin_index, and every "
                "timestep takes one step"
            )

    def restore(self) -> None:
        """Gives the scheduler its own methods back."""
        self.end()
        for patch in self._patches:
            patch.remove()
        self._patches.clear()


class WatchedBar:
    """A pipeline's progress bar that says when the loop under it is left, in whatever way."""

    def __init__(self, bar: Any, on_exit: Callable[[], None]) -> None:
        self._bar, self._on_exit = bar, on_exit
        self._inner: AbstractContextManager[Any] = bar if hasattr(bar, "__enter__") else nullcontext(bar)

    def __enter__(self) -> Any:
        return self._inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        try:
            return self._inner.__exit__(*error)
        finally:
            self._on_exit()

    def __iter__(self) -> Any:
        try:
            yield from self._bar
        finally:
            self._on_exit()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
