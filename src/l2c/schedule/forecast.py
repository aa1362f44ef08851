"""How a layer that is not computed is forecast: a fixed linear combination of its last computed values.

Copying, Taylor extrapolation and learned coefficients all have that form, so a schedule's mask and predictor
together fix, before anything runs, which stored values are read where and with which weights: the
`ReusePlan`. The sampling path only looks it up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

from l2c.errors import ConfigError, ScheduleError

_Scalar = TypeVar("_Scalar", float, Tensor, float | Tensor)
PredictorKind = Literal["copy", "taylor", "linear"]

ReusePlan = dict[tuple[int, int], tuple[tuple[int, float | Tensor], ...]]
"""For every reused (evaluation, layer): the (source evaluation, weight) pairs, the latest source first.

Weights are numbers, or tensors () while they are being learned.
"""


@dataclass(frozen=True)
class Predictor:
    """Kind and settings of the forecast.

    Attributes:
        kind: `copy` repeats the last computed value. `taylor` continues the polynomial through the last
            `order + 1` computed values in log-SNR. `linear` weighs the last values by `coefficients`.
        order: Order of the `taylor` polynomial; the order is lower where fewer values have been computed.
        coefficients: For `linear`, weights (evaluations, layers, history) on the last `history` computed values,
            the latest first; entries of computed layers are ignored.

    Source: copying is arXiv 2406.01733; forecasting by a Taylor series arXiv 2503.06923.
    """

    kind: PredictorKind = "copy"
    order: int = 0
    coefficients: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("copy", "taylor", "linear"):
            raise ConfigError(f"unknown predictor '{self.kind}'; choose copy, taylor or linear")
        if self.kind == "taylor" and not 1 <= self.order <= 4:
            raise ConfigError(f"a Taylor predictor has an order from 1 to 4, got {self.order}")
        if (self.kind == "linear") != (self.coefficients is not None):
            raise ConfigError("a linear predictor, and no other, takes coefficients")

    @classmethod
    def parse(cls, text: str) -> Predictor:
        """Predictor named `copy`, `taylor` (order 1) or `taylor-N`.

        >>> Predictor.parse("taylor-2").history
        3
        """
        kind, _, order = text.partition("-")
        if kind == "copy" and not order:
            return cls()
        if kind == "taylor" and (not order or order.isdecimal()):
            return cls("taylor", int(order or 1))
        raise ConfigError(f"unknown predictor '{text}'; choose copy, taylor, or taylor-N of order N")

    @property
    def name(self) -> str:
        """Short name: `copy`, `taylor-2`, `linear-3`."""
        return {"copy": "copy", "taylor": f"taylor-{self.order}", "linear": f"linear-{self.history}"}[
            self.kind
        ]

    @property
    def history(self) -> int:
        """How many computed values it reads at most."""
        if self.coefficients is not None:
            return int(self.coefficients.shape[-1])
        return self.order + 1

    def weights_at(
        self, evaluation: int, layer: int, now: float, times: Sequence[_Scalar]
    ) -> list[float] | list[_Scalar]:
        """Weights on stored values at one evaluation.

        Args:
            evaluation: Index of the evaluation that is forecast.
            layer: Index of the layer.
            now: Half log-SNR of the evaluation.
            times: Half log-SNRs of the stored values, the latest first.
        """
        if self.kind == "copy":
            return [1.0]
        if self.coefficients is not None:
            return [float(c) for c in self.coefficients[evaluation, layer, : len(times)]]
        return lagrange_weights(now, times)


def lagrange_weights(target: float | Tensor, nodes: Sequence[_Scalar]) -> list[_Scalar]:
    """Weights that continue the polynomial through values at `nodes` to `target`.

    >>> lagrange_weights(2.0, [1.0, 0.0])
    [2.0, -1.0]
    """
    weights: list[Any] = []
    for i, node in enumerate(nodes):
        weight: Any = 1.0
        for j, other in enumerate(nodes):
            if i != j:
                weight *= (target - other) / (node - other)
        weights.append(weight)
    return weights


def plan_reuse(compute: Tensor, predictor: Predictor, log_snrs: Sequence[float] | None) -> ReusePlan:
    """Resolves a mask and a predictor into sources and weights.

    Args:
        compute: Bool (evaluations, layers); True where a layer is computed.
        predictor: How reused layers are forecast.
        log_snrs: Half log-SNR log(alpha / sigma) of every evaluation; only `taylor` needs it.

    Raises:
        ScheduleError: If a layer is reused before it was ever computed, if coefficients have another shape than
            the mask, or if `taylor` has no log-SNRs.
    """
    if predictor.coefficients is not None and predictor.coefficients.shape[:2] != compute.shape:
        raise ScheduleError(
            f"the coefficients cover {tuple(predictor.coefficients.shape[:2])} (evaluations, layers) "
            f"but the mask covers {tuple(compute.shape)}"
        )
    if predictor.kind == "taylor" and log_snrs is None:
        raise ScheduleError(
            "a Taylor predictor needs the log-SNR of every evaluation, and the schedule has none"
        )
    plan: ReusePlan = {}
    rows: list[list[bool]] = compute.tolist()
    history: list[list[int]] = [[] for _ in range(compute.shape[1])]
    for evaluation, row in enumerate(rows):
        for layer, computes in enumerate(row):
            past = history[layer]
            if computes:
                past.insert(0, evaluation)
                del past[predictor.history :]
                continue
            if not past:
                raise ScheduleError(
                    f"layer {layer} is reused at evaluation {evaluation} before it was ever computed; "
                    "the first evaluation must compute every layer"
                )
            times = [log_snrs[source] if log_snrs else math.nan for source in past]
            now = log_snrs[evaluation] if log_snrs else math.nan
            weights = predictor.weights_at(evaluation, layer, now, times)
            plan[evaluation, layer] = tuple(zip(past, weights, strict=True))
    return plan


def without_zeros(plan: ReusePlan) -> ReusePlan:
    """A plan without the values that have no weight: they need not be there, nor be stored.

    So forecasts of a model that takes over in the middle of a run, whose weights on earlier values are 0, do not wait
    for values that were another model's.

    >>> without_zeros({(2, 0): ((1, 0.5), (0, 0.0))})
    {(2, 0): ((1, 0.5),)}
    """
    return {
        place: tuple(term for term in terms if term[1] != 0) or terms[:1] for place, terms in plan.items()
    }


def is_copy(weights: Sequence[float | Tensor]) -> bool:
    """Whether a forecast with these weights is a stored value itself."""
    return len(weights) == 1 and isinstance(weights[0], float) and weights[0] == 1.0


def combine(values: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """Weighted sum of equally shaped tensors; a single weight of 1 returns the value itself."""
    if is_copy(weights):
        return values[0]
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        if isinstance(weight, Tensor):
            total = total + value * weight
        else:
            total.add_(value, alpha=weight)  # `total` is ours; without a temporary it is a third faster
    return total
