from __future__ import annotations

import torch
import torch.nn.functional as F

from l2c.models import DiT, DiTConfig


def inputs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(4, 3, 8, 8, generator=generator)
    return x, torch.tensor([0, 250, 500, 999]), torch.tensor([0, 3, 9, 10])


def test_dit_matches_the_equations_written_out(tiny_dit: DiT, generator: torch.Generator) -> None:
    x, t, y = inputs(generator)
    weights = tiny_dit.state_dict()

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(value: torch.Tensor) -> torch.Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    half = torch.arange(128) / 128
    angles = t[:, None] * 10_000**-half
    c = linear(
        "t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1)))
    )
    c = F.silu(c + weights["y_embedder.embedding_table.weight"][y])
    patches = x.reshape(4, 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(4, 16, 12)
    h = patches @ weights["x_embedder.proj.weight"].reshape(32, 12).T + weights["x_embedder.proj.bias"]
    h = h + weights["pos_embed"]
    for n in range(3):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            linear(f"blocks.{n}.adaLN_modulation.1", c)[:, None].chunk(6, dim=-1)
        )  # fmt: skip
        qkv = linear(f"blocks.{n}.attn.qkv", norm(h) * (1 + scale_a) + shift_a)
        q, k, v = (part.reshape(4, 16, 2, 16).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        attention = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
        h = h + gate_a * linear(f"blocks.{n}.attn.proj", attention.transpose(1, 2).reshape(4, 16, 32))
        inner = F.gelu(linear(f"blocks.{n}.mlp.fc1", norm(h) * (1 + scale_m) + shift_m), approximate="tanh")
        h = h + gate_m * linear(f"blocks.{n}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, dim=-1)
    out = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    expected = out.reshape(4, 4, 4, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(4, 3, 8, 8)
    torch.testing.assert_close(tiny_dit(x, t, y), expected, rtol=1e-4, atol=1e-5)


def test_dit_branch_takes_in_norm_and_modulation_and_leaves_out_its_gate(
    tiny_dit: DiT, generator: torch.Generator
) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []
    block = tiny_dit.blocks[1]
    block.attn.register_forward_hook(lambda _module, args, output: seen.append((*args, output)))
    stream: list[torch.Tensor] = []
    block.mlp.register_forward_pre_hook(lambda _module, args: stream.append(args[0]))
    x, t, y = inputs(generator)
    tiny_dit(x, t, y)
    residual, _, _, output = seen[0]
    gate = block.modulation(tiny_dit.condition(t, y)).chunk(6, dim=-1)[2]
    assert torch.equal(stream[0], torch.addcmul(residual, gate, output))


def test_dit_modulation_can_be_computed_ahead(tiny_dit: DiT, generator: torch.Generator) -> None:
    x, t, y = inputs(generator)
    c = tiny_dit.condition(t, y)
    modulations = [block.modulation(c) for block in tiny_dit.blocks]
    h = tiny_dit.embed(x)
    for block, modulation in zip(tiny_dit.blocks, modulations, strict=True):
        h = block.add_branches(h, modulation)
    assert torch.equal(tiny_dit.project(h, c), tiny_dit(x, t, y))


def test_dit_new_model_has_zero_gates_and_zero_output(generator: torch.Generator) -> None:
    model = DiT(
        DiTConfig(
            in_channels=4,
            image_size=8,
            patch_size=2,
            hidden_size=32,
            depth=2,
            num_heads=2,
            num_classes=10,
            learn_sigma=True,
        )
    )
    out = model(torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([0, 999]), torch.tensor([0, 10]))
    assert torch.equal(out, torch.zeros(2, 8, 8, 8))
    c = model.condition(torch.tensor([5]), torch.tensor([1]))
    assert not model.blocks[0].modulation(c).any()


def test_dit_trains_everything_but_the_positions(tiny_dit: DiT) -> None:
    assert "pos_embed" in tiny_dit.state_dict()
    assert "pos_embed" not in dict(tiny_dit.named_parameters())


def test_dit_in_bfloat16_takes_float32_images(tiny_dit: DiT, generator: torch.Generator) -> None:
    x, t, y = inputs(generator)
    full = tiny_dit(x, t, y)
    half = tiny_dit.bfloat16()(x, t, y)
    assert half.dtype == torch.bfloat16
    assert (half - full).square().mean() < 1e-3 * full.square().mean()


def test_dit_residual_stream_is_contiguous(tiny_dit: DiT) -> None:
    assert tiny_dit.embed(torch.zeros(2, 3, 8, 8)).is_contiguous()
