"""`load_target`: one place decides what a name is."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import pytest
import torch

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


def test_a_pipeline_is_loaded_quietly_and_in_a_format(tmp_path, monkeypatch):
    import diffusers

    logging = pytest.importorskip("transformers.utils.logging")
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    load, before, within = diffusers.DiffusionPipeline.from_pretrained, logging.get_verbosity(), []

    def from_pretrained(*given, **how):
        within.append((logging.get_verbosity(), logging.is_progress_bar_enabled()))
        return load(*given, **how)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipe = l2c.load_pipeline(tmp_path / "pipe", dtype=torch.bfloat16, quiet=True)
    assert pipe.transformer.dtype == torch.bfloat16
    assert not [one for one in told if "torch_dtype" in str(one.message)]
    assert within == [(logging.ERROR, False)]
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (before, True)


def test_what_is_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        l2c.load_target("./nothing")
    with pytest.raises(CheckpointError, match="there is no configuration of a model"):
        l2c.load_target(tmp_path)
    with pytest.raises(ConfigError, match="there is no model called 'nothing'"):
        l2c.load_target("nothing")
    with pytest.raises(ConfigError, match="a LoRA is for diffusers pipelines"):
        l2c.load_target("dit-mini-cifar10", lora="style")
    with pytest.raises(ConfigError, match="a scheduler is for diffusers pipelines"):
        l2c.load_target("dit-mini-cifar10", scheduler="DDIMScheduler")


def test_a_pipeline_has_the_scheduler_that_is_named(tmp_path):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    before = l2c.load_target(tmp_path / "pipe", quiet=True).scheduler
    after = l2c.load_target(tmp_path / "pipe", scheduler="UniPCMultistepScheduler", quiet=True).scheduler
    assert type(after).__name__ == "UniPCMultistepScheduler"
    assert after.config.beta_end == before.config.beta_end
    shifted = l2c.load_target(
        tmp_path / "pipe", scheduler="UniPCMultistepScheduler,flow_shift=3.0", quiet=True
    )
    assert shifted.scheduler.config.flow_shift == 3.0
    own = l2c.load_target(
        tmp_path / "pipe", scheduler="timestep_spacing=trailing, steps_offset=1", quiet=True
    )
    assert type(own.scheduler) is type(before)
    assert (own.scheduler.config.timestep_spacing, own.scheduler.config.steps_offset) == ("trailing", 1)
    for text, said in (
        (
            "UniPCMultistepScheduler,flow_shft=3",
            "unknown setting of UniPCMultistepScheduler 'flow_shft'; did you mean 'flow_shift'",
        ),
        ("UniPCMultistepScheduler,fast", "settings are NAME=VALUE such as flow_shift=3.0, got 'fast'"),
        ("beta_schedule=none", "DDIMScheduler refuses its settings: none"),
    ):
        with pytest.raises(ConfigError, match=said):
            l2c.load_target(tmp_path / "pipe", scheduler=text, quiet=True)
    for name in ("Nothing", "NothingScheduler", "DiTPipeline"):
        with pytest.raises(ConfigError, match=f"has no scheduler '{name}'; give the name of a class"):
            l2c.load_target(tmp_path / "pipe", scheduler=name)


def test_weights_are_quantised_where_torchao_is_installed(tmp_path):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="unknown quantization 'fp4'; .*choose one of int8, .*bnb-4bit"):
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


@pytest.mark.parametrize(("bits", "kind"), [("4", "Linear4bit"), ("8", "Linear8bitLt")])
def test_weights_are_loaded_in_few_bits_where_bitsandbytes_is_installed(tmp_path, bits, kind):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    if find_spec("bitsandbytes") is None:
        with pytest.raises(
            ConfigError, match=f"bnb-{bits}bit needs bitsandbytes, which is not installed; pip ins"
        ):
            l2c.load_target(tmp_path / "pipe", quantization=f"bnb-{bits}bit")
        pytest.skip("bitsandbytes is not installed")
    if not torch.cuda.is_available():
        with pytest.raises(CheckpointError, match="cannot load the pipeline .*: No GPU found"):
            l2c.load_target(tmp_path / "pipe", quantization=f"bnb-{bits}bit", quiet=True)
        pytest.skip("diffusers quantises with bitsandbytes on GPUs only")
    pipe = l2c.load_target(tmp_path / "pipe", quantization=f"bnb-{bits}bit", device="cuda", quiet=True)
    kinds = {type(module).__name__ for module in pipe.transformer.modules()}
    assert kind in kinds
    schedule = l2c.methods.interval(pipe, every=2, class_labels=[1], num_inference_steps=4)
    with l2c.enable_cache(pipe, schedule):
        pipe(class_labels=[1], num_inference_steps=4)


def test_a_device_map_is_that_of_diffusers_and_stands_instead_of_a_device(tmp_path):
    folder, call = tmp_path / "pipe", {"class_labels": [1], "num_inference_steps": 4}
    tiny_pipeline("dit").save_pretrained(folder)
    plain, mapped = (l2c.load_pipeline(folder, device_map=name, quiet=True) for name in (None, "cpu"))
    assert (plain.hf_device_map, mapped.hf_device_map) == (None, "cpu")
    settings = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=2)
    schedules = [l2c.learn(pipe, budget=0.6, settings=settings, **call) for pipe in (plain, mapped)]
    made = []
    for pipe in (plain, mapped):
        with l2c.enable_cache(pipe, schedules[0]):
            made.append(pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images)
    assert (made[0] == made[1]).all()
    assert torch.equal(schedules[0].compute, schedules[1].compute)
    for given, said in (
        (
            {"device_map": "cpu", "device": "cpu"},
            "device map cpu says where weights are, and so does the device cpu",
        ),
        ({"device_map": "balance"}, "unknown device map 'balance'; did you mean 'balanced'"),
    ):
        with pytest.raises(ConfigError, match=said):
            l2c.load_pipeline(folder, **given)
    with pytest.raises(ConfigError, match="a device map is for diffusers pipelines"):
        l2c.load_target("dit-mini-cifar10", device_map="cpu")


@pytest.mark.parametrize("name", ["cuda", "balanced"])
def test_a_device_map_of_gpus_needs_one(tmp_path, name):
    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    if not torch.cuda.is_available():
        with pytest.raises(
            ConfigError, match=f"device map {name} is for GPUs, and there is none here; take cpu"
        ):
            l2c.load_pipeline(tmp_path / "pipe", device_map=name)
        return
    pipe = l2c.load_pipeline(tmp_path / "pipe", device_map=name, quiet=True)
    schedule = l2c.methods.interval(pipe, every=2, class_labels=[1], num_inference_steps=4)
    with l2c.enable_cache(pipe, schedule):
        pipe(class_labels=[1], num_inference_steps=4)
