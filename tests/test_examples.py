from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from l2c.models import load_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def pretrain() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("pretrain_cifar10", EXAMPLES / "pretrain_cifar10.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of noise in two classes."""
    for label in ("ant", "bee"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(2):
            Image.effect_noise((32, 32), 60 + index).save(tmp_path / "images" / label / f"{index}.png")
    return tmp_path / "images"


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--out", str(out), "--batch-size", "2", "--device", "cpu", *more]


@pytest.mark.parametrize("family", ["dit", "uvit"])
def test_pretrain_writes_a_model_that_loads(
    family: str, pretrain: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    assert pretrain.main(arguments(folder, out, "--model", family, "--steps", "2")) == 0
    assert capsys.readouterr().out == f"{out}\n"
    embedded = load_model(f"{family}-mini-cifar10")
    assert load_model(out).config == embedded.config
    assert not list(tmp_path.glob(".*"))


def test_pretrain_resumed_run_ends_where_an_unbroken_one_does(
    pretrain: ModuleType, folder: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert pretrain.main(arguments(folder, whole, "--steps", "3")) == 0
    assert pretrain.main(arguments(folder, broken, "--steps", "2")) == 0
    assert pretrain.main(arguments(folder, broken, "--steps", "3", "--resume")) == 0
    assert whole.read_bytes() == broken.read_bytes()


def test_pretrain_says_in_one_sentence_what_is_wrong(
    pretrain: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    assert pretrain.main(arguments(tmp_path / "absent", out)) == 1
    assert "absent does not exist; give a folder of images" in capsys.readouterr().err
    assert pretrain.main(arguments(folder, out, "--resume")) == 1
    assert "model.state.pt cannot be resumed from (FileNotFoundError)" in capsys.readouterr().err
    torch.save({"step": 1}, tmp_path / "model.state.pt")
    assert pretrain.main(arguments(folder, out, "--resume")) == 1
    assert "cannot be resumed from (KeyError); start anew, without --resume" in capsys.readouterr().err
    assert pretrain.main(arguments(folder, out, "--steps", "1")) == 0
    assert pretrain.main(arguments(folder, out, "--resume", "--seed", "5")) == 2
    assert "is of a run with other options: seed 0 then, 5 now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pretrain.main(arguments(folder, out, "--steps", "0"))
    assert "--steps must be positive, got 0" in capsys.readouterr().err


def test_pretrain_weighting_is_min_snr_over_snr(pretrain: ModuleType) -> None:
    signal = torch.tensor([0.5, 0.99])  # SNR 1 and 99
    prediction, noise = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    loss = pretrain.weighted_loss(prediction, noise, signal)
    torch.testing.assert_close(loss, torch.tensor((1 + 5 / 99) / 2))


def test_pretrain_embedded_model_has_the_loss_on_its_card(pretrain: ModuleType, shared: Path) -> None:
    path = shared / "data" / "cifar10-test.parquet"
    if not path.exists():
        pytest.skip(f"{path} not found")
    pytest.importorskip("pyarrow")
    model = load_model("dit-mini-cifar10")
    data = pretrain.load_images(path, 32)
    signal = (1 - model.config.betas()).cumprod(0).float()
    images, labels, timesteps, noise = pretrain.draw_batch(data, model.config, seed=0, step=0, size=64)
    level = signal[timesteps][:, None, None, None]
    prediction = model(level.sqrt() * images + (1 - level).sqrt() * noise, timesteps, labels)
    assert 0.02 < (prediction - noise).square().mean() < 0.045  # the card: 0.0324, unweighted
    assert 0.01 < pretrain.weighted_loss(prediction, noise, signal[timesteps]) < 0.02
