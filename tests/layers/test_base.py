import pytest
import torch
from torch import nn

import l2c
from l2c.errors import ConfigError
from l2c.layers import find_layers, fingerprint, register_adapter
from l2c.layers.base import MAX_PROBED
from l2c.testing import tiny_dit, tiny_uvit


class DiT(nn.Module):
    """Somebody else's class of the same name."""


def test_find_layers_refuses_a_foreign_class_of_a_known_name():
    package = __name__.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"no layer adapter for {package}\.DiT; .* l2c\.DiT, l2c\.UViT"):
        find_layers(DiT())
    with pytest.raises(ConfigError, match="no layer adapter"):
        l2c.sample(DiT(), [1])


def test_find_layers_takes_a_subclass_for_its_base_class():
    model = tiny_dit()
    model.__class__ = type("Finetuned", (type(model),), {})
    assert find_layers(model) == find_layers(tiny_dit())


def test_register_adapter_refuses_a_second_one():
    with pytest.raises(ConfigError, match="already has a layer adapter"):
        register_adapter("l2c.DiT")(find_layers)


@pytest.mark.parametrize("make", [tiny_dit, tiny_uvit])
def test_layers_are_named_in_execution_order(make):
    model, order = make(), []
    table = find_layers(model)
    for layer in table.layers:
        module = model.get_submodule(layer.module_path)
        module.register_forward_pre_hook(lambda *_, name=layer.name: order.append(name))
    model(torch.zeros(1, 3, 8, 8), torch.tensor([5]), torch.tensor([1]))
    assert tuple(order) == table.names


def test_fingerprint_survives_precision_and_tells_weights_apart():
    model = tiny_dit()
    table = find_layers(model)
    mine, other = fingerprint(model, table), fingerprint(tiny_dit(seed=1), table)
    half = fingerprint(tiny_dit().to(torch.bfloat16), table)
    assert max(abs(a - b) for a, b in zip(mine, half, strict=True)) < 0.02
    assert sum(abs(a - b) > 0.1 for a, b in zip(mine, other, strict=True)) > len(table) / 2


def test_fingerprint_looks_at_no_more_than_a_sample_of_a_large_matrix(monkeypatch):
    model = tiny_dit()
    table = find_layers(model)
    whole = fingerprint(model, table)
    monkeypatch.setattr("l2c.layers.base.MAX_PROBED", 100)
    assert fingerprint(model, table) != whole
    assert max(p.numel() for p in tiny_dit().parameters()) < MAX_PROBED


def test_uvit_counts_what_it_has_beside_its_layers():
    """The 3x3 convolution and the MLP of the timestep, each only where there is one."""
    plain = find_layers(tiny_uvit(final_conv=False)).rest_macs
    assert find_layers(tiny_uvit()).rest_macs - plain == 9 * 3 * 3 * 8 * 8
    assert find_layers(tiny_uvit(final_conv=False, time_embed_mlp=True)).rest_macs - plain == 8 * 32**2
