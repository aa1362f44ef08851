"""Calls of a pipeline's transformer as CUDA graphs: one for each different row of the schedule.

The first call of a row runs as it is, over inputs and stored values that stay where they are, and is then captured.
Later calls of that row copy their inputs there and replay it. Everything but the capture is the same on a CPU, where a
test puts another in its place.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from l2c.cache.values import Value, copy_value, write_value
from l2c.engine.graphs import CapturePool, Replayable, assign_layer_slots, capture, share_graphs, weight_table
from l2c.errors import known
from l2c.hosts.pipeline.compilation import Compilation
from l2c.hosts.pipeline.offload import moves_in_groups
from l2c.hosts.pipeline.passes import PassesPolicy
from l2c.hosts.pipeline.policy import PipelinePolicy
from l2c.schedule.forecast import is_copy

logger = logging.getLogger(__name__)

ENGINES = ("eager", "graph")
DEVICE = "cuda"
"""Type of the device that can capture."""
MOST_SHAPES = 8
"""Kinds of calls, by branch, shapes and plain arguments, that are captured."""
_PLAIN = (bool, int, float, str)


def check_engine(engine: str) -> None:
    """Refuses the name of an engine that there is not.

    Raises:
        ConfigError: If it is none of `ENGINES`.
    """
    known("engine for a pipeline", engine, ENGINES)


def capture_call(call: Callable[[], Any], pool: CapturePool) -> tuple[Replayable, Any]:
    """Captures a call in a memory pool; returns the graph, and what the call returns at every replay."""
    made: list[Any] = []
    with torch.cuda.device(pool.stream.device):
        graph = capture((0,), lambda _: made.append(call()), pool)[0]
    return graph, made[0]


@dataclass(frozen=True)
class _Captured:
    """A call that can be replayed, what it returns, and the cells of its layers when it is over."""

    graph: Replayable
    result: Any
    cells: list[dict[str, Any]]


@dataclass
class _Shape:
    """Calls of one branch with the same shapes and plain arguments.

    Attributes:
        inputs: Arguments that are tensors, where each call copies its own to.
        weights: Weights (layers, history) of the forecasts, likewise.
        places: Stored values by layer, time within the call and slot.
        slots: Slots of those values, by their identity.
        graphs: What is captured, by row.
    """

    inputs: list[Tensor]
    weights: Tensor
    places: dict[tuple[int, int, int], Value] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    graphs: dict[Any, _Captured] = field(default_factory=dict)

    def put(self, layer: int, time: int, slot: int, value: Value) -> Value:
        """Writes a value into its place; returns what is there."""
        there = self.places.get((layer, time, slot))
        if there is None:
            with torch.inference_mode(False):
                there = self.places[layer, time, slot] = copy_value(value)
            self.slots[id(there)] = slot
        else:
            write_value(there, value)
        return there


class CallGraphs:
    """Replays the calls of one transformer, and runs as they are those that cannot be captured.

    Args:
        name: Of the transformer, for people.
        policy: What it computes and reuses.
    """

    def __init__(self, name: str, policy: PipelinePolicy) -> None:
        self._name, self._policy = name, policy
        self._obstacle, self._failure = "", ""
        self._told: set[str] = set()
        self._state: Any = None
        self.release()

    @property
    def num_graphs(self) -> int:
        """How many calls are captured."""
        return sum(len(shape.graphs) for shape in self._shapes.values())

    def release(self) -> None:
        """Forgets everything that was captured and stored."""
        self._plan: Any = None
        self._shapes: dict[Any, _Shape] = {}
        self._pool: Any = None

    def begin_run(self, model: nn.Module, compilation: Compilation, *, split: bool) -> None:
        """Looks at what the transformer is now, and forgets what was captured of another state of it.

        Args:
            model: The transformer.
            compilation: What of it is compiled.
            split: Whether processes share its calls.
        """
        self._obstacle = _obstacle(model, compilation, split=split)
        if isinstance(self._policy, PassesPolicy):
            self._obstacle = "the passes of guidance have rows of their own; take engine='eager'"
        state = _state(model)
        if self._obstacle or state != self._state:
            self.release()
            self._state, self._failure = state, ""
        if self._obstacle:
            self._tell(self._obstacle)

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(
                f"calls of the {self._name} are not replayed as CUDA graphs but run as they are: {reason}",
                stacklevel=2,
            )

    def __call__(
        self,
        evaluation: int,
        branch: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """A call of the transformer, whose policy has begun it: replayed, or run and captured.

        Args:
            evaluation: Where.
            branch: Of the call.
            function: What is called.
            args: What with.
            kwargs: What with, by name.
        """
        if self._obstacle or self._failure or torch.is_grad_enabled():
            return function(*args, **kwargs)
        leaves, form = tree_flatten((args, dict(kwargs)))
        shape = self._shape(branch, leaves, repr(form))
        if shape is None:
            return function(*args, **kwargs)
        row = self._begin(shape, evaluation)
        if row is None:  # it reads what another kind of call has stored
            return function(*args, **kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for place, tensor in zip(shape.inputs, tensors, strict=True):
            place.copy_(tensor)
        captured = shape.graphs.get(row)
        if captured is not None:
            captured.graph.replay()
            self._policy.restore(captured.cells)
            return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, captured.result)
        inputs = iter(shape.inputs)
        static = [next(inputs) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        own_args, own_kwargs = tree_unflatten(static, form)
        return self._first(shape, row, evaluation, lambda: function(*own_args, **own_kwargs))

    def _first(self, shape: _Shape, row: Any, evaluation: int, call: Callable[[], Any]) -> Any:
        """Runs the first call of a row, which also compiles and allocates what it needs, and captures it."""
        policy = self._policy
        begun = policy.state()

        def launch() -> Any:
            policy.restore(begun)
            result = call()
            for layer, cell in enumerate(policy.cells):
                if cell.fresh:
                    first, slot = min(cell.times, len(cell.history)), self._slots[evaluation, layer]
                    cell.fresh = tuple(
                        shape.put(layer, time, slot, value)
                        for time, value in enumerate(cell.fresh, start=first)
                    )
            return result

        result = launch()
        done = policy.state()
        try:
            if self._pool is None and DEVICE == "cuda":
                self._pool = CapturePool(self._table.device)
            graph, made = capture_call(launch, self._pool)
            if not all(leaf is None or isinstance(leaf, (Tensor, *_PLAIN)) for leaf in tree_leaves(made)):
                raise TypeError("it returns something that is neither a tensor nor a plain value")
        except Exception as error:  # whatever a model does that cannot be captured
            self._failure = f"capturing one failed ({str(error).strip().splitlines()[0]})"
        else:
            shape.graphs[row] = _Captured(graph, made, done)
            logger.info("captured graph %d of the %s", self.num_graphs, self._name)
        if self._failure:  # outside, since an exception keeps tensors alive
            self.release()
            self._tell(self._failure)
        policy.restore(done)
        return result

    def _shape(self, branch: str, leaves: list[Any], form: str) -> _Shape | None:
        """What calls of a branch with such arguments share; None where there are too many kinds of them."""
        if self._policy.plan is not self._plan:
            self._settle()
        kinds = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        try:
            key = (branch, form, tuple(kinds))
            shape = self._shapes.get(key)
        except TypeError:
            self._tell("it is called with something that is neither a tensor nor a plain value")
            return None
        if shape is None and len(self._shapes) >= MOST_SHAPES:
            self._tell(
                f"calls after {MOST_SHAPES} kinds of them, by shapes and plain arguments, would take too much memory"
            )
            return None
        if shape is None:
            device = self._table.device
            with torch.inference_mode(False):
                inputs = [leaf.detach().to(device, copy=True) for leaf in leaves if isinstance(leaf, Tensor)]
                shape = self._shapes[key] = _Shape(inputs, torch.zeros_like(self._table[0]))
        return shape

    def _settle(self) -> None:
        """Gives the stored values of a plan their slots, and its weights a table."""
        self.release()
        policy = self._policy
        self._plan, count = policy.plan, policy.num_evaluations
        copies = [[0] * len(policy.cells) for _ in range(count)]
        for (evaluation, layer), terms in self._plan.items():
            copies[evaluation][layer] = 1 + is_copy([weight for _, weight in terms])
        sharing = share_graphs(self._plan, count, ["".join(map(str, row)) for row in copies])
        self._slots = assign_layer_slots(sharing)
        with torch.inference_mode(False):
            self._table = weight_table(self._plan, count).to(self._state[0])

    def _begin(self, shape: _Shape, evaluation: int) -> Any:
        """Lets the cells read weights from their place; returns what tells the row of this call from others.

        None if a stored value is not in its place.
        """
        row: list[Any] = []
        shape.weights.copy_(self._table[evaluation])
        for layer, cell in enumerate(self._policy.cells):
            reads = tuple(tuple(shape.slots.get(id(value)) for value in values) for values in cell.history)
            if any(None in slots for slots in reads):
                return None
            slot = self._slots.get((evaluation, layer)) if not reads else None
            cell.keeps = slot is not None
            if reads and not is_copy(cell.weights):
                cell.weights = shape.weights[layer].unbind()[: len(cell.weights)]
                row.append((reads, "weighed"))
            else:
                row.append((reads, slot))
        return tuple(row)


def _obstacle(model: nn.Module, compilation: Compilation, *, split: bool) -> str:
    """Why the calls of a transformer cannot be captured; empty if they can."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != DEVICE:
        where = "nowhere" if weight is None else f"on {weight.device.type}"
        return f"they need a CUDA device, and it is {where}; move the pipeline with pipe.to('cuda')"
    if compilation.entries or compilation.blocks:
        return "it is compiled; leave it as it is, or compile it with mode='reduce-overhead' and take engine='eager'"
    if split:
        return "processes share its calls; take engine='eager'"
    if any(hasattr(module, "_hf_hook") or moves_in_groups(module) for module in model.modules()):
        return "offloading moves its weights; load the pipeline without it, or take engine='eager'"
    if any(".lora_" in name for name, _ in model.named_parameters()):
        return (
            "it has a LoRA, whose scale may change; call pipe.fuse_lora() and pipe.unload_lora_weights() first, or "
            "take engine='eager'"
        )
    return ""


def _state(model: nn.Module) -> Any:
    """What graphs have captured of a transformer besides its arguments: where its weights are, and its processors."""
    weight = next(model.parameters(), None)
    addresses = tuple(map(_address, chain(model.parameters(), model.buffers())))
    processors = tuple(
        (id(module.processor), repr(getattr(module.processor, "scale", None)))
        for module in model.modules()
        if hasattr(module, "processor")
    )
    return (None if weight is None else weight.device, model.training, addresses, processors)


def _address(weight: Tensor) -> int:
    try:
        return weight.data_ptr()
    except RuntimeError:  # a quantised weight may have none
        return id(weight)
