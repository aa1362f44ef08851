from __future__ import annotations

import torch
import torch.nn.functional as F

from l2c.models import UViT, UViTConfig, random_model


def inputs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(4, 3, 8, 8, generator=generator)
    return x, torch.tensor([0, 250, 500, 999]), torch.tensor([0, 3, 9, 10])


def test_uvit_matches_the_equations_written_out(tiny_uvit: UViT, generator: torch.Generator) -> None:
    x, t, y = inputs(generator)
    weights = tiny_uvit.state_dict()

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        centred = value - value.mean(-1, keepdim=True)
        centred = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def block(name: str, h: torch.Tensor) -> torch.Tensor:
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", h))
        q, k, v = (part.reshape(4, 18, 2, 16).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        attention = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
        h = h + linear(f"{name}.attn.proj", attention.transpose(1, 2).reshape(4, 18, 32))
        return h + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", h))))

    angles = t[:, None] * 10_000 ** -(torch.arange(16) / 16)
    time = torch.cat([angles.cos(), angles.sin()], 1)
    patches = x.reshape(4, 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(4, 16, 12)
    patches = (
        patches @ weights["patch_embed.proj.weight"].reshape(32, 12).T + weights["patch_embed.proj.bias"]
    )
    h = torch.cat([weights["label_emb.weight"][y][:, None], time[:, None], patches], 1) + weights["pos_embed"]
    skip = block("in_blocks.0", h)
    h = block("mid_block", skip)
    h = block("out_blocks.0", linear("out_blocks.0.skip_linear", torch.cat([h, skip], -1)))
    out = linear("decoder_pred", norm("norm", h))[:, 2:]
    image = out.reshape(4, 4, 4, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(4, 3, 8, 8)
    expected = F.conv2d(image, weights["final_layer.weight"], weights["final_layer.bias"], padding=1)
    torch.testing.assert_close(tiny_uvit(x, t, y), expected, rtol=1e-4, atol=1e-5)


def test_uvit_branch_runs_its_norm_inside(tiny_uvit: UViT, generator: torch.Generator) -> None:
    calls: list[str] = []
    block = tiny_uvit.mid_block
    block.norm1.register_forward_hook(lambda *_: calls.append("norm1"))
    block.attn.forward = lambda x, norm: torch.zeros_like(x)  # type: ignore[method-assign,assignment]
    tiny_uvit(*inputs(generator))
    assert calls == []


def test_uvit_long_skips_join_mirror_images(generator: torch.Generator) -> None:
    config = UViTConfig(
        in_channels=3, image_size=8, patch_size=2, hidden_size=32, depth=4, num_heads=2, num_classes=10
    )
    model = random_model(config)
    assert isinstance(model, UViT)
    outputs: list[torch.Tensor] = []
    skips: list[torch.Tensor] = []
    for block in model.in_blocks:
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    for block in model.out_blocks:
        block.register_forward_pre_hook(lambda _module, args: skips.append(args[1]))
    model(*inputs(generator))
    assert [id(skip) for skip in skips] == [id(output) for output in reversed(outputs)]


def test_uvit_options_have_the_public_keys() -> None:
    config = UViTConfig(
        in_channels=4,
        image_size=8,
        patch_size=2,
        hidden_size=32,
        depth=2,
        num_heads=2,
        num_classes=10,
        qkv_bias=True,
        time_embed_mlp=True,
        final_conv=False,
    )
    keys = UViT(config).state_dict().keys()
    assert {"mid_block.attn.qkv.bias", "time_embed.0.weight", "time_embed.2.bias"} <= keys
    assert not any(key.startswith("final_layer") for key in keys)
