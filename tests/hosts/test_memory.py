"""Memory of learning: the same gradients without keeping what they need."""

import pytest
import torch

import l2c
from l2c.hosts.pipeline.resting import Resting
from l2c.learning.memory import AliveBytes, kept_bytes
from l2c.learning.student import Student
from l2c.testing import tiny_call, tiny_pipeline

NAMES = ("flux", "sd3", "wan", "qwen")


def host_of(name, steps=6):
    given = {
        key: value
        for key, value in tiny_call(name, steps=steps).items()
        if key not in ("generator", "output_type")
    }
    return l2c.host_of(tiny_pipeline(name), **given)


def mixed_mask(host):
    compute = torch.rand(len(host.run.timesteps), len(host.table), generator=torch.Generator().manual_seed(0))
    mask = compute < 0.5
    mask[:2] = True
    return mask


def gradient(host, recompute, **options):
    """A student whose parameters have the gradient of a run's latents, and the bytes that were kept for it."""
    student = Student(host, mixed_mask(host), 3, recompute=recompute, **options)
    with host.prepared(), student.attached():
        with AliveBytes() as alive:
            loss = student(host.seeded([0])).square().mean()
        kept = alive.nbytes
        loss.backward()
    return student, kept


@pytest.mark.parametrize("steps", [6, 12])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_within_a_tenth_of_the_formula(name, steps):
    host = host_of(name, steps)
    _, kept = gradient(host, "evaluations")
    assert kept_bytes(host, mixed_mask(host), 3) == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_that_are_computed_again_save_little_and_have_the_same_gradients(name):
    host = host_of(name)
    expected, everything = gradient(host, False)
    again, kept = gradient(host, "evaluations")
    assert kept < everything / 4
    wanted = expected.forecasts.added.grad
    assert wanted.abs().max() > 0
    torch.testing.assert_close(
        again.forecasts.added.grad, wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item()
    )


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_values_that_wait_in_cpu_memory_have_the_same_gradients(name, monkeypatch):
    host, copied = host_of(name), []
    copy = Resting._copy
    monkeypatch.setattr(
        Resting, "_copy", lambda self, part: copied.append(part is not None) or copy(self, part)
    )
    expected, kept = gradient(host, "evaluations")
    assert not copied
    again, resting = gradient(host, "offload")
    assert any(copied)
    assert torch.equal(again.forecasts.added.grad, expected.forecasts.added.grad)
    assert resting == pytest.approx(kept, rel=0.1)  # one copy of each, however often it is read


def test_gradients_of_a_solver_go_through_evaluations_that_are_computed_again():
    host = host_of("flux").solver_starts(5)[0]
    expected, _ = gradient(host, False, free_solver=True)
    again, _ = gradient(host, "evaluations", free_solver=True)
    for name in ("shifts", "corrections"):
        wanted = getattr(expected, name).grad
        assert wanted.abs().max() > 0
        torch.testing.assert_close(getattr(again, name).grad, wanted, rtol=1e-3, atol=1e-6)


def test_a_schedule_is_learned_with_evaluations_computed_again():
    quick = l2c.LearnSettings(
        iterations=2, batch_size=1, num_examples=4, reference_steps=8, trials=1, recompute="evaluations"
    )
    host = host_of("sd3")
    learned = l2c.learn(host, budget=0.6, settings=quick)
    assert learned.provenance["held_out_error"] > 0
    assert learned.provenance["settings"]["recompute"] == "evaluations"


def test_what_cannot_be_computed_again_is_a_sentence():
    with pytest.raises(l2c.ConfigError, match="recompute must be .*'evaluations' or 'offload', got 'blocks'"):
        l2c.LearnSettings(recompute="blocks")
    quick = l2c.LearnSettings(
        iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=1, recompute="evaluations"
    )
    with pytest.raises(l2c.ConfigError, match="computed again on pipelines; take recompute=True"):
        l2c.learn(l2c.testing.tiny_dit(), steps=4, budget=0.6, settings=quick)
