from __future__ import annotations

import math

import torch

from l2c.models import DiT
from l2c.models.embeddings import sincos_positions, timestep_features, unpatchify


def test_timestep_features_are_cosines_then_sines_spaced_by_half() -> None:
    features = timestep_features(torch.tensor([0.0, 250.5]), 4)
    slow = 10_000 ** (-1 / 2)
    expected = [math.cos(250.5), math.cos(250.5 * slow), math.sin(250.5), math.sin(250.5 * slow)]
    torch.testing.assert_close(features[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(features[1], torch.tensor(expected))


def test_timestep_features_agree_for_integer_and_float_timesteps() -> None:
    timesteps = torch.tensor([0, 7, 999])
    assert torch.equal(timestep_features(timesteps, 256), timestep_features(timesteps.double(), 256))


def test_sincos_positions_reproduce_the_stored_table(dit: DiT) -> None:
    assert torch.equal(sincos_positions(192, 16).half().float(), dit.pos_embed)


def test_unpatchify_inverts_cutting_into_patches(generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 8, 8, generator=generator)
    tokens = images.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, grid, grid, patch, patch)
    tokens = tokens.permute(0, 2, 3, 4, 5, 1).reshape(2, 16, 12)
    assert torch.equal(unpatchify(tokens, channels=3, patch_size=2), images)
