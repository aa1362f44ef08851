"""One forecast of the whole stack of blocks in place of one per layer, learned and judged alike.

    python benchmarks/whole_stack.py --out results/whole-stack.json

A model whose blocks are one layer is a model like any other: here it shares the weights of the embedded DiT, and what
all blocks add to the tokens is its one layer. Masks compute whole evaluations, so that both forms cost the same. The
record has errors before learning, by the order of the polynomial, on pictures that were learned on; then those of
pictures that nothing was learned on, and the bytes of stored values for one picture.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2c.hosts.base import errors
from l2c.hosts.native import ModelHost
from l2c.layers import Layer, LayerTable, find_layers, register_adapter
from l2c.layers.base import BLOCK
from l2c.learning.closed_loop import ClosedLoop
from l2c.learning.references import References, solve
from l2c.learning.settings import LearnSettings
from l2c.learning.trainer import Trainer
from l2c.models import DiT, load_model
from l2c.records import Record, describe_device
from l2c.sampling.memory import store_bytes

COMMAND = "benchmarks/whole_stack.py"
GUIDANCE = 1.5


class Stack(nn.Module):
    """What all blocks of a DiT add to its tokens."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, T, D) and conditioning (B, D) -> (B, T, D)."""
        last = x
        for block in self.blocks:
            last = block(last, c)
        return last - x


class StackBlock(nn.Module):
    """The only block of a DiT whose blocks are one layer."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.stack = Stack(blocks)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, T, D) and conditioning (B, D) -> (B, T, D)."""
        return x + self.stack(x, c)


class WholeStackDiT(DiT):
    """A DiT whose blocks are one layer."""


def whole_stack(model: DiT) -> WholeStackDiT:
    """The same model, with the same weights, as one whose blocks are one layer."""
    view = copy.copy(model)
    view.__class__ = WholeStackDiT
    view._modules = dict(model._modules)
    view._modules["blocks"] = nn.ModuleList([StackBlock(model.blocks)])
    assert isinstance(view, WholeStackDiT)
    return view


@register_adapter(f"{__name__.partition('.')[0]}.WholeStackDiT")
def stack_layer(model: WholeStackDiT) -> LayerTable:
    """`stack`, for all blocks."""
    block: Any = model.blocks[0]
    parts = copy.copy(model)
    parts.__class__ = DiT
    table = find_layers(parts)
    layer = Layer(
        "stack",
        "blocks.0.stack",
        BLOCK,
        sum(layer.linear_macs for layer in table.layers),
        sum(layer.attention_macs for layer in table.layers),
        table.layers[0].out_elements,
    )
    assert len(block.stack.blocks) == model.config.depth
    return LayerTable("dit, whole stack", (layer,), table.rest_macs, table.sample_shape)


def measure(
    model: DiT, evaluations: int, every: int, settings: LearnSettings, judged: int, depths: Sequence[int]
) -> Record:
    """Learns a solver and the forecasts of both forms for every `every`-th of so many evaluations."""
    results: dict[str, Any] = {}
    own = ModelHost.of(model, guidance=GUIDANCE)
    trainer = Trainer("references", own, settings)
    references = solve(trainer, own, settings)
    unseen = own.examples(judged, settings.seed, "whole stack")
    with torch.no_grad():
        target = own.reference(settings.reference_steps).sample(unseen)
    forms = [("layers", model, 3)] + [("stack", whole_stack(model), depth) for depth in depths]
    for name, form, depth in forms:
        key = f"{name}, history {depth}"
        results[key] = _learned(form, evaluations, every, settings, depth, references, unseen, target)
        print(key, results[key], file=sys.stderr, flush=True)
    config = {"evaluations": evaluations, "every": every, "judged": judged, "guidance": GUIDANCE}
    config |= {"settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__}}
    return Record(COMMAND, config, results=results, device=describe_device("cpu"))


def _learned(
    model: nn.Module,
    evaluations: int,
    every: int,
    settings: LearnSettings,
    depth: int,
    references: References,
    unseen: Any,
    target: Tensor,
) -> dict[str, Any]:
    host = ModelHost.of(model, guidance=GUIDANCE).solver_starts(evaluations)[0]
    assert isinstance(host, ModelHost)
    mine = LearnSettings(
        **{**{k: getattr(settings, k) for k in settings.__dataclass_fields__}, "history": depth}
    )
    loop = ClosedLoop(Trainer("forecasts", host, mine), host, references, mine, "")
    compute = torch.zeros(evaluations, len(host.table), dtype=torch.bool)
    compute[::every] = True
    starts = {}
    for order in range(min(depth, 3)):
        starts[order] = loop.trial_error(loop.student(compute, order, solver=True))
    order = min(starts, key=starts.__getitem__)
    with host.prepared():
        schedule, outcome = loop.fit(compute, {}, order=order, solver=True, stage=f"{depth}")
    run = ModelHost.of_schedule(model, schedule, GUIDANCE)
    with torch.no_grad(), run.attach(schedule) as cache:
        made = run.sample(unseen)
        stored = store_bytes(cache, run.sampler, 1)  # type: ignore[arg-type]
    each = errors(made, target, host.unit)
    return {
        "cost": schedule.cost.fraction * evaluations,
        "before_by_order": {str(order): round(error, 5) for order, error in starts.items()},
        "order": order,
        "error": round(each.mean().item(), 5),
        "standard_error": round(each.std().item() / len(each) ** 0.5, 5),
        "p95": round(each.quantile(0.95).item(), 5),
        "worst": round(each.max().item(), 5),
        "kept": outcome.kept,
        "store_bytes": stored,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--evaluations", type=int, default=16)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--judged", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--histories", type=int, nargs="+", default=(3, 5), help="of the whole stack")
    given = parser.parse_args(arguments)
    settings = LearnSettings(
        iterations=given.iterations,
        num_examples=given.examples,
        batch_size=given.batch_size,
        trial_examples=6,
        bf16=True,
    )
    model = load_model("dit-mini-cifar10")
    assert isinstance(model, DiT)
    record = measure(model, given.evaluations, given.every, settings, given.judged, given.histories)
    record.save(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
