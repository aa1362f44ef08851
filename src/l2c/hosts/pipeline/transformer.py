"""A transformer in a pipeline: each of its calls belongs to an evaluation and to a branch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2c.cache.cached_model import CachedModel, attach, check_model
from l2c.cache.clock import DEFAULT_BRANCH
from l2c.cache.patch import MethodPatch, patch_of
from l2c.cache.policy import Compute, ReusePolicy
from l2c.cache.values import Value
from l2c.errors import CacheStateError, UndoneOnError
from l2c.hosts.parallel import context_of
from l2c.hosts.pipeline.clock import SchedulerClock
from l2c.hosts.pipeline.compilation import Compilation, find_compilation, is_compiled, leave_to_python
from l2c.hosts.pipeline.graphs import CallGraphs
from l2c.hosts.pipeline.passes import Passes, PassesPolicy, not_apart
from l2c.hosts.pipeline.policy import PipelinePolicy
from l2c.hosts.pipeline.runs import arguments_now
from l2c.layers import find_layers
from l2c.layers.measure import rows_and_shape
from l2c.schedule.schedule import CacheSchedule

_UNKNOWN_WRAPPER = (
    "a compiled transformer is called that its l2c cache does not know; enable the cache on what torch.compile has "
    "returned, or compile in place with transformer.compile()"
)


class Owner(Protocol):
    """What a transformer knows of the pipeline's cache that it belongs to."""

    any_weights: bool
    around: Callable[[Compute], Value]
    recompute: bool
    offload: bool
    engine: str
    clock: SchedulerClock

    def enter_evaluation(self) -> int:
        """The evaluation at which it is called."""
        ...


class CachedTransformer:
    """A transformer whose evaluations are told by a scheduler's clock.

    Args:
        name: Name of the component.
        model: The transformer.
        reuse: The schedule of what it computes and reuses, or any other policy.
        owner: The pipeline's cache that it belongs to.

    Attributes:
        schedule: None if there is another policy.
        policy: What is computed now.
        offset: Evaluation of the scheduler that is the policy's first.
        tells_shapes: Whether it warns of samples of another shape than the schedule was made for.
        replays: Its calls as CUDA graphs; None where they run as they are.
    """

    def __init__(self, name: str, model: nn.Module, reuse: CacheSchedule | ReusePolicy, owner: Owner) -> None:
        self.name, self.model = name, model
        refuse_other_cache(model)
        table = find_layers(model)
        if isinstance(reuse, CacheSchedule):
            self.schedule: CacheSchedule | None = reuse
            table = check_model(model, reuse, any_weights=owner.any_weights, stacklevel=6)
            self.policy: ReusePolicy = (
                PassesPolicy(reuse.plan, reuse.compute, owner.around)
                if reuse.has_branches
                else PipelinePolicy(reuse.plan, reuse.num_evaluations, len(table), owner.around)
            )
        else:
            self.schedule, self.policy = None, reuse
        self.cache: CachedModel = attach(model, table, self.policy, self.schedule)
        self.replays: CallGraphs | None = None
        if owner.engine == "graph" and isinstance(self.policy, PipelinePolicy):
            self.replays = CallGraphs(name, self.policy)
        self._owner = owner
        self._context = DEFAULT_BRANCH
        self._shapes: dict[str, list[Any]] = {}
        self._calls: dict[str, int] = {}
        self._compilation, self._graphs = Compilation(), 0
        self._entered = False
        self._context_group = context_of({name: model})
        self._passes = Passes(self.policy) if isinstance(self.policy, PassesPolicy) else None
        if self._passes is not None and self._context_group is not None:
            raise not_apart("while context parallelism splits its transformer over processes")
        self.offset = self._begun = 0
        self.tells_shapes = True
        self._patches = [MethodPatch(model, "forward", self._forward)]
        if hasattr(model, "cache_context"):
            self._patches.append(MethodPatch(model, "cache_context", self._cache_context))

    def begin_run(self, component: Any) -> None:
        """Starts from nothing.

        Args:
            component: What the pipeline calls: the model, or what `torch.compile` has wrapped around it.
        """
        self._cover_anew()
        self._follow_compiler(component)
        if self.replays is not None:
            self.replays.begin_run(self.model, self._compilation, split=self._context_group is not None)
        self.policy.begin_run()
        self.cache.clock.stop()
        self._shapes.clear()
        if self._passes is not None:
            self._passes.begin_run()

    def begin_at(self, first: int, total: int) -> None:
        """Says at which evaluation of the scheduler the run begins, of how many.

        A policy for just the evaluations that are made counts from there. One for the whole run begins in its middle,
        with a history that builds up at once.
        """
        self.offset = first if self.policy.num_evaluations == total - first else 0
        if self.schedule is not None and isinstance(self.policy, PipelinePolicy):
            begun = first - self.offset
            if begun and self._passes is not None:
                raise not_apart("in a run that begins late, as image to image does")
            if begun != self._begun:
                self._begun = begun
                self.policy.use(self.schedule.plan_from(begun) if begun else self.schedule.plan)

    def end_run(self) -> None:
        """Lets go of all features; counts stay."""
        self.policy.clear()
        self.cache.clock.stop()

    def restore(self) -> None:
        """Gives the model its own methods back."""
        self.replays = None
        for patch in reversed(self._patches):
            patch.remove()
        self._patches.clear()
        self.cache.restore()

    def _cover_anew(self) -> None:
        """Covers what offloading has put back in place of a method, as it does after every call of a pipeline."""
        for index, patch in enumerate(self._patches):
            method, hooked = vars(patch.owner).get(patch.name), vars(self.model).get("_old_forward")
            known = patch_of(method) in self._patches or patch_of(hooked) is patch
            if patch.owner is self.model and not known and not is_compiled(method):
                replacement = patch.replacement
                patch.remove()
                self._patches[index] = MethodPatch(self.model, patch.name, replacement)

    def _cache_context(self, original: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        return _NamedCall(self, name, original(name, *args, **kwargs))

    def _follow_compiler(self, component: Any) -> None:
        """Covers what has been compiled since, so that a call is entered before a compiler follows it."""
        found = find_compilation(self.model, component)
        if found != self._compilation:
            self._compilation = found
            if (found.entries or found.blocks) and self._passes is not None:
                raise not_apart("once its transformer is compiled")
            if self.schedule is not None and isinstance(self.policy, PipelinePolicy):
                self._graphs, self.policy.replayed = found.num_graphs(self.schedule), found.replayed
        for owner, name in self._compilation.entries:
            if patch_of(vars(owner)[name]) is None:
                self._patches.append(MethodPatch(owner, name, self._enter))
        leave_to_python(type(self)._enter, _UNKNOWN_WRAPPER)
        leave_to_python(type(self)._call, _UNKNOWN_WRAPPER)
        leave_to_python(arguments_now, _UNKNOWN_WRAPPER)  # it looks at the frames of callers

    def compile_note(self) -> str | None:
        """What to tell whoever compiled the model as a whole for a schedule of many different rows."""
        return self._compilation.note(self._graphs)

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._entered:
            return original(*args, **kwargs)
        return self._enter(original, *args, **kwargs)

    def _enter(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of the model: tells the layers what they do in it, and takes what they have computed."""
        evaluation = self._owner.enter_evaluation() - self.offset
        clock = self.cache.clock
        if not clock.running or clock.evaluation != evaluation:
            clock.start(evaluation)
            clock.tick(evaluation)
            self._calls.clear()
        branch = self._branch(rows_and_shape(args, kwargs), kwargs.get("encoder_hidden_states"))
        with UndoneOnError(self._owner.clock.end):
            if self._passes is not None:
                call = partial(self._call, evaluation, original)
                return self._passes.make(evaluation, branch, call, args, kwargs)
            return self._call(evaluation, original, (branch,), args, kwargs)

    def _call(
        self,
        evaluation: int,
        original: Callable[..., Any],
        branches: tuple[str, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls the model for rows of branches."""
        policy = self.policy if isinstance(self.policy, PipelinePolicy) else None
        if policy is not None:
            policy.begin_call(evaluation, *branches)
        self._entered = True
        try:
            with self.cache.clock.in_branch(branches[0]), self._compilation.room(self._graphs):
                if self._context_group is not None:
                    args, kwargs = self._context_group.shared((args, kwargs))
                if policy is not None and self._owner.recompute and torch.is_grad_enabled():
                    result = self._call_again_in_backward(policy, evaluation, original, args, kwargs)
                elif self.replays is not None:
                    result = self.replays(evaluation, branches[0], original, args, kwargs)
                else:
                    result = original(*args, **kwargs)
        finally:
            self._entered = False
        if policy is not None:
            policy.end_call()
        return result

    def combined(self, prediction: Any) -> None:
        """Takes what the pipeline has made of the calls of an evaluation, before its scheduler steps."""
        if self._passes is not None:
            self._passes.combined(prediction)

    def _call_again_in_backward(
        self,
        policy: PipelinePolicy,
        evaluation: int,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Calls the model, keeping for the backward pass nothing but what it is called with and what it reuses."""
        repeat, calls = policy.repeat(offload=self._owner.offload), 0

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls, kwargs = calls + 1, _with_own_mappings(kwargs)
            if calls == 1:
                return original(*args, **kwargs)
            with repeat(), self.cache.clock.again(evaluation):
                return original(*args, **kwargs)

        draws = self.model.training  # else nothing is drawn that would have to be drawn again
        return checkpoint(
            call, *args, use_reentrant=False, preserve_rng_state=draws, **_with_own_mappings(kwargs)
        )

    def _branch(self, sample: tuple[int, tuple[int, ...]] | None, text: Any) -> str:
        """Name of a call: its `cache_context`, then its place among the calls of the evaluation, then its shape."""
        name = self._context
        place = self._calls[name] = self._calls.get(name, 0) + 1
        if place > 1:
            name = f"{name}-{place}"
        shape = (sample, text.shape if isinstance(text, Tensor) else None)
        shapes = self._shapes.setdefault(name, [])
        if not shapes:
            self._check_shape(() if sample is None else sample[1])
        if shape not in shapes:
            shapes.append(shape)
        number = shapes.index(shape)
        return f"{name} (shape {number + 1})" if number else name

    def _check_shape(self, got: tuple[int, ...]) -> None:
        """Warns when samples have another shape than those that the schedule was made for."""
        expected = self.schedule.layers.sample_shape if self.schedule is not None else ()
        if self.tells_shapes and expected and got and got != expected:
            warnings.warn(
                f"the schedule was made for samples of {'x'.join(map(str, expected))} and the run has "
                f"{'x'.join(map(str, got))}; it works, but how close the pictures are was not measured there",
                stacklevel=2,
            )


def _with_own_mappings(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that stay as they are now: FLUX with an IP adapter changes one mapping between its calls."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}


class _NamedCall:
    """diffusers' `cache_context`, which here names the branch as well."""

    def __init__(self, transformer: CachedTransformer, name: str, inner: Any) -> None:
        self._transformer, self._name, self._inner = transformer, name, inner
        self._before = DEFAULT_BRANCH

    def __enter__(self) -> Any:
        self._before, self._transformer._context = self._transformer._context, self._name
        return self._inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._transformer._context = self._before
        return self._inner.__exit__(*error)


def refuse_other_cache(model: nn.Module) -> None:
    """Refuses a model whose own diffusers cache is enabled.

    Raises:
        CacheStateError: If it is.
    """
    if getattr(model, "is_cache_enabled", False):
        raise CacheStateError(
            f"diffusers' own cache ({type(getattr(model, '_cache_config', None)).__name__}) is enabled on this "
            f"{type(model).__name__}, and two caches would feed each other stale features; call its disable_cache() "
            "first"
        )
