"""The weights of forecasts while they are learned, whatever run they are learned through."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l2c.schedule.branches import difference_column, without_derived
from l2c.schedule.forecast import Predictor, ReusePlan, lagrange_weights, plan_reuse


class Coefficients(nn.Module):
    """What is added to the weights that forecasts begin with.

    With the parameters at zero, reused layers follow the polynomial through their last `order + 1` computed values
    over half log-SNR, for lines of a flow see `_line_of_flow`, or copy the last one where a solver evaluates a noise
    level twice.

    Args:
        compute: Where to compute, bool (evaluations, layers).
        log_snrs: Half log-SNRs of the evaluations.
        history: How many computed values a forecast reads at most.
        device: Where to learn.
        order: Of the polynomial; `history - 1` if not given.
        start: Weights (evaluations, layers, history) to begin with instead; their history is kept.
        begins: Evaluations, rising and from 0 on, at which a model takes over from another. Its forecasts read values
            of its own only.
        num_layers: Layers of the model; None where the mask has no rows for each pass of guidance. The difference of
            the passes begins at the line through its last values.
        flow: Whether the run is that of a flow.

    Attributes:
        compute: The mask.
        added: Parameters (evaluations, layers, history): weights on the last computed value, its first difference, its
            second difference, and so on. So each of them does something of its own, whereas the values themselves are
            nearly alike.

    Raises:
        ScheduleError: If a layer is reused before it was ever computed.
    """

    def __init__(
        self,
        compute: Tensor,
        log_snrs: Sequence[float],
        history: int,
        device: torch.device,
        order: int | None = None,
        start: Tensor | None = None,
        begins: Sequence[int] = (0,),
        num_layers: int | None = None,
        flow: bool = False,
    ) -> None:
        super().__init__()
        self.compute, self._flow = compute, flow
        num_layers = compute.shape[1] if num_layers is None else num_layers
        self._difference = difference_column(num_layers)
        history = history if start is None else start.shape[-1]
        self._order = history - 1 if order is None else min(order, history - 1)
        self._start: ReusePlan = {}
        for first, end in zip(begins, [*begins[1:], len(compute)], strict=True):
            part = compute[first:end]
            if start is None:
                times = log_snrs[first:end]
                weights = _polynomial(part, times, history, self._order, flow)
                line = _polynomial(part, times, history, self._order_of(self._difference), flow)
                weights[:, self._difference :] = line[:, self._difference :]
            else:
                weights = start[first:end]
            self._start |= _plan_of_part(part, weights, first)
        self._start = without_derived(self._start, compute, num_layers)
        self._differences = difference_weights(history).to(device)
        self.added = nn.Parameter(torch.zeros(*compute.shape, history, device=device))

    def _order_of(self, column: int) -> int:
        """Order of the polynomial that a column begins with."""
        return min(self._order, 1) if column == self._difference else self._order

    def plan(self, log_snrs: Tensor | None = None) -> ReusePlan:
        """The forecast plan with the weights as they are, tensors with a graph.

        Args:
            log_snrs: Half log-SNRs (evaluations,) that have been moved, so that the polynomials are others.
        """
        added = self.added @ self._differences
        plan: ReusePlan = {}
        for (evaluation, layer), terms in self._start.items():
            sources = [source for source, _ in terms]
            start = [weight for _, weight in terms]
            if log_snrs is not None:
                nodes = [log_snrs[source] for source in sources[: self._order_of(layer) + 1]]
                start[: len(nodes)] = _through(log_snrs[evaluation], nodes, self._flow)
            plan[evaluation, layer] = tuple(
                (source, (start[index] + added[evaluation, layer, index]).float())
                for index, source in enumerate(sources)
            )
        return plan

    @torch.no_grad()
    def predictor(self, log_snrs: Tensor | None = None) -> Predictor:
        """The weights as a predictor of a schedule; for `log_snrs` see `plan`."""
        if self.compute.all():
            return Predictor()
        weights = torch.zeros_like(self.added, device="cpu")
        for (evaluation, layer), terms in self.plan(log_snrs).items():
            for index, (_, weight) in enumerate(terms):
                weights[evaluation, layer, index] = float(weight)
        return Predictor("linear", coefficients=weights)


def _plan_of_part(compute: Tensor, weights: Tensor, first: int) -> ReusePlan:
    """The plan of a part of the run that begins at evaluation `first`, as if nothing had been computed before."""
    plan = plan_reuse(compute, Predictor("linear", coefficients=weights), None)
    return {
        (first + evaluation, layer): tuple((first + source, weight) for source, weight in terms)
        for (evaluation, layer), terms in plan.items()
    }


def _polynomial(
    compute: Tensor, log_snrs: Sequence[float], history: int, order: int, flow: bool = False
) -> Tensor:
    """Weights (evaluations, layers, history) of a polynomial, 0 on the values that it does not go through."""
    weights = torch.zeros(*compute.shape, history, dtype=torch.float64)
    weights[..., 0] = 1
    if order and len(set(log_snrs)) == len(log_snrs):
        for place, terms in plan_reuse(compute, Predictor("taylor", order), log_snrs).items():
            found = _through(log_snrs[place[0]], [log_snrs[source] for source, _ in terms], flow)
            weights[place][: len(terms)] = torch.tensor(found, dtype=torch.float64)
    return weights


def _through(now: float | Tensor, nodes: Sequence[float | Tensor], flow: bool) -> Sequence[float | Tensor]:
    """Weights to begin with on values at half log-SNRs, the latest first."""
    if flow and len(nodes) == 2:
        return _line_of_flow(now, *nodes)
    return lagrange_weights(now, nodes)


def _line_of_flow(now: float | Tensor, last: float | Tensor, before: float | Tensor) -> list[Tensor]:
    """Weights of a line over sigma, which goes on by no more than it has come, from half log-SNRs ().

    Half log-SNR has no end at pure noise nor at the picture, where what a flow computes changes as little as elsewhere:
    lines over it hardly go on after the first evaluations, and too far at the last one. Both limits were measured, see
    "Lines of a flow" in `docs/learning.md`.

    >>> half = torch.logit(torch.tensor([0.6, 0.4, 0.3]))  # of sigma 0.4, 0.6 and 0.7
    >>> [round(float(weight), 3) for weight in _line_of_flow(*half)]
    [2.0, -1.0]
    """
    levels = (torch.as_tensor(level, dtype=torch.float64) for level in (now, last, before))
    here, newest, older = (torch.sigmoid(-level) for level in levels)
    share = ((here - newest) / (newest - older)).clamp(max=1)
    return [1 + share, -share]


def difference_weights(history: int) -> Tensor:
    """Weights (history, history) of the backward differences of order 0 to `history - 1` on values, latest first.

    >>> difference_weights(3).tolist()
    [[1.0, 0.0, 0.0], [1.0, -1.0, 0.0], [1.0, -2.0, 1.0]]
    """
    return torch.tensor(
        [[(-1) ** index * math.comb(order, index) for index in range(history)] for order in range(history)],
        dtype=torch.float32,
    )
