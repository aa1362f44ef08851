"""LPIPS, the learned perceptual distance, with weights from files: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from l2c.errors import CheckpointError, Told
from l2c.evaluation.features import load_tensors

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of VGG-16's convolutions; 0 is a pooling."""

_TAPS = (3, 8, 15, 22, 29)
"""Activations that are compared: the last of each resolution."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """Weighted distance of normalised VGG-16 activations.

    Args:
        network: Weights of VGG-16 as torchvision publishes them (`features.N.weight` ...).
        heads: Linear weights of LPIPS 0.1 for VGG (`lin0.model.1.weight` ...).
        device: Where to compute.

    Raises:
        CheckpointError: If a file is missing or lacks a weight.

    Source: Zhang et al., arXiv 1801.03924, equation 1.
    """

    def __init__(self, network: str | Path, heads: str | Path, device: torch.device | str = "cpu") -> None:
        layers: list[nn.Module] = []
        channels = 3
        for width in _WIDTHS:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self._network = nn.Sequential(*layers)
        tensors = {
            key.removeprefix("features."): value
            for key, value in load_tensors(Path(network)).items()
            if key.startswith("features.")
        }
        wanted = f"{network} does not hold VGG-16 as torchvision saves it ({{said}})"
        with Told(CheckpointError, wanted, RuntimeError):
            self._network.load_state_dict(tensors)
        self._network.to(device).eval().requires_grad_(False)
        found = load_tensors(Path(heads))
        with Told(CheckpointError, f"{heads} lacks the linear weights {{said}} of LPIPS for VGG", KeyError):
            self._heads = [found[f"lin{i}.model.1.weight"].float().to(device) for i in range(len(_TAPS))]
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distance of each image (B, 3, H, W) in [-1, 1] to its target: (B,), float64, on the CPU."""
        total = torch.zeros(len(images), dtype=torch.float64)
        for head, mine, other in zip(
            self._heads, self._activations(images), self._activations(targets), strict=True
        ):
            difference = (_unit(mine) - _unit(other)).square()
            total += (difference * head).sum(dim=1).mean(dim=(1, 2)).double().cpu()
        return total

    def _activations(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v, device=self._device)[:, None, None] for v in (_SHIFT, _SCALE))
        x = (images.float().to(self._device) - shift) / scale
        taps = []
        for index, layer in enumerate(self._network):
            x = layer(x)
            if index in _TAPS:
                taps.append(x)
        return taps


def _unit(activations: Tensor) -> Tensor:
    return activations / (activations.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
