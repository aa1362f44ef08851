"""Noise levels are learned by gradient where a pipeline rounds timesteps, or makes a new tensor of them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")

import l2c
from l2c.hosts.base import SolverTable
from l2c.testing import tiny_call, tiny_pipeline

CHANGES = {
    "as it is": lambda t: t,
    "copied": lambda t: torch.tensor(t.tolist(), dtype=t.dtype),
    "copied and scaled": lambda t: torch.tensor((1000 - t).tolist(), dtype=t.dtype),
    "rounded": lambda t: t.detach().round().long(),
}


def gradient(change):
    """Of what a pipeline makes in the noise levels of its learned solver, whose transformer gets changed timesteps."""
    pipe = tiny_pipeline("sd3")
    call = {k: v for k, v in tiny_call("sd3").items() if k not in ("generator", "output_type")}
    host = l2c.host_of(pipe, **{**call, "num_inference_steps": 6}).solver_starts(4)[0]

    def on_the_way(_, arguments, options):
        return arguments, {**options, "timestep": change(options["timestep"])}

    pipe.transformer.register_forward_pre_hook(on_the_way, with_kwargs=True)
    if change is CHANGES["copied and scaled"]:  # what the network makes of it stays the same
        embed = pipe.transformer.time_text_embed
        embed.register_forward_pre_hook(lambda _, given: (1000 - given[0], *given[1:]))
    levels = torch.tensor(host.run.log_snrs, dtype=torch.float64, requires_grad=True)
    examples = host.seeded([3])
    with host.prepared():
        table = host.multistep_table(levels.detach()).float()  # so that only timesteps depend on the levels
        made = host.sample(examples, solver=SolverTable(levels, table))
        made.square().sum().backward()
    hooks = len(pipe.transformer._forward_pre_hooks)
    assert hooks == 1
    return levels.grad


@pytest.fixture(scope="module")
def untouched():
    return gradient(CHANGES["as it is"])


def test_levels_have_a_gradient_through_timesteps(untouched):
    assert untouched[1:].abs().min() > 0


@pytest.mark.parametrize("change", ["copied", "copied and scaled"])
def test_timesteps_without_a_graph_get_it_back(change, untouched):
    torch.testing.assert_close(gradient(CHANGES[change])[1:], untouched[1:], rtol=1e-2, atol=1e-6)


def test_gradient_through_rounding_points_the_same_way(untouched):
    found = gradient(CHANGES["rounded"])
    assert torch.nn.functional.cosine_similarity(found[1:], untouched[1:], dim=0) > 0.9
