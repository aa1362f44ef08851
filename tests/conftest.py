from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from l2c.models import DiT, DiTConfig, UViT, UViTConfig, load_model, random_model

torch.set_num_threads(1)  # the models are tiny: more threads wait for each other, above all on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of data too large for the repository, beside it; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} not found")
    return SHARED


@pytest.fixture(scope="session")
def dit() -> DiT:
    """The trained DiT that comes with the package; frozen, shared by all tests, not to be changed."""
    model = load_model("dit-mini-cifar10")
    assert isinstance(model, DiT)
    return model


@pytest.fixture(scope="session")
def uvit() -> UViT:
    """The trained U-ViT that comes with the package; frozen, shared by all tests, not to be changed."""
    model = load_model("uvit-mini-cifar10")
    assert isinstance(model, UViT)
    return model


@pytest.fixture
def tiny_dit() -> DiT:
    """A DiT of a few thousand random weights, every branch of which matters."""
    model = random_model(
        DiTConfig(
            in_channels=3, image_size=8, patch_size=2, hidden_size=32, depth=3, num_heads=2, num_classes=10
        )
    )
    assert isinstance(model, DiT)
    return model


@pytest.fixture
def tiny_uvit() -> UViT:
    """A U-ViT of a few thousand random weights, every branch of which matters."""
    model = random_model(
        UViTConfig(
            in_channels=3, image_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=10
        )
    )
    assert isinstance(model, UViT)
    return model


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
