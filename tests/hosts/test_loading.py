"""`load_target`: one place decides what a name is."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import l2c
from l2c.errors import CheckpointError, ConfigError
from l2c.hosts.loading import is_pipeline, layers_of
from l2c.models import save_model
from l2c.testing import tiny_dit, tiny_pipeline


def test_names_and_files_are_models(tmp_path):
    save_model(tiny_dit(), tmp_path / "tiny.safetensors")
    assert len(layers_of(l2c.load_target(tmp_path / "tiny.safetensors"))["model"]) == 6
    for name in ("dit-xl-2-256", "DiT-XL/2", "nowhere.pt", "no/where.safetensors", "nothing"):
        assert not is_pipeline(name), name


def test_folders_with_an_index_and_repositories_are_pipelines(tmp_path):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    pipe = l2c.load_target(tmp_path / "pipe", quiet=True)
    assert callable(pipe)
    assert list(layers_of(pipe)) == ["transformer"]
    assert not is_pipeline(tmp_path / "pipe" / "transformer")
    assert is_pipeline("someone/pixart")


def test_what_is_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        l2c.load_target("./nothing")
    with pytest.raises(CheckpointError, match="is a folder without a model"):
        l2c.load_target(tmp_path)
    with pytest.raises(ConfigError, match="there is no model called 'nothing'"):
        l2c.load_target("nothing")
    with pytest.raises(ConfigError, match="a LoRA is loaded into a diffusers pipeline"):
        l2c.load_target("dit-mini-cifar10", lora="style")
    with pytest.raises(ConfigError, match="a scheduler is loaded into a diffusers pipeline"):
        l2c.load_target("dit-mini-cifar10", scheduler="DDIMScheduler")


def test_a_pipeline_has_the_scheduler_that_is_named(tmp_path):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    before = l2c.load_target(tmp_path / "pipe", quiet=True).scheduler
    after = l2c.load_target(tmp_path / "pipe", scheduler="UniPCMultistepScheduler", quiet=True).scheduler
    assert type(after).__name__ == "UniPCMultistepScheduler"
    assert after.config.beta_end == before.config.beta_end
    for name in ("Nothing", "NothingScheduler", "DiTPipeline"):
        with pytest.raises(ConfigError, match=f"has no scheduler '{name}'; give the name of a class"):
            l2c.load_target(tmp_path / "pipe", scheduler=name)


def test_weights_are_quantised_where_torchao_is_installed(tmp_path):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="unknown quantization 'fp4'; there is int8"):
        l2c.load_target(tmp_path / "pipe", quantization="fp4")
    if find_spec("torchao") is None:
        with pytest.raises(ConfigError, match="not installed; pip install torchao"):
            l2c.load_target(tmp_path / "pipe", quantization="int8")
        pytest.skip("torchao is not installed")
    pipe = l2c.load_target(tmp_path / "pipe", quantization="int8", quiet=True)
    assert type(pipe.transformer.proj_out_2.weight).__name__ == "Int8Tensor"
    schedule = l2c.methods.interval(pipe, every=2, class_labels=[1], num_inference_steps=4)
    with l2c.enable_cache(pipe, schedule):
        pipe(class_labels=[1], num_inference_steps=4)
