"""The router of Learning-to-Cache: one logit per layer of every evaluation that may reuse.

Source: arXiv 2406.01733, section 3.3, and the settings released with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l2c.sampling.solvers import evaluations_per_step
from l2c.schedule.contract import Run

MAX_LOGIT = 5.0


def alternating(run: Run) -> tuple[int, ...]:
    """Evaluations that may reuse in the paper's pattern, where full and cached solver steps alternate.

    With one evaluation per step these are the evaluations 1, 3, 5, ...; with the two of DPM-Solver singlestep,
    the first evaluation of every outer step but the first.

    >>> from l2c.sampling import make_solver
    >>> alternating(make_solver("ddim", 6).run)
    (1, 3, 5)
    >>> alternating(make_solver("dpmsolver-singlestep", 6).run)
    (2, 4)
    """
    return tuple(range(evaluations_per_step(run.solver), len(run.timesteps), 2))


class Router(nn.Module):
    """Logits whose sigmoid is the share of a layer that is computed.

    Args:
        evaluations: Evaluations that it decides; all others compute everything.
        num_layers: Number of layers.
        initial_logit: Where all logits start.
    """

    def __init__(self, evaluations: Sequence[int], num_layers: int, initial_logit: float = 0.0) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.logits = nn.ParameterDict(
            {str(e): nn.Parameter(torch.full((num_layers,), initial_logit)) for e in evaluations}
        )

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Evaluations that the router decides."""
        return tuple(int(evaluation) for evaluation in self.logits)

    def decides(self, evaluation: int) -> bool:
        """Whether layers may be reused at an evaluation."""
        return str(evaluation) in self.logits

    def scores(self, evaluation: int) -> Tensor:
        """Scores (layers,) in (0, 1) at an evaluation that the router decides."""
        row: Tensor = self.logits[str(evaluation)]
        return row.sigmoid()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keeps the logits within [-5, 5], where the sigmoid still has a gradient."""
        for row in self.logits.values():
            row.clamp_(-MAX_LOGIT, MAX_LOGIT)

    @torch.no_grad()
    def score_table(self, num_evaluations: int) -> Tensor:
        """All scores (evaluations, layers) on the CPU, NaN where the router decides nothing."""
        table = torch.full((num_evaluations, self.num_layers), torch.nan)
        for evaluation, row in self.logits.items():
            table[int(evaluation)] = row.sigmoid().cpu()
        return table
