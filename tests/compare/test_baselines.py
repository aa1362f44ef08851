import pytest
import torch

from l2c.compare.baselines import PEERS, ForwardCount, diffusers_copy, peer_sampler
from l2c.errors import ConfigError
from l2c.layers import find_layers
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.sampler import Sampler, seeded_noise

STEPS = 8


@pytest.fixture
def sampler(tiny_dit) -> Sampler:
    return Sampler(Denoiser.of(tiny_dit), "ddim", STEPS, guidance=Guidance(1.5))


NOISE, LABELS = seeded_noise([5, 6], (3, 8, 8)), torch.tensor([1, 2])


def test_count_is_that_of_the_layer_table(tiny_dit):
    transformer = diffusers_copy(tiny_dit)
    count = ForwardCount(transformer)
    with torch.no_grad():
        Denoiser.of(transformer)(NOISE, torch.tensor(3.0), LABELS)
    assert count.macs(1) == find_layers(transformer).full_macs


def test_bare_diffusers_is_the_same_model(tiny_dit, sampler):
    with torch.no_grad(), peer_sampler(tiny_dit, sampler, PEERS["diffusers"], {}) as (sample, count):
        torch.testing.assert_close(sample(NOISE, LABELS), sampler(NOISE, LABELS), atol=1e-4, rtol=1e-4)
    assert count.macs(STEPS) == STEPS * find_layers(diffusers_copy(tiny_dit)).full_macs


SETTINGS = {
    "diffusers-first-block": {"threshold": 10.0},
    "diffusers-taylorseer": {"cache_interval": 2, "max_order": 1, "disable_cache_before_step": 2},
    "diffusers-mag": {"threshold": 10.0, "max_skip_steps": 2},
    "cache-dit": {"Fn_compute_blocks": 1, "residual_diff_threshold": 10.0, "max_warmup_steps": 2},
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_peer_skips_repeats_and_leaves_nothing_behind(name, tiny_dit, sampler, capfd):
    peer, settings = PEERS[name], dict(SETTINGS[name])
    if not peer.installed:
        pytest.skip(f"{name} is not installed")
    keys = set(vars(type(tiny_dit)))
    with torch.no_grad():
        full = sampler(NOISE, LABELS)
        if peer.prepare is not None:
            copied = Sampler(Denoiser.of(diffusers_copy(tiny_dit)), "ddim", STEPS, guidance=Guidance(1.5))
            settings |= peer.prepare(copied, NOISE, LABELS, settings)
            assert len(settings["mag_ratios"]) == STEPS
        with peer_sampler(tiny_dit, sampler, peer, settings) as (sample, count):
            first = sample(NOISE, LABELS)
            once = count.macs(STEPS)
            second = sample(NOISE, LABELS)
        assert torch.equal(first, second)  # a run begins with nothing of the one before
        assert count.macs(2 * STEPS) == 2 * once
        assert once < 0.95 * STEPS * find_layers(tiny_dit).full_macs
        assert not torch.equal(first, full)
        assert torch.equal(sampler(NOISE, LABELS), full)
    assert set(vars(type(tiny_dit))) == keys
    assert capfd.readouterr().out == ""


def test_peers_run_on_a_dit_only(tiny_uvit):
    sampler = Sampler(Denoiser.of(tiny_uvit), "ddim", 4)
    with (
        pytest.raises(ConfigError, match="run on a DiTTransformer2DModel only, got a UViT"),
        peer_sampler(tiny_uvit, sampler, PEERS["diffusers"], {}),
    ):
        pass
