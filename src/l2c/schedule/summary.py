"""A schedule in figures, as plain data: what `l2c inspect` shows and what figures are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from l2c.layers import LayerTable
from l2c.schedule.branches import BRANCHES, branch_masks
from l2c.schedule.contract import Contract
from l2c.schedule.cost import Cost, CostTable
from l2c.schedule.forecast import Predictor


class _Summarized(Protocol):
    """What is shown of a schedule; see `CacheSchedule`."""

    @property
    def compute(self) -> Tensor: ...

    @property
    def layers(self) -> LayerTable: ...

    @property
    def contract(self) -> Contract: ...

    @property
    def predictor(self) -> Predictor: ...

    @property
    def scores(self) -> Tensor | None: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def cost(self) -> Cost: ...

    @property
    def num_evaluations(self) -> int: ...

    @property
    def has_branches(self) -> bool: ...


def summarize(schedule: _Summarized) -> dict[str, Any]:
    """The schedule as JSON types.

    `cached` speaks of the evaluations that a router decided, as the L2C paper counts its layers, or, without
    scores, of those that reuse anything. In `rows`, one per evaluation, `mask` has a character per layer, `1`
    where it is computed, and `fraction` is the share of the evaluation's MACs that is left. Where the passes of
    guidance have rows of their own, `branches` names them, counts are over both, `mask` is that of the conditional pass
    and `unconditional` that of the other, None where it is derived.
    """
    run, table, cost = schedule.contract.run, schedule.layers, schedule.cost
    scores = schedule.scores
    masks = branch_masks(schedule.compute, len(table))[: 2 if schedule.has_branches else 1]
    cached = ~schedule.compute.all(dim=1) if scores is None else scores.isfinite().any(dim=1)
    kinds = {
        kind: {
            "computed": sum(int(mask[cached][:, columns].sum()) for mask in masks),
            "total": int(cached.sum()) * len(columns) * len(masks),
        }
        for kind, columns in _columns_by_kind(schedule).items()
    }
    total = sum(kind["total"] for kind in kinds.values())
    computed = sum(kind["computed"] for kind in kinds.values())
    return {
        "architecture": table.architecture,
        "model": schedule.contract.model,
        "solver": run.solver,
        "steps": run.steps,
        "spacing": run.spacing,
        "guidance": run.guidance,
        **({} if run.guidance_range is None else {"guidance_range": list(run.guidance_range)}),
        "evaluations": schedule.num_evaluations,
        "branches": list(BRANCHES) if schedule.has_branches else ["all"],
        "layers": len(table),
        "layer_names": list(table.names),
        "layer_kinds": [layer.kind for layer in table.layers],
        "predictor": schedule.predictor.name,
        "cached": {
            "evaluations": int(cached.sum()),
            "computed": computed,
            "total": total,
            "removed": 1 - computed / total if total else 0.0,
            "kinds": kinds,
        },
        "cost": {
            "macs": cost.macs,
            "full_macs": cost.full_macs,
            "fraction": cost.fraction,
            "linear_macs": cost.linear_macs,
            "full_linear_macs": cost.full_linear_macs,
        },
        "rows": _rows(schedule),
        "scores": _scores(schedule),
        "sample_shape": list(table.sample_shape),
        "prediction_type": schedule.contract.prediction_type,
        "weights": "any" if not schedule.contract.fingerprint else "fingerprinted",
        "provenance": dict(schedule.provenance),
    }


def _columns_by_kind(schedule: _Summarized) -> dict[str, list[int]]:
    columns: dict[str, list[int]] = {}
    for index, layer in enumerate(schedule.layers.layers):
        columns.setdefault(layer.kind, []).append(index)
    return columns


def _rows(schedule: _Summarized) -> list[dict[str, Any]]:
    run, table = schedule.contract.run, schedule.layers
    columns, costs = _columns_by_kind(schedule), CostTable.macs(table)
    cond, uncond, runs = branch_masks(schedule.compute, len(table))
    return [
        {
            "evaluation": evaluation,
            "timestep": timestep,
            "log_snr": log_snr if math.isfinite(log_snr) else None,
            "computed": int(row.sum()),
            "kinds": {kind: int(row[indices].sum()) for kind, indices in columns.items()},
            "fraction": costs.of(schedule.compute[evaluation, None]) / table.full_macs,
            "mask": _characters(row),
            **(
                {"unconditional": _characters(uncond[evaluation]) if runs[evaluation] else None}
                if schedule.has_branches
                else {}
            ),
        }
        for evaluation, (timestep, log_snr, row) in enumerate(
            zip(run.timesteps, run.log_snrs, cond, strict=True)
        )
    ]


def _characters(row: Tensor) -> str:
    """A character per layer, `1` where it is computed."""
    return "".join("1" if computes else "0" for computes in row.tolist())


def _scores(schedule: _Summarized) -> list[list[float | None]] | None:
    """Router scores per evaluation and layer, None where there is none."""
    if schedule.scores is None:
        return None
    return [
        [round(score, 4) if math.isfinite(score) else None for score in row]
        for row in schedule.scores.tolist()
    ]
