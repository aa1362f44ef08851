from __future__ import annotations

import pytest
import torch

from l2c.errors import ConfigError
from l2c.models import DiTConfig, UViTConfig

SIZES = {
    "in_channels": 3,
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 10,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"patch_size": 3}, "image_size 8 must be a multiple of patch_size, got 3"),
        ({"num_heads": 5}, "hidden_size 32 must be a multiple of num_heads, got 5"),
        ({"hidden_size": 30}, "hidden_size 30 must be a multiple of 4"),
        ({"beta_schedule": "cosine"}, "beta_schedule must be one of linear, scaled_linear, got 'cosine'"),
        (
            {"prediction_type": "x"},
            "prediction_type must be one of epsilon, v_prediction, sample, flow_prediction, got 'x'",
        ),
    ],
)
def test_config_refuses_impossible_sizes(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiTConfig(**{**SIZES, **change})  # type: ignore[arg-type]


def test_uvit_config_refuses_an_odd_depth() -> None:
    with pytest.raises(
        ConfigError, match="depth, which counts two equal halves, must be a multiple of 2, got 3"
    ):
        UViTConfig(**{**SIZES, "depth": 3})  # type: ignore[arg-type]


def test_config_counts_tokens_blocks_and_channels() -> None:
    dit = DiTConfig(**SIZES, learn_sigma=True)  # type: ignore[arg-type]
    uvit = UViTConfig(**SIZES)  # type: ignore[arg-type]
    assert (dit.num_tokens, dit.num_blocks, dit.out_channels, dit.latent) == (16, 2, 6, False)
    assert (uvit.num_tokens, uvit.num_blocks, uvit.out_channels) == (18, 3, 3)


def test_config_null_class_is_the_label_after_the_last_class() -> None:
    assert DiTConfig(**SIZES).null_class == 10  # type: ignore[arg-type]
    without = DiTConfig(**SIZES, has_null_class=False)  # type: ignore[arg-type]
    assert without.null_class is None
    assert without.num_labels == 10


def test_betas_have_the_published_ends() -> None:
    linear = DiTConfig(**SIZES).betas()  # type: ignore[arg-type]
    scaled = DiTConfig(**SIZES, beta_schedule="scaled_linear").betas()  # type: ignore[arg-type]
    assert linear.shape == scaled.shape == (1000,)
    torch.testing.assert_close(linear[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))
    torch.testing.assert_close(scaled[[0, -1]], torch.tensor([0.00085, 0.012], dtype=torch.float64))
