"""The trained models against real images: only the right layout predicts the noise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from l2c.models import DiT, UViT

NUM_IMAGES = 16


@pytest.fixture(scope="module")
def images(shared: Path) -> tuple[torch.Tensor, torch.Tensor]:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = shared / "data" / "cifar10-test.parquet"
    if not path.exists():
        pytest.skip(f"{path} not found")
    rows = next(parquet.ParquetFile(path).iter_batches(batch_size=NUM_IMAGES)).to_pylist()
    pixels = [np.array(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x, torch.tensor([row["label"] for row in rows])


@pytest.mark.parametrize("family", ["dit", "uvit"])
def test_embedded_model_predicts_the_noise_of_real_images(
    family: str,
    images: tuple[torch.Tensor, torch.Tensor],
    request: pytest.FixtureRequest,
    generator: torch.Generator,
) -> None:
    model: DiT | UViT = request.getfixturevalue(family)
    x, labels = images
    signal = (1 - model.config.betas()).cumprod(0).float()
    null = torch.full_like(labels, model.config.num_classes)
    losses, null_losses = [], []
    for timestep in (100, 300, 500, 700):
        noise = torch.randn(x.shape, generator=generator)
        noisy = signal[timestep].sqrt() * x + (1 - signal[timestep]).sqrt() * noise
        t = torch.full((NUM_IMAGES,), timestep)
        losses.append((model(noisy, t, labels) - noise).square().mean().item())
        null_losses.append((model(noisy, t, null) - noise).square().mean().item())
    assert 0.01 < sum(losses) / 4 < 0.04  # a wrong layout gives about 1
    assert losses == sorted(losses, reverse=True)
    assert 1 < sum(null_losses) / sum(losses) < 1.1
