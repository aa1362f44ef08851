"""How a layer that is not computed is forecast: a fixed linear combination of its last computed values.

Copying, Taylor extrapolation and learned coefficients all have that form, so a schedule's mask and predictor
together fix, before anything runs, which stored values are read where and with which weights: the
`ReusePlan`. The sampling path only looks it up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field
from torch import Tensor

from l2c.documents import Whole, check_value
from l2c.errors import ConfigError, ScheduleError, Told, check_new, known

_Scalar = TypeVar("_Scalar", float, Tensor, float | Tensor)

ReusePlan = dict[tuple[int, int], tuple[tuple[int, float | Tensor], ...]]
"""For every reused (evaluation, layer): the (source evaluation, weight) pairs, the latest source first.

Weights are numbers, or tensors () while they are being learned.
"""

Weights = Callable[[Any, Sequence[Any], Any], Sequence[Any]]
"""(now, times of the stored values, order or coefficients) -> weights on them; see `register_predictor`."""


@dataclass(frozen=True)
class _Registered:
    weights: Weights
    orders: range
    log_snrs: bool
    coefficients: bool


_PREDICTORS: dict[str, _Registered] = {}


def register_predictor(
    kind: str,
    weights: Weights,
    *,
    orders: range = range(1, 5),
    needs_log_snrs: bool = True,
    takes_coefficients: bool = False,
) -> None:
    """Adds a kind of forecast, which schedules can then have and `Predictor.parse` finds as `kind` and `kind-N`.

    Args:
        kind: Its name.
        weights: A function (now, times, order) -> weights, one for each stored value, the latest first. `now` is the
            half log-SNR of the evaluation that is forecast, `times` are those of the stored values, at most
            order + 1; NaN where a schedule has none. While a router is learned, times may be tensors ().
        orders: Orders that it has; `kind` alone means the first.
        needs_log_snrs: Whether it cannot do without `times`.
        takes_coefficients: Whether it is given, instead of the order, the coefficients (times,) of the evaluation and
            layer.

    Raises:
        ConfigError: If the kind is registered, or has no order.
    """
    check_new("predictor", kind, _PREDICTORS)
    from_0_up = list[Annotated[Whole, Field(ge=0)]]
    check_value("orders of a predictor", list(orders), Annotated[from_0_up, Field(min_length=1)])
    _PREDICTORS[kind] = _Registered(weights, orders, needs_log_snrs, takes_coefficients)


def predictor_kinds() -> tuple[str, ...]:
    """All registered kinds, in the order in which they came.

    >>> predictor_kinds()[:3]
    ('copy', 'taylor', 'linear')
    """
    return tuple(_PREDICTORS)


@dataclass(frozen=True)
class Predictor:
    """Kind and settings of the forecast.

    Attributes:
        kind: `copy` repeats the last computed value. `taylor` continues the polynomial through the last
            `order + 1` computed values in log-SNR. `linear` weighs the last values by `coefficients`.
            `register_predictor` adds more.
        order: Order of the `taylor` polynomial; the order is lower where fewer values have been computed.
        coefficients: For `linear`, weights (evaluations, layers, history) on the last `history` computed values,
            the latest first; entries of computed layers are ignored.

    Source: copying is arXiv 2406.01733; forecasting by a Taylor series arXiv 2503.06923.
    """

    kind: str = "copy"
    order: int = 0
    coefficients: Tensor | None = None

    def __post_init__(self) -> None:
        kinds, advice = predictor_kinds(), ", or add it with l2c.register_predictor"
        entry = _PREDICTORS[known("predictor", self.kind, kinds, advice)]
        if entry.coefficients != (self.coefficients is not None):
            takers = [kind for kind in kinds if _PREDICTORS[kind].coefficients]
            raise ConfigError(f"a {' or '.join(_listed(takers))} predictor, and no other, takes coefficients")
        if not entry.coefficients and self.order not in entry.orders:
            title = {"taylor": "Taylor"}.get(self.kind, self.kind)
            raise ConfigError(f"a {title} predictor has {_orders(entry.orders)}, got {self.order}")

    @classmethod
    def parse(cls, text: str) -> Predictor:
        """Predictor named `copy`, `taylor` (order 1) or `taylor-N`, or as one that was registered.

        >>> Predictor.parse("taylor-2").history
        3
        """
        kind, _, order = (text, "", "") if text in _PREDICTORS else text.rpartition("-")
        entry = _PREDICTORS.get(kind)
        if entry is not None and not entry.coefficients:
            if not order and kind == text:
                return cls(kind, entry.orders[0])
            if order.isdecimal() and len(entry.orders) > 1:
                return cls(kind, int(order))
        choices = [
            name if len(one.orders) == 1 else f"{name}, or {name}-N of order N"
            for name, one in _PREDICTORS.items()
            if not one.coefficients
        ]
        raise ConfigError(f"unknown predictor '{text}'; choose {', '.join(choices)}")

    @property
    def name(self) -> str:
        """Short name: `copy`, `taylor-2`, `linear-3`."""
        if self.coefficients is not None:
            return f"{self.kind}-{self.history}"
        return self.kind if len(_PREDICTORS[self.kind].orders) == 1 else f"{self.kind}-{self.order}"

    @property
    def history(self) -> int:
        """How many computed values it reads at most."""
        if self.coefficients is not None:
            return int(self.coefficients.shape[-1])
        return self.order + 1

    @property
    def needs_log_snrs(self) -> bool:
        """Whether it cannot do without the log-SNR of every evaluation."""
        return _PREDICTORS[self.kind].log_snrs

    def weights_at(
        self, evaluation: int, layer: int, now: float, times: Sequence[_Scalar]
    ) -> list[float | Tensor]:
        """Weights on stored values at one evaluation.

        Args:
            evaluation: Index of the evaluation that is forecast.
            layer: Index of the layer.
            now: Half log-SNR of the evaluation.
            times: Half log-SNRs of the stored values, the latest first.

        Raises:
            ConfigError: If a registered predictor gives another number of weights than there are stored values.
        """
        setting: int | Tensor = self.order
        if self.coefficients is not None:
            setting = self.coefficients[evaluation, layer, : len(times)]
        same = (
            f"the predictor '{self.name}' cannot continue a polynomial at evaluation {evaluation}: two before it have "
            "the same log-SNR; take copy"
        )
        with Told(ConfigError, same, ZeroDivisionError):
            given = _PREDICTORS[self.kind].weights(now, times, setting)
        weights = [weight if isinstance(weight, Tensor) else float(weight) for weight in given]
        if len(weights) != len(times):
            raise ConfigError(
                f"the predictor '{self.name}' gives {len(weights)} weights for {len(times)} stored values; it must "
                "give one for each"
            )
        return weights


def _listed(names: Sequence[str]) -> list[str]:
    """Names for a sentence: all but the last with commas, then the last."""
    return [", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names)


def _orders(orders: range) -> str:
    return f"an order from {orders[0]} to {orders[-1]}" if len(orders) > 1 else f"the order {orders[0]}"


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


register_predictor("copy", lambda now, times, order: [1.0], orders=range(1), needs_log_snrs=False)
register_predictor("taylor", lambda now, times, order: lagrange_weights(now, times))
register_predictor(
    "linear",
    lambda now, times, coefficients: coefficients.tolist(),
    needs_log_snrs=False,
    takes_coefficients=True,
)


def plan_reuse(compute: Tensor, predictor: Predictor, log_snrs: Sequence[float] | None) -> ReusePlan:
    """Resolves a mask and a predictor into sources and weights.

    Args:
        compute: Bool (evaluations, layers); True where a layer is computed.
        predictor: How reused layers are forecast.
        log_snrs: Half log-SNR log(alpha / sigma) of every evaluation; `copy` and `linear` do without.

    Raises:
        ScheduleError: If a layer is reused before it was ever computed, if coefficients have another shape than
            the mask, or if a predictor that needs log-SNRs has none.
        ConfigError: If a registered predictor gives another number of weights than there are stored values.
    """
    if predictor.coefficients is not None and predictor.coefficients.shape[:2] != compute.shape:
        raise ScheduleError(
            f"the coefficients cover {tuple(predictor.coefficients.shape[:2])} (evaluations, layers) "
            f"but the mask covers {tuple(compute.shape)}"
        )
    if predictor.needs_log_snrs and log_snrs is None:
        raise ScheduleError(
            f"the predictor '{predictor.name}' needs the log-SNR of every evaluation, and the schedule has none"
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
