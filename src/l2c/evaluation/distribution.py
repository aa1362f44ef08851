"""How alike two sets of images are, from their features: one number per set.

What the features are is the business of `l2c.evaluation.features`; a Frechet distance is called FID only on those of
the standard Inception network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.errors import ConfigError


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features.

    Attributes:
        mean: (d,), float64.
        covariance: (d, d), float64.
        count: Number of images.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def fit(cls, features: Tensor) -> Gaussian:
        """Of features (N, d).

        Raises:
            ConfigError: If there are fewer than two.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ConfigError(
                f"a covariance needs features (N, d) of two images at least, got {tuple(features.shape)}"
            )
        centred = features.double() - features.double().mean(dim=0)
        covariance = centred.T @ centred / (len(features) - 1)
        return cls(features.double().mean(dim=0), covariance, len(features))


def frechet_distance(first: Gaussian | Tensor, second: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Args:
        first: A Gaussian, or features (N, d), for which few images are quicker than many dimensions.
        second: The other one.

    Source: Heusel et al., arXiv 1706.08500, equation 6.

    >>> one = Gaussian(torch.zeros(2).double(), torch.eye(2).double(), 9)
    >>> frechet_distance(one, Gaussian(torch.ones(2).double(), 4 * torch.eye(2).double(), 9))
    4.0
    """
    if isinstance(first, Gaussian):
        mean, trace, root = first.mean, first.covariance.trace(), _root(first.covariance)
    else:
        mean = first.double().mean(dim=0)
        root = (first.double() - mean) / (len(first) - 1) ** 0.5  # (N, d), its square is the covariance
        trace = root.square().sum()
    middle = root @ second.covariance @ root.T
    crossed = torch.linalg.eigvalsh(middle).clamp(min=0).sqrt().sum()
    distance = (mean - second.mean).square().sum() + trace + second.covariance.trace() - 2 * crossed
    return float(distance.clamp(min=0))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


def kernel_distance(features: Tensor, real: Tensor) -> float:
    """Squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, unbiased also for few images.

    With the standard Inception features it is the KID. It can fall below 0 for alike sets.

    Args:
        features: (N, d), N at least 2.
        real: (M, d), M at least 2.

    Source: Binkowski et al., arXiv 1801.01401, section 4.
    """
    x, y = features.double(), real.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        table = kernel(a, a)
        return (table.sum() - table.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def inception_score(logits: Tensor, splits: int = 10) -> float:
    """Exponential of the mean divergence between an image's classes and those of the set; the mean over parts.

    Args:
        logits: Class logits (N, classes) of a classifier.
        splits: Into how many parts the set is cut; one for fewer than 50 images each.

    Source: Salimans et al., arXiv 1606.03498, section 4.
    """
    if len(logits) < 50 * splits:
        splits = 1
    scores = []
    for part in logits.double().chunk(splits):
        log_p = part.log_softmax(dim=1)
        log_marginal = log_p.exp().mean(dim=0).clamp(min=1e-30).log()
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean())


def precision_recall(features: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of the images within the manifold of the real ones, and the other way round.

    A set's manifold is the union of balls around its points that reach to the k-th neighbour.

    Args:
        features: (N, d), N above `neighbours`.
        real: (M, d), M above `neighbours`.
        neighbours: k.

    Returns:
        Precision and recall.

    Raises:
        ConfigError: If there are too few images.

    Source: Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2.
    """
    if min(len(features), len(real)) <= neighbours:
        raise ConfigError(
            f"precision and recall need more than {neighbours} images on either side, got {len(features)} and "
            f"{len(real)}"
        )
    x, y = features.float(), real.float()
    return _covered(x, y, neighbours), _covered(y, x, neighbours)


def _covered(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    radii = (
        torch.cdist(manifold, manifold).kthvalue(neighbours + 1, dim=1).values
    )  # the first is the point itself
    inside = torch.cdist(points, manifold) <= radii
    return float(inside.any(dim=1).double().mean())
