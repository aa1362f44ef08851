"""Weights of a solver by least squares: each step is fitted when a run gets there, and the run goes on with it.

The fitted step takes the runs of some pictures, from wherever the steps before have brought them, as close as it can to
where their fine-step solutions are at the next noise level. All pictures are run together, once. It costs what running
them costs, and is where gradients go on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.schedule.scales import bands, of_bands

RIDGE = 1e-4
"""What keeps a weight near where it begins, relative to the square of what it weighs."""
ROUNDS = 6
"""Of weighing pictures anew by their distances."""
NEAR = 1e-3
"""Distance, relative to the solution, within which a picture counts as reached."""
NODES = 4
"""States that one in between is interpolated by."""


@dataclass(frozen=True)
class Paths:
    """Fine-step solutions with all that they came through.

    Attributes:
        log_snrs: Half log-SNR of every state but the last, which is without noise (N,).
        states: Noisy samples as the solver has them, and the final ones (B, N + 1, ...).
    """

    log_snrs: tuple[float, ...]
    states: Tensor

    def rows(self, rows: list[int] | slice) -> Paths:
        """Some of them."""
        return Paths(self.log_snrs, self.states[rows])

    def at(self, log_snr: float | None) -> Tensor:
        """States (B, ...) at a half log-SNR; at the end for None.

        Between the levels of the solution they follow the cubic through the nearest four, over the angle whose
        tangent is noise over signal, in which they are smooth up to both ends.
        """
        if log_snr is None:
            return self.states[:, -1]
        levels = torch.tensor([*self.log_snrs, float("inf")], dtype=torch.float64)
        angles = torch.exp(-levels).atan()
        wanted = torch.exp(-torch.tensor(log_snr, dtype=torch.float64)).atan()
        above = int((angles > wanted).sum())
        first = min(max(above - NODES // 2, 0), max(len(angles) - NODES, 0))
        nodes = range(first, min(first + NODES, len(angles)))
        total = torch.zeros_like(self.states[:, 0])
        for node in nodes:
            others = [other for other in nodes if other != node]
            weight = torch.stack(
                [(wanted - angles[it]) / (angles[node] - angles[it]) for it in others]
            ).prod()
            total += float(weight) * self.states[:, node]
        return total


class StepFit:
    """Finds each row of a solver's table as a run of all pictures gets there.

    Pictures that a step brings near their solutions count for more than those that are lost, as in a mean of
    logarithms: few of those would else decide everything, to little avail.

    Args:
        paths: Solutions of the first pictures of the run, to which it is fitted; the others only go on with it.
        log_snrs: Half log-SNR of every evaluation (N,), rising.
        table: Weights to begin with and to stay near (N + 1, N + 1), or as many such tables side by side as there are
            scales to weigh apart; see `l2c.schedule.scales`. Where they follow the guidance scale, the same again for
            each further power of it.
        degree: Of the polynomial in the guidance scale.

    Attributes:
        table: The weights, those that have been found so far in their places.
        steps: What learning goes on in instead of the weights, whose terms are nearly alike: for each row
            (N + 1, weights, weights), columns of changes that each move the next samples by as much as their solutions
            are large, or less, each in a direction of its own.
    """

    def __init__(self, paths: Paths, log_snrs: Sequence[float], table: Tensor, degree: int = 0) -> None:
        self.table = table.detach().double().cpu().clone()
        self._powers = degree + 1
        self._scales = self.table.shape[1] // (len(self.table) * self._powers)
        self.steps = self.table.new_zeros(*self.table.shape, self.table.shape[1])
        self._paths, self._log_snrs = paths, [*log_snrs, None]
        self._parts: list[Tensor] = []  # bands of every term so far
        self._products = torch.zeros(0)  # of these with each other, of each picture (B, bands, bands)
        self._scale = paths.at(None).double().flatten(1).norm(dim=1).cpu()

    def __call__(self, evaluation: int, terms: Sequence[Tensor], powers: Tensor | None = None) -> Tensor:
        """Weights (powers scales, evaluation + 2) of a step.

        Args:
            evaluation: From which it is.
            terms: Initial noise and all predictions so far, (B, ...) each.
            powers: Of the guidance scale of each picture (B, degree + 1), where the weights follow it.
        """
        target = self._paths.at(self._log_snrs[evaluation + 1]).to(terms[0]).double().flatten(1)
        self._extend(terms)
        count, parts = len(terms), self._parts
        towards = torch.stack([part @ target[:, :, None] for part in parts], dim=1)[..., 0].flatten(1).cpu()
        products = self._products
        if powers is not None:
            each = powers[: len(target)].double().cpu()
            towards = torch.einsum("bp,bi->bpi", each, towards).flatten(1)
            products = torch.einsum("bp,bq,bij->bpiqj", each, each, products)
            products = products.reshape(len(each), towards.shape[1], -1)
        own = self.table[evaluation + 1].view(self._powers, self._scales, -1)[:, :, :count]
        start = own.cumsum(1).transpose(1, 2).flatten()  # of bands, term by term, one power after another
        rest = towards - products @ start
        length = target.square().sum(1).cpu()
        weights, found = self._scale**-2, start
        for _ in range(ROUNDS):
            weights = weights / (weights @ self._scale**2)
            square = torch.einsum("b,bij->ij", weights, products)
            square += RIDGE * square.diagonal().clamp_min(1e-12).diag()
            found = start + torch.linalg.solve(square, weights @ rest)
            left = length - 2 * towards @ found + (products @ found) @ found
            distance = left.clamp_min(0).sqrt() / self._scale
            weights = self._scale**-2 / (distance + NEAR) ** 2
        own.copy_(self._as_weights(found[:, None], count)[..., 0])
        root = torch.linalg.cholesky_ex(square).L
        steps = torch.linalg.solve_triangular(root.T, torch.eye(len(root), dtype=root.dtype), upper=True)
        places = self.steps[evaluation + 1].view(self._powers, self._scales, len(self.table), -1)
        places[:, :, :count, : len(root)] = self._as_weights(steps, count)
        return own.flatten(0, 1).to(terms[0])

    def _as_weights(self, of_parts: Tensor, count: int) -> Tensor:
        """Weights (powers, scales, terms, N) of weights of bands (powers terms scales, N), of so many terms."""
        parts = of_parts.view(self._powers, count, self._scales, -1)
        return of_bands(parts.permute(2, 0, 1, 3)).transpose(0, 1)

    def _bands(self, term: Tensor) -> Tensor:
        """Bands of a term (B, scales, values), of the pictures that it is fitted to."""
        parts = bands(term[: len(self._paths.states)].float(), self._scales)
        return torch.stack([part.flatten(1) for part in parts], dim=1).double()

    def _extend(self, terms: Sequence[Tensor]) -> None:
        """Adds the bands of the terms that are new, and their products."""
        parts, known, size = self._parts, self._products.shape[-1], len(terms) * self._scales
        grown = torch.zeros(len(self._paths.states), size, size, dtype=torch.float64)
        if known:
            grown[:, :known, :known] = self._products
        for term in terms[len(parts) :]:
            parts.append(self._bands(term))
            products = torch.cat([parts[-1] @ part.transpose(1, 2) for part in parts], dim=2).cpu()
            end = products.shape[2]
            grown[:, end - self._scales : end, :end] = products
            grown[:, :end, end - self._scales : end] = products.transpose(1, 2)
        self._products = grown
