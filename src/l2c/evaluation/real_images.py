"""What real images look like to a feature extractor, computed once and stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from l2c.documents import Count, parse
from l2c.errors import DataError, Told
from l2c.evaluation.distribution import Gaussian
from l2c.evaluation.features import FeatureExtractor, extract, to_bytes
from l2c.files import atomic_write
from l2c.learning.data import ImageData

FORMAT = "l2c.real-image-statistics"
MAX_FEATURES = 5000


class _Header(TypedDict):
    extractor: str
    source: str
    count: Count


@dataclass(frozen=True)
class RealImages:
    """Statistics of real images.

    Attributes:
        extractor: Name of the network.
        source: File or folder of the images.
        gaussian: Mean and covariance over all images.
        features: Features (M, d) of the first images, for distances between neighbours.
    """

    extractor: str
    source: str
    gaussian: Gaussian
    features: Tensor

    @classmethod
    def of(
        cls, extractor: FeatureExtractor, data: ImageData, num_images: int | None = None, batch_size: int = 50
    ) -> RealImages:
        """Statistics of the first images of a source, all of them by default.

        Raises:
            DataError: If an image is damaged or of another size.
        """
        features, _ = extract(extractor, _batches(data, num_images, batch_size))
        return cls(extractor.name, data.source.name, Gaussian.fit(features), features[:MAX_FEATURES])

    def save(self, path: str | Path) -> None:
        """Writes the statistics as one `.safetensors` file, whole or not at all.

        Raises:
            OutputError: If the file cannot be written.
        """
        tensors = {
            "mean": self.gaussian.mean,
            "covariance": self.gaussian.covariance.contiguous(),
            "features": self.features.contiguous(),
        }
        header = {"extractor": self.extractor, "source": self.source, "count": self.gaussian.count}
        atomic_write(path, safetensors.torch.save(tensors, {FORMAT: json.dumps(header, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path, extractor: str) -> RealImages:
        """Reads statistics, which must be those of the extractor.

        Raises:
            DataError: If the file cannot be read or is that of another network.
        """
        wrong = f"{path} does not hold statistics of real images ({{said}}); delete it"
        kinds = (OSError, SafetensorError, KeyError, ValueError)
        with Told(DataError, wrong, *kinds), safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {})[FORMAT]
            header = parse(_Header, stored, str(path), DataError, "delete it")
            gaussian = Gaussian(file.get_tensor("mean"), file.get_tensor("covariance"), header["count"])
            statistics = cls(header["extractor"], header["source"], gaussian, file.get_tensor("features"))
        if statistics.extractor != extractor:
            raise DataError(
                f"{path} holds statistics of {statistics.extractor} but {extractor} is asked for; delete it"
            )
        return statistics


def _batches(data: ImageData, num_images: int | None, batch_size: int) -> Iterator[Tensor]:
    count = min(len(data), num_images or len(data))
    for begin in range(0, count, batch_size):
        yield to_bytes(torch.stack([data.image(i) for i in range(begin, min(begin + batch_size, count))]))
