"""The branch as an axis of the mask: conditional and unconditional pass with rows of their own.

A mask has one column for everything that is either computed or forecast at an evaluation. Without the axis these are
the layers, alike in all branches. With it they are the layers of the conditional pass, those of the unconditional one,
and the *difference* of the two predictions, conditional minus unconditional. The difference is computed where the
unconditional pass runs. Where it is forecast, that pass is not run at all: its prediction is *derived*, as the
conditional one minus the difference, continued from its last values.

So mask, weights and plan have the same form with the axis and without it, and only the meaning of a column differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.errors import ScheduleError
from l2c.schedule.forecast import ReusePlan

BRANCHES = ("cond", "uncond")
"""Names of the two passes, in the order of their columns."""


def has_branches(columns: int, num_layers: int) -> bool:
    """Whether a mask of so many columns gives each pass rows of its own."""
    return columns == 2 * num_layers + 1


def column_of(branch: str, layer: int, num_layers: int) -> int:
    """Column of a layer in a pass.

    >>> column_of("uncond", 3, num_layers=24)
    27
    """
    return BRANCHES.index(branch) * num_layers + layer


def layer_of(column: int, num_layers: int) -> int | None:
    """Layer of a column; None for the difference.

    >>> layer_of(27, num_layers=24)
    3
    """
    return None if column == 2 * num_layers else column % num_layers


def difference_column(num_layers: int) -> int:
    """Column of the difference of the predictions."""
    return 2 * num_layers


def join_branches(cond: Tensor, uncond: Tensor, runs: Tensor) -> Tensor:
    """A mask (evaluations, 2 * layers + 1) from those of the passes.

    Args:
        cond: What the conditional pass computes, bool (evaluations, layers).
        uncond: What the unconditional pass computes, of the same shape.
        runs: Where the unconditional pass runs, bool (evaluations,); elsewhere it is derived.
    """
    return torch.cat([cond, uncond & runs[:, None], runs[:, None]], dim=1)


def branch_masks(compute: Tensor, num_layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `join_branches`; of a mask without the axis, both passes compute the same."""
    if not has_branches(compute.shape[1], num_layers):
        return compute, compute, torch.ones(len(compute), dtype=torch.bool)
    cond, uncond = compute[:, :num_layers], compute[:, num_layers : 2 * num_layers]
    return cond, uncond, compute[:, -1]


def check_branches(compute: Tensor, num_layers: int) -> None:
    """Checks the mask of a schedule.

    Raises:
        ScheduleError: If the unconditional pass computes layers where it does not run, or does not run at first.
    """
    _, uncond, runs = branch_masks(compute, num_layers)
    if not runs[0]:
        raise ScheduleError(
            "the unconditional pass is derived at evaluation 0, before there is a difference to continue; the first "
            "evaluation must run both passes"
        )
    if wrong := (uncond.any(1) & ~runs).nonzero().flatten().tolist():
        raise ScheduleError(
            f"the unconditional pass computes layers at evaluation {wrong[0]}, where it is derived; it must run there, "
            "or compute nothing"
        )


def passes_of(compute: Tensor, num_layers: int) -> tuple[str, ...] | None:
    """What each evaluation runs: `both` passes whole, both `apart`, or `cond` alone; None without the axis."""
    if not has_branches(compute.shape[1], num_layers):
        return None
    cond, uncond, runs = branch_masks(compute, num_layers)
    whole = (cond & uncond).all(1)
    return tuple(
        "cond" if not run else "both" if all_ else "apart"
        for run, all_ in zip(runs.tolist(), whole.tolist(), strict=True)
    )


def difference_table(plan: ReusePlan, num_evaluations: int, num_layers: int) -> Tensor:
    """Weights (evaluations, evaluations) that continue the difference at each evaluation from those at others."""
    table, column = torch.zeros(num_evaluations, num_evaluations), difference_column(num_layers)
    for (evaluation, at), terms in plan.items():
        if at == column:
            for source, weight in terms:
                table[evaluation, source] = float(weight)
    return table


def of_layers(plan: ReusePlan, num_layers: int, branches: int = 2) -> ReusePlan:
    """The part of a plan that forecasts layers, of the first pass or of both."""
    return {place: terms for place, terms in plan.items() if place[1] < branches * num_layers}


def without_derived(plan: ReusePlan, compute: Tensor, num_layers: int) -> ReusePlan:
    """A plan without forecasts of layers of the unconditional pass where it does not run."""
    if not has_branches(compute.shape[1], num_layers):
        return plan
    runs: list[bool] = compute[:, -1].tolist()
    layers = range(num_layers, 2 * num_layers)
    return {place: terms for place, terms in plan.items() if runs[place[0]] or place[1] not in layers}
