"""FreqCa against its formulas, computed with numpy on the tokens that a model puts out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import l2c
from l2c.compare.baselines import in_diffusers, running
from l2c.compare.freqca import FreqCaSettings, blend, freqca, hermite_weights, low_frequencies
from l2c.errors import ConfigError
from l2c.hosts.native import ModelHost


def test_freqca_computes_as_often_as_published():
    """Its speed-ups in FLOPs for 50 steps: 4.99 with an interval of 6, 6.24 with one of 9."""
    for interval, faster in ((6, 4.99), (9, 6.24)):
        settings = FreqCaSettings(interval)
        full = [at for at in range(50) if settings.computes(at)]
        assert full[:4] == [0, 1, 2, 2 + interval]
        assert 50 / len(full) == pytest.approx(faster, rel=0.01)


def test_freqca_hermite_weights_by_hand():
    # the last value, 2 (0.71)^2 of a slope a step ahead, and (4 (0.71)^2 - 2) / 2 (0.71)^2 of a curvature
    square = 0.71**2
    assert hermite_weights(3, [1, 2], 2) == pytest.approx([-2 * square, 1 + 2 * square])
    first, second = 2 * square, (4 * square - 2) / 2 * square
    expected = [second, -first - 2 * second, 1 + first + second]
    assert hermite_weights(3, [0, 1, 2], 2) == pytest.approx(expected)
    assert hermite_weights(9, [4], 2) == [1.0]


def low_by_hand(tokens: np.ndarray, transform: str) -> np.ndarray:
    """Sums over single waves."""
    count = tokens.shape[0]
    waves = []
    if transform == "fft":
        for k in range(count):
            frequency = min(k, count - k) / count
            if frequency <= 0.1 * (count // 2) / count:
                waves.append(np.exp(2j * np.pi * k * np.arange(count) / count) / np.sqrt(count))
    else:
        side = round(count**0.5)
        at = np.arange(side)
        for u in range(side):
            for v in range(side):
                if np.hypot(u, v) <= 0.1 * np.hypot(side - 1, side - 1):
                    row, column = (np.cos(np.pi * (2 * at + 1) * k / (2 * side)) for k in (u, v))
                    wave = np.outer(row, column).ravel()
                    waves.append(wave / np.linalg.norm(wave))
    assert len(waves) > 1
    return sum(np.outer(wave, wave.conj() @ tokens) for wave in waves).real


@pytest.mark.parametrize("transform", ["dct", "fft"])
def test_freqca_repeats_low_frequencies_and_continues_high_ones(transform):
    values = torch.randn(3, 2, 144, 5, generator=torch.Generator().manual_seed(0))
    weights = [0.5, -1.75, 2.25]
    made = blend(list(values), weights, transform).numpy()
    for row in range(2):
        tokens = values[:, row].double().numpy()
        highs = [value - low_by_hand(value, transform) for value in tokens]
        expected = low_by_hand(tokens[-1], transform) + sum(
            w * high for w, high in zip(weights, highs, strict=True)
        )
        np.testing.assert_allclose(made[row], expected, atol=1e-4)


def test_freqca_needs_a_square_for_the_dct():
    with pytest.raises(ConfigError, match="needs a square of tokens, got 12 of them; take fft"):
        low_frequencies(torch.zeros(1, 12, 2), "dct")
    assert low_frequencies(torch.ones(1, 12, 2), "fft") == pytest.approx(1.0)


def test_freqca_samples_with_the_last_block_forecast(tiny_dit):
    """The run again, with everything computed, and the last block's output replaced where it is forecast."""
    host = in_diffusers(ModelHost.of(tiny_dit, "ddim", 9))
    examples, model = host.seeded([5, 6]), host.target
    with torch.no_grad(), running(host) as other, freqca(other, {"interval": 3, "first": 2}) as run:
        ours = run(lambda: other.sample(examples))
    kept: list[tuple[int, torch.Tensor]] = []
    now = [-1]

    def before(module, arguments):
        now[0] += 1

    def replaced(module, arguments, output):
        if now[0] in (0, 1, 4, 7):
            kept.append((now[0], output))
            return None
        past = kept[-3:]
        weights = hermite_weights(now[0], [at for at, _ in past], 2)
        total = sum(weight * value for weight, (_, value) in zip(weights, past, strict=True))
        assert total.shape[1] == 16  # of four rows and columns, the mean alone is low
        return total + (past[-1][1] - total).mean(1, keepdim=True)

    model.register_forward_pre_hook(before)
    model.transformer_blocks[-1].register_forward_hook(replaced)
    with torch.no_grad():
        theirs = host.sample(examples)
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale)
    with torch.no_grad():
        full = ModelHost.of(tiny_dit, "ddim", 9).sample(examples)
    assert (ours - full).abs().max() > 1e-3 * scale


def test_freqca_runs_on_pipelines_and_refuses_what_it_does_not_know():
    call = l2c.testing.tiny_call("sd3")
    for left_out in ("generator", "num_inference_steps", "output_type"):
        del call[left_out]
    host = l2c.host_of(l2c.testing.tiny_pipeline("sd3"), num_inference_steps=8, **call)
    examples = host.seeded([1])
    with torch.no_grad():
        full = host.sample(examples)
        with running(host) as other, freqca(other, {"interval": 4, "first": 1}) as run:
            first, second = (run(lambda: other.sample(examples)) for _ in range(2))
        again = host.sample(examples)
    assert torch.equal(first, second)
    assert torch.equal(full, again)
    assert not torch.allclose(first, full)
    with pytest.raises(ConfigError, match="FreqCa does not take these settings"), freqca(host, {"every": 2}):
        pass
