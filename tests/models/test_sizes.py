from __future__ import annotations

import pytest
import torch

from l2c.errors import ConfigError
from l2c.models import SIZES, DiT, ModelConfig, build_model, model_config, new_model, resolve_name


@pytest.mark.parametrize(
    ("name", "millions"),  # as printed in the papers
    [
        ("dit-s-2-256", 33),
        ("dit-b-4-256", 130),
        ("dit-l-2-256", 458),
        ("dit-xl-2-256", 675),
        ("dit-xl-2-512", 675),
        ("uvit-m-4-64", 131),
        ("uvit-l-4-64", 287),
        ("uvit-l-2-256", 287),
        ("uvit-h-2-256", 501),
        ("uvit-l-4-512", 287),
        ("uvit-h-4-512", 501),
    ],
)
def test_sizes_have_the_published_number_of_parameters(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = new_model(SIZES[name])
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("dit-l-2", "dit-l-2-256"),
        ("DiT-XL/2", "dit-xl-2-256"),
        ("DiT-XL/2-512", "dit-xl-2-512"),
        ("uvit-h-2", "uvit-h-2-256"),
        ("uvit-mini-cifar10", "uvit-mini-cifar10"),
    ],
)
def test_resolve_name_finds_the_size_that_is_meant(name: str, resolved: str) -> None:
    assert resolve_name(name) == resolved


def test_resolve_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_name("dit-xxl-2-256")
    assert str(caught.value) == "there is no model called 'dit-xxl-2-256'; did you mean 'dit-xl-2-256'?"


def test_resolve_name_lists_all_when_none_is_near() -> None:
    with pytest.raises(ConfigError, match="there is no model called '§'; known are dit-mini-cifar10, "):
        resolve_name("§")


def test_sizes_know_their_training_conventions() -> None:
    huge, large, middle = (model_config(f"uvit-{name}") for name in ("h-2-256", "l-2-256", "m-4-64"))
    assert (huge.beta_schedule, huge.first_timestep) == ("scaled_linear", 1)
    assert (large.beta_schedule, large.first_timestep) == ("linear", 0)
    assert huge.null_class == 1000
    assert middle.null_class is None


def test_build_model_varies_with_image_timestep_label_and_every_branch() -> None:
    for name in ("dit-mini-cifar10", "uvit-mini-cifar10"):
        model = build_model(name)
        x, t, y = torch.randn(1, 3, 32, 32), torch.tensor([500]), torch.tensor([3])
        full = model(x, t, y)
        assert 0.3 < full.std() < 3
        changes = [model(x, t + 100, y), model(x, t, y + 1), model(-x, t, y)]
        for branch, module in model.named_modules():
            if branch.endswith((".attn", ".mlp")) and "embedder" not in branch:
                hook = module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
                changes.append(model(x, t, y))
                hook.remove()
        assert len(changes) == 3 + 2 * model.config.num_blocks
        assert all((changed - full).abs().max() > 1e-3 for changed in changes)


def test_build_model_is_frozen_and_repeats_with_its_seed() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_model("dit-s-8", seed=seed, dtype=torch.bfloat16) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(first, DiT)
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())
    name = "blocks.11.mlp.fc2.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert first.pos_embed.dtype == torch.bfloat16


def test_new_model_refuses_a_config_of_no_family() -> None:
    config = ModelConfig(
        in_channels=3, image_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=10
    )
    with pytest.raises(ConfigError, match="must be a DiTConfig or a UViTConfig, got ModelConfig"):
        new_model(config)
