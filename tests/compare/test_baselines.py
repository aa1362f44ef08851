import pytest
import torch

from l2c.compare.baselines import BASELINES, in_diffusers
from l2c.compare.candidates import BaselineCandidate
from l2c.compare.choices import Base
from l2c.compare.forward_count import ForwardCount
from l2c.compare.plan import Variant
from l2c.errors import CacheStateError, ConfigError
from l2c.hosts.native import ModelHost
from l2c.layers import find_layers
from l2c.sampling.denoiser import Denoiser

STEPS = 8


def make_host(model) -> ModelHost:
    return ModelHost.of(model, "ddim", STEPS)


def candidate(model, name, settings=None, prepared=None) -> BaselineCandidate:
    variant = Variant(name, Base("ddim", STEPS), name, settings or {})
    return BaselineCandidate(variant, make_host(model), prepared=prepared or {})


def test_count_is_that_of_the_layer_table(tiny_dit):
    host = in_diffusers(make_host(tiny_dit))
    examples = host.seeded([5, 6])
    count = ForwardCount([host.target], host.table)
    with torch.no_grad():
        Denoiser.of(host.target)(examples.noise, torch.tensor(3.0), examples.labels)
    assert count.macs == find_layers(host.target).full_macs


def test_bare_diffusers_is_the_same_model(tiny_dit):
    host = make_host(tiny_dit)
    examples = host.seeded([5, 6])
    with torch.no_grad(), candidate(tiny_dit, "diffusers").ready() as (sample, macs):
        torch.testing.assert_close(sample(examples), host.sample(examples), atol=1e-4, rtol=1e-4)
    assert macs() == STEPS * find_layers(in_diffusers(host).target).full_macs


SETTINGS = {
    "diffusers-first-block": {"threshold": 10.0},
    "diffusers-taylorseer": {"cache_interval": 2, "max_order": 1, "disable_cache_before_step": 2},
    "diffusers-pyramid": {"spatial_attention_block_skip_range": 2},
    "diffusers-mag": {"threshold": 10.0, "max_skip_steps": 2},
    "freqca": {"interval": 3},
    "cache-dit": {"Fn_compute_blocks": 1, "residual_diff_threshold": 10.0, "max_warmup_steps": 2},
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_baseline_skips_repeats_and_leaves_nothing_behind(name, tiny_dit, capfd):
    baseline, host, prepared = BASELINES[name], make_host(tiny_dit), {}
    examples = host.seeded([5, 6])
    if not baseline.installed:
        pytest.skip(f"{name} is not installed")
    keys = set(vars(type(tiny_dit)))
    with torch.no_grad():
        full = host.sample(examples)
        if baseline.prepare is not None:
            copied = in_diffusers(host)
            prepared = baseline.prepare(copied, lambda: copied.sample(examples))
            assert len(prepared["mag_ratios"]) == STEPS
        with candidate(tiny_dit, name, SETTINGS[name], prepared).ready() as (sample, macs):
            first = sample(examples)
            once = macs()
            second = sample(examples)
        assert torch.equal(first, second)  # a run begins with nothing of the one before
        assert macs() == once
        assert 0.1 < once / (STEPS * find_layers(tiny_dit).full_macs) < 0.99
        assert not torch.equal(first, full)
        assert torch.equal(host.sample(examples), full)
    assert set(vars(type(tiny_dit))) == keys
    assert capfd.readouterr().out == ""


def test_baselines_run_on_a_dit_only(tiny_uvit):
    with pytest.raises(ConfigError, match="run on a DiTTransformer2DModel only, got a UViT"):
        in_diffusers(make_host(tiny_uvit))


def test_cache_that_does_not_run_on_a_model_says_so(tiny_dit):
    settings = {"unconditional_batch_skip_range": 2, "unconditional_batch_timestep_skip_range": (-1, 1000)}
    message = "^FasterCache \\(diffusers\\) does not run on DiTTransformer2DModel as it is here: RuntimeError, The size"
    examples = make_host(tiny_dit).seeded(
        [5, 6]
    )  # the cache leaves out half of the batch, but not of the labels
    ready = candidate(tiny_dit, "diffusers-faster", settings).ready()
    with torch.no_grad(), ready as (sample, _), pytest.raises(CacheStateError, match=message):
        sample(examples)
