from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from l2c.errors import CheckpointError, ConfigError, OutputError
from l2c.models import EMBEDDED_MODELS, DiT, UViT, UViTConfig, load_model, loading, random_model, save_model

Tensors = dict[str, torch.Tensor]


def assert_same(left: DiT | UViT, right: DiT | UViT) -> None:
    assert left.config == right.config
    for name, tensor in right.state_dict().items():
        assert torch.equal(left.state_dict()[name], tensor), name


def refused(source: str | Path, error: type[Exception] = CheckpointError) -> str:
    """The one-sentence message with which loading `source` fails, paths shortened to names."""
    with pytest.raises(error) as caught:
        load_model(source)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{Path(source).parent}/", "")


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_load_model_gives_a_frozen_embedded_model(name: str) -> None:
    before = torch.random.get_rng_state()
    model = load_model(name)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    assert not any(tensor.requires_grad or tensor.is_meta for tensor in model.state_dict().values())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    config = model.config
    assert (config.hidden_size, config.num_heads, config.num_blocks) == (192, 3, 12 + (name[0] == "u"))
    assert (config.image_size, config.num_classes, config.null_class) == (32, 10, 10)


def test_load_model_casts_to_the_dtype_asked_for() -> None:
    model = load_model("dit-mini-cifar10", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["tiny_dit", "tiny_uvit"])
def test_save_model_then_load_model_is_the_identity(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    save_model(model, tmp_path / "model.safetensors", dtype=torch.float32)
    assert_same(load_model(tmp_path / "model.safetensors"), model)
    first = (tmp_path / "model.safetensors").read_bytes()
    save_model(model, tmp_path / "model.safetensors", dtype=torch.float32)
    assert (tmp_path / "model.safetensors").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_save_model_keeps_conventions_that_no_tensor_shows(tmp_path: Path) -> None:
    config = UViTConfig(
        in_channels=3,
        image_size=8,
        patch_size=2,
        hidden_size=32,
        depth=2,
        num_heads=8,
        num_classes=10,
        has_null_class=False,
        beta_schedule="scaled_linear",
        first_timestep=1,
        prediction_type="sample",
        qkv_bias=True,
        time_embed_mlp=True,
        final_conv=False,
    )
    save_model(random_model(config), tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").config == config


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"ema": weights, "model": {}, "args": argparse.Namespace(lr=1e-4)},
        lambda weights: {"model": weights, "step": 3},
        lambda weights: {
            "state_dict": {f"module._orig_mod.{name}": value for name, value in weights.items()}
        },
    ],
    ids=["bare", "ema", "model", "state_dict"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_load_model_takes_public_wrappers_off(
    wrap: Callable[[Tensors], object], suffix: str, tiny_dit: DiT, tmp_path: Path
) -> None:
    torch.save(wrap(tiny_dit.state_dict()), tmp_path / f"model{suffix}")
    assert_same(load_model(tmp_path / f"model{suffix}", num_heads=2), tiny_dit)


def test_load_model_prefers_averaged_weights(tiny_dit: DiT, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tiny_dit.state_dict().items()}
    torch.save({"model": zeros, "ema": tiny_dit.state_dict()}, tmp_path / "model.pt")
    assert_same(load_model(tmp_path / "model.pt", num_heads=2), tiny_dit)


@pytest.mark.parametrize(
    ("hidden_size", "heads"), [(128, 2), (192, 3), (384, 6), (32, 1)], ids=lambda value: str(value)
)
def test_load_model_infers_heads_from_the_width(hidden_size: int, heads: int, tmp_path: Path) -> None:
    config = UViTConfig(
        in_channels=3,
        image_size=4,
        patch_size=2,
        hidden_size=hidden_size,
        depth=2,
        num_heads=heads,
        num_classes=10,
    )
    save_file(random_model(config).state_dict(), tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").config.num_heads == heads
    assert load_model(tmp_path / "model.safetensors", num_heads=16).config.num_heads == 16
    with pytest.raises(ConfigError, match="must be a multiple of num_heads, got 5"):
        load_model(tmp_path / "model.safetensors", num_heads=5)


@pytest.mark.parametrize(
    ("in_channels", "rows", "expected"),
    [(4, 1001, ("scaled_linear", 1, 1000)), (3, 11, ("linear", 0, 10)), (3, 1000, ("linear", 0, None))],
)
def test_load_model_knows_what_unnamed_uvits_were_trained_with(
    in_channels: int, rows: int, expected: tuple[str, int, int | None], tmp_path: Path
) -> None:
    config = UViTConfig(
        in_channels=in_channels,
        image_size=8,
        patch_size=2,
        hidden_size=32,
        depth=2,
        num_heads=1,
        num_classes=rows - 1,
    )
    torch.save(random_model(config).state_dict(), tmp_path / "model.pt")
    found = load_model(tmp_path / "model.pt").config
    assert (found.beta_schedule, found.first_timestep, found.null_class) == expected


# Failures: one sentence each, saying what is wrong and what to do.


def test_load_model_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    assert refused(path) == "there is no file of weights absent.safetensors; check the path"
    assert refused(str(path)) == "there is no file of weights absent.safetensors; check the path"


def test_load_model_finds_the_home_folder(
    tiny_dit: DiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_model(tiny_dit, tmp_path / "model.safetensors", dtype=torch.float32)
    assert_same(load_model("~/model.safetensors"), tiny_dit)


def test_load_model_folder_without_a_model(tmp_path: Path) -> None:
    message = refused(tmp_path / ".")
    assert "there is no configuration of a model" in message
    assert "config.json; give the folder of a DiTTransformer2DModel" in message


def test_load_model_folder_of_another_model(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(
        json.dumps({"_class_name": "FluxTransformer2DModel"})
    )
    message = refused(tmp_path / "transformer")
    assert message == (
        "transformer holds a FluxTransformer2DModel; only a DiTTransformer2DModel can be converted"
    )


def test_load_model_folder_without_weights_or_sizes(tmp_path: Path, tiny_dit: DiT) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    config = folder / "config.json"
    config.write_text('{"_class_name": "DiTTransformer2DModel"}')
    assert "has a config.json but no weights; expected diffusion_pytorch_model.safetensors" in refused(folder)
    torch.save(tiny_dit.state_dict(), folder / "diffusion_pytorch_model.bin")
    assert "the configuration of transformer: num_attention_heads is missing; download it again" in refused(
        folder
    )
    config.write_text("{")
    assert "config.json: EOF while parsing an object" in refused(folder)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 6, 3000, -100])
def test_load_model_truncated_file(suffix: str, kept: int, tiny_dit: DiT, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(tiny_dit.state_dict(), path)
    else:
        save_file(tiny_dit.state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(path)
    assert message.startswith(f"model{suffix} is ")
    assert ("empty" if kept == 0 else "truncated") in message
    assert "download or copy it again" in message


def test_load_model_truncated_file_of_the_old_format(tiny_dit: DiT, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(tiny_dit.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same(load_model(path, num_heads=2), tiny_dit)
    path.write_bytes(path.read_bytes()[:-1000])
    assert refused(path) == "model.pt is truncated or damaged; download or copy it again"


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\x80\x04garbage", b"\xff" * 64])
def test_load_model_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_bytes(content)
    (tmp_path / "notes.safetensors").write_bytes(content)
    (tmp_path / "notes.txt").write_bytes(content)
    assert "is not a PyTorch checkpoint; expected a state_dict saved with torch.save" in refused(
        tmp_path / "notes.pt"
    )
    assert "is truncated or not a safetensors file" in refused(tmp_path / "notes.safetensors")
    assert "has the suffix '.txt'; weights must end in one of .safetensors, .pt" in refused(
        tmp_path / "notes.txt"
    )


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}], ids=["tensor", "list", "dict"])
def test_load_model_file_without_named_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt")
    kind = type(content).__name__
    assert message.startswith(
        f"model.pt holds a {kind} without named tensors; expected a state_dict, bare or"
    )


def test_load_model_unknown_layout(tmp_path: Path) -> None:
    save_file({"unet.conv_in.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert refused(tmp_path / "model.safetensors") == (
        "model.safetensors has neither the DiT layout (x_embedder.proj.weight, blocks.0...) nor the U-ViT "
        "layout (patch_embed.proj.weight, in_blocks.0...); it holds unet.conv_in.weight"
    )


def test_load_model_missing_and_unexpected_keys(tiny_dit: DiT, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = tiny_dit.state_dict()
    save_file({name: tensor for name, tensor in whole.items() if not name.startswith("blocks.1")}, path)
    assert refused(path) == (
        "model.safetensors looks like a DiT of width 32 with 3 blocks but lacks "
        "blocks.1.adaLN_modulation.1.bias, blocks.1.adaLN_modulation.1.weight, blocks.1.attn.proj.bias and "
        "7 more; download or save it again"
    )
    save_file({**whole, "blocks.0.cross.weight": torch.zeros(2)}, path)
    assert "but also holds blocks.0.cross.weight; that is not supported" in refused(path)
    save_file({name: tensor for name, tensor in whole.items() if name != "pos_embed"}, path)
    assert refused(path) == (
        "model.safetensors lacks pos_embed; the file is incomplete, download or save it again"
    )


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.1.attn.proj.weight", (32, 31), "has shape (32, 31); expected (32, 32)"),
        ("pos_embed", (1, 15, 32), "pos_embed covers 15 patches; expected those of a square image"),
        ("pos_embed", (16, 32), "pos_embed has shape (16, 32); expected 3 dimensions"),
        ("final_layer.linear.weight", (13, 32), "has 13 rows; expected 12 for the prediction alone or 24"),
    ],
)
def test_load_model_contradicting_shapes(
    name: str, shape: tuple[int, ...], expected: str, tiny_dit: DiT, tmp_path: Path
) -> None:
    save_file({**tiny_dit.state_dict(), name: torch.zeros(shape)}, tmp_path / "model.safetensors")
    assert expected in refused(tmp_path / "model.safetensors")


def test_load_model_unconditional_uvit(tiny_uvit: UViT, tmp_path: Path) -> None:
    weights = tiny_uvit.state_dict()
    del weights["label_emb.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    assert "is a U-ViT without label_emb.weight; only class-conditional" in refused(
        tmp_path / "model.safetensors"
    )


class _CreatesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
def test_load_model_never_runs_code_from_a_pickle(kind: str, tiny_dit: DiT, tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "model.pt"
    content = {**tiny_dit.state_dict(), "trap": _CreatesAFile(trap)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(_CreatesAFile(trap)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = refused(path)
    assert not trap.exists()
    if kind == "bare":
        assert message.startswith("model.pt is not a PyTorch checkpoint")
    else:
        assert message == (
            "model.pt holds Python objects (posix.mkdir) that would run code when loaded, so it was not "
            "loaded; get a safetensors file, or one with a plain state_dict"
        )
    pickle.loads(pickle.dumps(_CreatesAFile(trap)))
    assert trap.exists()  # the trap does work


def test_load_model_router_file(tmp_path: Path) -> None:
    flat = {f"{row}.prob": torch.zeros(56) for row in range(20)}
    for content in (flat, {"routers": flat, "args": argparse.Namespace()}):
        torch.save(content, tmp_path / "router.pt")
        assert refused(tmp_path / "router.pt").startswith(
            "router.pt holds routers (scores of layers), not a model; pass it where a schedule is expected"
        )


def test_load_model_published_router_files(shared: Path) -> None:
    for name in ("DDIM50_router.pt", "dpm50_router.pth"):
        path = shared / "routers" / name
        if not path.exists():
            pytest.skip(f"{path} not found")
        assert "holds routers (scores of layers), not a model" in refused(path)


def test_load_model_unreadable_metadata(tiny_dit: DiT, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tiny_dit.state_dict(), path, metadata={"l2c.model": "three"})
    assert refused(path).startswith("model.safetensors has unreadable metadata")
    save_file(tiny_dit.state_dict(), path, metadata={"l2c.model": '{"num_heads": "3"}'})
    assert refused(path) == (
        "model.safetensors has unreadable metadata: num_heads must be a whole number, got '3'; save the model again"
    )


def test_load_model_schedule_file(tmp_path: Path) -> None:
    path = tmp_path / "schedule.safetensors"
    save_file({"compute": torch.ones(2, 3)}, path, metadata={"l2c.cache-schedule": "{}"})
    assert refused(path) == (
        "schedule.safetensors is a file of kind l2c.cache-schedule, not a model; give the model's weights here"
    )


def test_load_model_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("dit-mini-cifar", ConfigError) == (
        "there is no model called 'dit-mini-cifar'; did you mean 'dit-mini-cifar10'?"
    )
    assert refused("DiT-L/2") == (
        "no public download of dit-l-2-256 is known; give its weights as a path to a .pt or .safetensors file"
    )


def test_load_model_fetches_a_published_pipeline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_dit: DiT
) -> None:
    pytest.importorskip("diffusers")
    from l2c.models import to_diffusers

    to_diffusers(tiny_dit).save_pretrained(tmp_path / "transformer")
    asked: list[tuple[str, list[str]]] = []

    def fake_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
    assert_same(load_model("DiT-XL/2"), tiny_dit)
    assert_same(load_model("dit-xl-2-512"), tiny_dit)
    assert asked == [
        ("facebook/DiT-XL-2-256", ["transformer/*"]),
        ("facebook/DiT-XL-2-512", ["transformer/*"]),
    ]


def test_load_model_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repository: str, *, allow_patterns: list[str]) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert refused("dit-xl-2-256") == (
        "facebook/DiT-XL-2-256 could not be downloaded (no route to host); check the network, or "
        "give the path of a local copy"
    )


def test_save_model_refuses_other_suffixes_and_impossible_folders(tiny_dit: DiT, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models are saved as \.safetensors files, got model\.pt"):
        save_model(tiny_dit, "model.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_model(tiny_dit, tmp_path / "file" / "model.safetensors")


def test_embedded_files_are_the_published_ones(shared: Path) -> None:
    for name in EMBEDDED_MODELS:
        path = shared / "models" / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"{path} not found")
        ours, theirs = load_file(loading._embedded_path(name)), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
