"""What was computed and reused in the last run with a cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from l2c.cache.policy import CallCounts
from l2c.layers import LayerTable


@dataclass(frozen=True)
class ModelSummary:
    """One transformer's share of a run.

    Attributes:
        calls: Calls by branch: `cond`, `uncond`, or `all` for a single call.
        evaluations: Number of evaluations at which it was called.
        computed: Layers computed, over all calls.
        reused: Layers reused.
        unplanned: Of those computed, how many the schedule reuses; their branch had nothing to reuse yet.
        fraction: Share of the multiply-accumulates that was computed; None if the schedule has no sizes.
        peak_bytes: Most that was stored at once.
        derived: Unconditional passes that were derived from the conditional ones instead of being made.
    """

    calls: dict[str, int]
    evaluations: int
    computed: int
    reused: int
    unplanned: int
    fraction: float | None
    peak_bytes: int
    derived: int = 0


@dataclass(frozen=True)
class RunSummary:
    """The last run of a model or a pipeline with a cache.

    Attributes:
        evaluations: Number of timesteps of the run.
        finished: Whether it came to the last of them.
        models: By name of the component; `model` for a model on its own.
    """

    evaluations: int
    finished: bool
    models: dict[str, ModelSummary]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        end = "finished" if self.finished else "not finished"
        lines = [f"run of {self.evaluations} evaluations, {end}"]
        for name, model in self.models.items():
            calls = ", ".join(f"{branch} {count}" for branch, count in model.calls.items()) or "none"
            line = f"{name}: {model.computed} layers computed, {model.reused} reused (calls: {calls})"
            if model.fraction is not None:
                line += f", {model.fraction:.0%} of the MACs"
            if model.derived:
                line += f"; {model.derived} unconditional passes derived"
            if model.unplanned:
                line += f"; {model.unplanned} computed for want of a history"
            lines.append(f"{line}; at most {model.peak_bytes / 1e6:.1f} MB stored")
        return "\n".join(lines)


def summarize_model(counts: CallCounts, table: LayerTable) -> ModelSummary:
    """A transformer's counts as a summary."""
    fraction = None
    calls = sum(counts.calls.values())
    if table.full_macs and calls:
        work = 0.0
        for (
            layer,
            computed,
        ) in counts.computed.items():  # what is called several times in a call costs that together
            times = max(1.0, (computed + counts.reused[layer]) / calls)
            work += computed / times * table.layers[layer].macs
        fraction = (work + calls * table.rest_macs) / ((calls + counts.derived) * table.full_macs)
    return ModelSummary(
        calls=dict(counts.calls),
        evaluations=len(counts.evaluations),
        computed=counts.computed.total(),
        reused=counts.reused.total(),
        unplanned=counts.unplanned,
        fraction=fraction,
        peak_bytes=counts.peak_bytes,
        derived=counts.derived,
    )
