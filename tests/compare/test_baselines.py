import pytest
import torch

from l2c.compare.baselines import BASELINES, ForwardCount, in_diffusers
from l2c.compare.candidates import BaselineCandidate
from l2c.compare.config import Base
from l2c.compare.plan import Variant
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler, seeded_noise

STEPS = 8
NOISE, LABELS = seeded_noise([5, 6], (3, 8, 8)), torch.tensor([1, 2])


def make_sampler(model) -> Sampler:
    return Sampler(Denoiser.of(model), "ddim", STEPS, guidance=Guidance(1.5))


def candidate(model, name, settings=None, prepared=None) -> BaselineCandidate:
    variant = Variant(name, Base("ddim", STEPS), name, settings or {})
    return BaselineCandidate(variant, make_sampler(model), prepared=prepared or {})


def test_count_is_that_of_the_layer_table(tiny_dit):
    transformer = in_diffusers(make_sampler(tiny_dit)).denoiser.model
    count = ForwardCount(transformer)
    with torch.no_grad():
        Denoiser.of(transformer)(NOISE, torch.tensor(3.0), LABELS)
    assert count.macs == find_layers(transformer).full_macs


def test_bare_diffusers_is_the_same_model(tiny_dit):
    sampler = make_sampler(tiny_dit)
    with torch.no_grad(), candidate(tiny_dit, "diffusers").ready() as (sample, macs):
        torch.testing.assert_close(sample(NOISE, LABELS), sampler(NOISE, LABELS), atol=1e-4, rtol=1e-4)
    transformer = in_diffusers(sampler).denoiser.model
    assert macs() == STEPS * find_layers(transformer).full_macs


SETTINGS = {
    "diffusers-first-block": {"threshold": 10.0},
    "diffusers-taylorseer": {"cache_interval": 2, "max_order": 1, "disable_cache_before_step": 2},
    "diffusers-mag": {"threshold": 10.0, "max_skip_steps": 2},
    "cache-dit": {"Fn_compute_blocks": 1, "residual_diff_threshold": 10.0, "max_warmup_steps": 2},
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_baseline_skips_repeats_and_leaves_nothing_behind(name, tiny_dit, capfd):
    baseline, sampler, prepared = BASELINES[name], make_sampler(tiny_dit), {}
    if not baseline.installed:
        pytest.skip(f"{name} is not installed")
    keys = set(vars(type(tiny_dit)))
    with torch.no_grad():
        full = sampler(NOISE, LABELS)
        if baseline.prepare is not None:
            copied = in_diffusers(sampler)
            prepared = baseline.prepare(copied.denoiser.model, STEPS, lambda: copied(NOISE, LABELS))
            assert len(prepared["mag_ratios"]) == STEPS
        with candidate(tiny_dit, name, SETTINGS[name], prepared).ready() as (sample, macs):
            first = sample(NOISE, LABELS)
            once = macs()
            second = sample(NOISE, LABELS)
        assert torch.equal(first, second)  # a run begins with nothing of the one before
        assert macs() == once
        assert 0.1 < once / (STEPS * find_layers(tiny_dit).full_macs) < 0.95
        assert not torch.equal(first, full)
        assert torch.equal(sampler(NOISE, LABELS), full)
    assert set(vars(type(tiny_dit))) == keys
    assert capfd.readouterr().out == ""


def test_baselines_run_on_a_dit_only(tiny_uvit):
    with pytest.raises(ConfigError, match="run on a DiTTransformer2DModel only, got a UViT"):
        in_diffusers(make_sampler(tiny_uvit))
