import re

import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.sampling import Denoiser, Guidance, seeded_noise
from l2c.testing import tiny_diffusers_dit, tiny_dit, tiny_uvit


def test_a_seed_gives_the_same_picture_in_any_batch_and_order():
    model = tiny_dit()
    alone = l2c.sample(model, [4], seeds=[17], steps=4)
    batch = l2c.sample(model, [1, 4, 2], seeds=[3, 17, 5], steps=4)
    split = l2c.sample(model, [2, 1, 4], seeds=[5, 3, 17], steps=4, batch_size=2)
    torch.testing.assert_close(batch[1:2], alone)
    torch.testing.assert_close(split[2:3], alone)
    assert not torch.allclose(batch[0], alone[0])


def test_seeds_and_noise_are_the_same_thing():
    model = tiny_uvit()
    noise = seeded_noise([5, 6], (3, 8, 8))
    by_noise = l2c.sample(model, [1, 2], noise=noise, steps=3)
    assert torch.equal(by_noise, l2c.sample(model, [1, 2], seeds=[5, 6], steps=3))


def test_both_implementations_of_dit_sample_the_same():
    ours = l2c.sample(tiny_dit(), [1, 2], steps=4)
    torch.testing.assert_close(l2c.sample(tiny_diffusers_dit(), [1, 2], steps=4), ours, atol=1e-4, rtol=1e-4)


def test_a_learned_variance_is_left_out_and_latents_are_not_clamped():
    model = tiny_dit(in_channels=4, learn_sigma=True)
    latents = l2c.sample(model, [1], steps=3, guidance_channels=3)
    assert latents.shape == (1, 4, 8, 8)
    assert latents.abs().max() > 1


def test_pictures_are_within_range():
    assert l2c.sample(tiny_dit(), [1], steps=3).abs().max() <= 1


def test_guidance_of_some_channels_leaves_the_others_conditional():
    denoiser = Denoiser.of(tiny_dit(in_channels=4))
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor(500.0), torch.tensor([1, 2])
    with torch.no_grad():
        guided = Guidance(3.0, channels=3).predict(denoiser, x, t, y)
        cond, uncond = denoiser(x, t, y), denoiser(x, t, torch.tensor([10, 10]))
    torch.testing.assert_close(guided[:, 3:], cond[:, 3:])
    torch.testing.assert_close(guided[:, :3], (uncond + 3 * (cond - uncond))[:, :3], atol=1e-5, rtol=1e-4)


def test_the_network_is_fed_its_own_timesteps():
    """U-ViTs trained on latents count timesteps from 1."""
    seen = []
    model = tiny_uvit(first_timestep=1)
    model.register_forward_pre_hook(lambda module, args: seen.append(float(args[1][0])))
    l2c.sample(model, [1], steps=3)
    assert seen == [1000.0, 501.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [11]}, "class label 11 is out of range; the model has classes 0 to 9"),
        ({"labels": [-1]}, "class label -1 is out of range"),
        ({"labels": []}, "labels must be a list of whole numbers"),
        ({"labels": [0.5]}, "labels must be a list of whole numbers"),
        ({"labels": [1], "seeds": [1, 2]}, "got 2 seeds for 1 labels"),
        ({"labels": [1], "noise": torch.zeros(2, 3, 8, 8)}, "noise must have shape (1, 3, 8, 8)"),
        ({"labels": [1], "noise": torch.zeros(1, 3, 8, 8), "seeds": [1]}, "either seeds or noise"),
        ({"labels": [1], "guidance": float("nan")}, "guidance scale must be"),
        ({"labels": [1], "guidance_mode": "both"}, "mode must be one of batch, split, got 'both'"),
        ({"labels": [1], "batch_size": 0}, "batch_size must be at least 1"),
        ({"labels": [1], "solver": "ddmi"}, "unknown solver 'ddmi'; did you mean 'ddim'?"),
    ],
)
def test_bad_arguments_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        l2c.sample(tiny_dit(), steps=2, **options)


def test_guidance_without_a_null_class_is_refused():
    model = tiny_uvit(has_null_class=False)
    with pytest.raises(ConfigError, match="without a null class"):
        l2c.sample(model, [1], steps=2)
    l2c.sample(model, [1], steps=2, guidance=1)


def test_the_null_class_is_a_label_only_where_there_is_one():
    l2c.sample(tiny_dit(), [10], steps=2)
    with pytest.raises(ConfigError, match=r"class label 10 is out of range; the model has classes 0 to 9$"):
        l2c.sample(tiny_uvit(has_null_class=False), [10], steps=2, guidance=1)
