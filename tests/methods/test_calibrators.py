"""FoCa and DMD against cache-dit's own calibrators, and on signals whose continuation is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.methods import dmd, foca, taylorseer
from l2c.methods.dmd import calibrate, evenly_spaced, mode_weights
from l2c.methods.foca import heun_weights

COMPUTED = [0, 1, 2, 5, 8, 11, 14, 17]
COUNT, WIDTH = 24, 48


def oscillations(noise: float = 0.0) -> torch.Tensor:
    """Values (evaluations, width), float64: a decay, a damped oscillation, and noise."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, WIDTH, dtype=torch.float64, generator=generator)
    at = torch.arange(COUNT, dtype=torch.float64)
    parts = torch.stack([0.95**at, 0.9**at * torch.cos(0.3 * at), 0.9**at * torch.sin(0.3 * at)], dim=1)
    return parts @ basis + noise * torch.randn(COUNT, WIDTH, dtype=torch.float64, generator=generator)


def test_foca_weights_by_hand():
    # one value: a copy. 2: v1 + (v1 - v0). 3: v1 + (2 / 2) (v1 - v0 + f2 - v1), and f2 - v1 = v1 - v0
    weights = heun_weights(4, [0, 1])
    assert [weights[at].tolist() for at in (2, 3)] == [[2.0, -1.0], [3.0, -2.0]]
    assert heun_weights(3, [0])[2].tolist() == [1.0]
    # 4 after 3 is computed: v3 + (1 / 2) (v3 - v1 + v3 - f2), f2 = 2 v1 - v0
    assert heun_weights(5, [0, 1, 3])[4].tolist() == [2.0, -1.5, 0.5]


@pytest.mark.parametrize("computed", [COMPUTED, [0, 1, 7, 13], [0, 3, 4, 5, 12]])
def test_foca_forecasts_as_the_calibrator_of_cache_dit(computed):
    states = pytest.importorskip("cache_dit.caching.cache_contexts.calibrators.foca")
    values, state, ours = oscillations(0.1), states.FoCaState(), heun_weights(COUNT, computed)
    for at in range(COUNT):
        state.mark_step_begin()
        if at in computed:
            state.update(values[at])
            continue
        past = [one for one in computed if one < at][::-1]
        torch.testing.assert_close(
            ours[at].double() @ values[past], state.approximate(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_dmd_forecasts_as_the_calibrator_of_cache_dit(noise):
    states = pytest.importorskip("cache_dit.caching.cache_contexts.calibrators.dmd")
    values, state, checked = oscillations(noise), states.DMDState(), 0
    for at in range(COUNT):
        state.mark_step_begin()
        if at in COMPUTED:
            state.update(values[at][None])
            continue
        tail = evenly_spaced([one for one in COMPUTED if one < at][-6:])
        if len(tail) >= 4:
            weights = mode_weights(values[tail] @ values[tail].T, (at - tail[-1]) / 3)
            made = weights.double() @ values[tail[::-1]]
            torch.testing.assert_close(made, state.approximate()[0], rtol=1e-4, atol=1e-4)
            checked += 1
    assert checked == 10


def test_dmd_continues_damped_oscillations_exactly():
    values, tail = oscillations(), [5, 8, 11, 14, 17]
    for at in (18, 19):
        weights = mode_weights(values[tail] @ values[tail].T, (at - 17) / 3).double()
        np.testing.assert_allclose(weights @ values[tail[::-1]], values[at], atol=1e-4)
    line = 17 - np.array([18, 19])
    assert (
        abs(values[17] - (values[14] - values[17]) / 3 * line[0] - values[18]).max() > 1e-2
    )  # a line does not


def test_dmd_copies_what_has_no_modes():
    assert mode_weights(torch.zeros(4, 4, dtype=torch.float64), 0.5).tolist() == [1, 0, 0, 0]


def test_dmd_calibrates_and_begins_with_lines(tiny_dit):
    host = l2c.host_of(tiny_dit, solver="ddim", steps=16)
    products = calibrate(host, num_images=2)
    assert products.shape == (6, 16, 16)
    schedule = dmd(host, every=3, first=3, prepared=products)
    assert schedule.compute[:, 0].nonzero().flatten().tolist() == [0, 1, 2, 5, 8, 11, 14]
    plain = taylorseer(host, every=3, first=3, order=1)
    assert schedule.plan[6, 2] == plain.plan[6, 2]
    tail = [2, 5, 8, 11]
    expected = mode_weights(products[4][tail][:, tail], 2 / 3)
    assert [weight for _, weight in schedule.plan[13, 4]] == pytest.approx(expected[expected != 0].tolist())
    assert l2c.sample(tiny_dit, [1], [0], schedule=schedule).isfinite().all()
    with pytest.raises(ConfigError, match="history"):
        dmd(host, history=3, prepared=products)


def test_foca_samples_what_its_recursion_makes(tiny_dit):
    """The whole run again, with forecasts kept per layer as cache-dit keeps them."""
    schedule = foca(tiny_dit, solver="ddim", steps=9, every=3, first=2)
    assert schedule.compute[:, 0].nonzero().flatten().tolist() == [0, 1, 4, 7]
    ours = l2c.sample(tiny_dit, [1, 2], steps=9, schedule=schedule)
    modules = [tiny_dit.get_submodule(layer.module_path) for layer in schedule.layers.layers]
    now, full, recent = [-1], {}, {}

    def forward(index, original):
        def call(*arguments):
            values, last = full.setdefault(index, []), recent.setdefault(index, [])
            if now[0] in (0, 1, 4, 7):
                values.append((now[0], original(*arguments)))
                made = values[-1][1]
            else:
                (_, before), (at, anchor) = values[-2:]
                slopes = anchor - before + last[-1] - last[-2]
                made = anchor + (now[0] - at) / 2 * slopes
            last.append(made)
            return made

        return call

    def advance(module, arguments):
        now[0] += 1

    handle = tiny_dit.register_forward_pre_hook(advance)
    for index, module in enumerate(modules):
        module.forward = forward(index, module.forward)
    theirs = l2c.sample(tiny_dit, [1, 2], steps=9)
    for module in modules:
        del module.forward
    handle.remove()
    assert (ours - l2c.sample(tiny_dit, [1, 2], steps=9)).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
