from __future__ import annotations

from pathlib import Path

import pytest
import torch

from l2c.errors import CheckpointError, ConfigError
from l2c.models import (
    DiT,
    DiTConfig,
    UViT,
    from_diffusers,
    load_model,
    match_public_embeddings,
    random_model,
    to_diffusers,
)

diffusers = pytest.importorskip("diffusers")


def assert_same(left: DiT, right: DiT) -> None:
    assert left.config == right.config
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, tensor in left.state_dict().items():
        assert torch.equal(tensor, right.state_dict()[name]), name


def noisy(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(3, 3, 32, 32, generator=generator)
    return x, torch.tensor([0.0, 500.5, 999.0]), torch.tensor([0, 7, 10])


def test_to_diffusers_predicts_the_same(dit: DiT, generator: torch.Generator) -> None:
    x, t, y = noisy(generator)
    difference = to_diffusers(dit)(x, t, y).sample - dit(x, t, y)
    assert difference.abs().max() < 1e-4


def test_to_diffusers_and_back_is_bit_equal(dit: DiT) -> None:
    assert_same(from_diffusers(to_diffusers(dit)), dit)


def test_to_diffusers_learned_variances_and_dtype_survive_the_round_trip() -> None:
    config = DiTConfig(
        in_channels=4,
        image_size=8,
        patch_size=2,
        hidden_size=32,
        depth=2,
        num_heads=4,
        num_classes=10,
        learn_sigma=True,
    )
    model = random_model(config, dtype=torch.bfloat16)
    assert isinstance(model, DiT)
    back = from_diffusers(to_diffusers(model))
    assert_same(back, model)
    assert back.pos_embed.dtype == torch.bfloat16


def test_conversion_shares_no_memory(tiny_dit: DiT) -> None:
    transformer = to_diffusers(tiny_dit)
    back = from_diffusers(transformer)
    before = {name: tensor.clone() for name, tensor in tiny_dit.state_dict().items()}
    with torch.no_grad():
        for tensor in transformer.state_dict().values():
            tensor.fill_(7)
    for model in (tiny_dit, back):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_load_model_reads_a_saved_diffusers_folder_bit_equal(dit: DiT, tmp_path: Path) -> None:
    to_diffusers(dit).save_pretrained(tmp_path / "transformer")
    for folder in (tmp_path / "transformer", tmp_path):
        loaded = load_model(folder)
        assert isinstance(loaded, DiT)
        assert_same(loaded, dit)


def test_load_model_reads_a_sharded_folder(tiny_dit: DiT, tmp_path: Path) -> None:
    to_diffusers(tiny_dit).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path)
    assert isinstance(loaded, DiT)
    assert_same(loaded, tiny_dit)


def test_load_model_computes_positions_that_a_folder_does_not_hold(tiny_dit: DiT, tmp_path: Path) -> None:
    transformer = to_diffusers(tiny_dit)
    transformer.pos_embed.register_buffer("pos_embed", tiny_dit.pos_embed, persistent=False)
    transformer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, DiT)
    assert_same(loaded, tiny_dit)


@pytest.mark.filterwarnings("ignore")
def test_match_public_embeddings_repairs_a_pretrained_folder(
    dit: DiT, tmp_path: Path, generator: torch.Generator
) -> None:
    to_diffusers(dit).save_pretrained(tmp_path)
    plain = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path)
    x, t, y = noisy(generator)
    expected = dit(x, t, y)
    with torch.no_grad():
        assert (plain(x, t, y).sample - expected).abs().max() > 1e-2
        match_public_embeddings(plain)
        assert (plain(x, t, y).sample - expected).abs().max() < 1e-3
        match_public_embeddings(plain, positions=dit.pos_embed)
        assert (plain(x, t, y).sample - expected).abs().max() < 1e-4


def test_to_diffusers_refuses_what_diffusers_cannot_express(tiny_uvit: UViT) -> None:
    with pytest.raises(ConfigError, match="only a DiT can become a DiTTransformer2DModel, got UViT"):
        to_diffusers(tiny_uvit)  # type: ignore[arg-type]
    config = DiTConfig(
        in_channels=3,
        image_size=8,
        patch_size=2,
        hidden_size=32,
        depth=1,
        num_heads=2,
        num_classes=10,
        mlp_ratio=2.0,
    )
    with pytest.raises(ConfigError, match=r"has an MLP ratio of 4 and a null class, got mlp_ratio 2\.0"):
        to_diffusers(DiT(config))


def test_from_diffusers_refuses_other_models_and_disagreeing_copies(tiny_dit: DiT) -> None:
    with pytest.raises(ConfigError, match="expected a DiTTransformer2DModel, got DiT"):
        from_diffusers(tiny_dit)  # type: ignore[arg-type]
    transformer = to_diffusers(tiny_dit)
    with torch.no_grad():
        transformer.transformer_blocks[2].norm1.emb.timestep_embedder.linear_1.bias += 1
    with pytest.raises(CheckpointError, match=r"blocks\.2.*differs from the same embedder in another block"):
        from_diffusers(transformer)
