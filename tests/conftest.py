from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType

import pytest
import torch

from l2c.models import DiT, DiTConfig, UViT, UViTConfig, load_model, random_model

torch.set_num_threads(1)  # the models are tiny: more threads wait for each other, above all on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ["L2C_SOLUTIONS"] = "off"  # nothing is left in the user's folder for caches, or taken from there

SHARED = Path(__file__).resolve().parents[2] / "shared"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of data too large for the repository, beside it; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} not found")
    return SHARED


@pytest.fixture(scope="session")
def load_benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a program of the folder `benchmarks`, which is on the path then as where one of them is started."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[BaseContext]:
    """Starts processes that have everything imported, so that each is there at once; there is one for all tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "l2c.cli.main",
            "l2c.cli.learning",
            "l2c.sets",
            "l2c.compare.runner",
            "accelerate",
            "diffusers",
        ]
    )
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's `&` ignores it for all below
    yield context
    signal.signal(signal.SIGINT, before)


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


@pytest.fixture(scope="session")
def scenes_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of assets whose `scenes-sd3` is a small pipeline of random weights, with the vocabulary of scenes."""
    pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    sys.path.insert(0, str(EXAMPLES))
    try:
        from scenes_recipe.autoencoder import new_autoencoder
        from scenes_recipe.export import write_vocabulary
        from scenes_recipe.networks import TEXT_WIDTH, new_text_encoder
        from scenes_recipe.tokenizer import new_tokenizer
    finally:
        sys.path.remove(str(EXAMPLES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=4,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=4,
        )
        for weight in transformer.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=new_autoencoder(),
            text_encoder=new_text_encoder(),
            tokenizer=new_tokenizer(),
            text_encoder_2=new_text_encoder(),
            tokenizer_2=new_tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    pipe.vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    assets = tmp_path_factory.mktemp("assets")
    pipe.to(torch.float16).save_pretrained(assets / "scenes-sd3")
    for name in ("tokenizer", "tokenizer_2"):
        write_vocabulary(assets / "scenes-sd3" / name, new_tokenizer())
    return assets


@pytest.fixture
def scenes_pipeline(scenes_assets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets `l2c:scenes-sd3` be that small pipeline; its folder."""
    monkeypatch.setattr("l2c.hosts.pipeline.loading.ASSETS", scenes_assets)
    return scenes_assets / "scenes-sd3"


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


@pytest.fixture
def favoured(monkeypatch):
    """Lets searches prefer masks with passes of guidance apart."""
    from l2c.learning.closed_loop import ClosedLoop

    def favour(name):
        error = getattr(ClosedLoop, name)

        def favouring(loop, student, **how):
            apart = student.compute.shape[1] > len(loop.host.table)
            return error(loop, student, **how) * (0.01 if apart else 1.0)

        monkeypatch.setattr(ClosedLoop, name, favouring)

    favour("trial_error")
    favour("error_of_more")
