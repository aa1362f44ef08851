"""What learning relies on of a model's host: examples by their key, references, and one measure of error."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.hosts.base import errors
from l2c.testing import tiny_dit, tiny_uvit


@pytest.fixture
def host():
    return l2c.host_of(tiny_dit(), steps=4)


def test_errors_are_absolute_or_relative_to_the_reference():
    target = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    made = target + torch.tensor([[[0.6, 0.8]], [[-1.0, 1.0]]])
    # distances 1 and sqrt 2 over 2 numbers each; root mean squares of the targets 5 / sqrt 2 and 2 / sqrt 2
    assert errors(made, target, "absolute").tolist() == pytest.approx([0.5**0.5, 1.0])
    assert errors(made, target, "relative").tolist() == pytest.approx([1 / 5, 2**0.5 / 2])


@pytest.mark.parametrize("unit", ["absolute", "relative"])
def test_errors_have_a_gradient_also_where_there_is_none_to_speak_of(unit):
    target = torch.ones(2, 3, 4, 4)
    made = target.clone()
    made[1] += 0.5
    made.requires_grad_(True)
    errors(made, target, unit).sum().backward()
    assert made.grad.isfinite().all()
    assert not made.grad[0].any()
    assert (made.grad[1] > 0).all()


def test_only_latents_are_measured_against_their_own_size():
    assert l2c.host_of(tiny_dit(), steps=4).unit == "absolute"
    assert l2c.host_of(tiny_dit(in_channels=4), steps=4).unit == "relative"


def test_examples_depend_on_their_key_alone(host):
    first = host.examples(3, 7, "pictures")
    torch.rand(5)
    before = torch.get_rng_state()
    host.examples(2, 8)
    again = l2c.host_of(tiny_dit(seed=1), solver="unipc", steps=9).examples(3, 7, "pictures", held_out=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.noise, first.noise)
    assert torch.equal(again.labels, first.labels)
    others = [host.examples(3, 8, "pictures"), host.examples(3, 7), host.examples(3, 7, "pictures", 1)]
    assert not any(torch.equal(other.noise, first.noise) for other in others)
    assert len(first) == 3
    assert torch.equal(first.rows([2, 0]).noise, first.noise[[2, 0]])
    assert torch.equal(first.rows(slice(1, None)).labels, first.labels[1:])


def test_seeds_make_the_pictures_that_sample_makes(host):
    made = host.sample(host.seeded([5, 6]))
    wanted = l2c.sample(host.target, [0, 1], [5, 6], steps=4)
    assert torch.equal(made.clamp(-1, 1), wanted)


@pytest.mark.parametrize("make", [tiny_dit, tiny_uvit])
def test_a_reference_is_a_finer_run_of_the_same_model(make):
    host = l2c.host_of(make(), solver="euler", steps=4, guidance=2.0)
    assert host.reference(None) is host
    fine = host.reference(40)
    assert fine.target is host.target
    assert (fine.run.solver, fine.run.steps, fine.run.guidance) == ("dpmsolver++3", 40, 2.0)


def test_a_host_with_a_learned_solver_keeps_it():
    schedule = l2c.load_schedule("dit-mini-cifar10-auto-6")
    host = l2c.host_of(tiny_dit(), steps=4)
    own = host.for_schedule(schedule)
    assert own.run.weights == schedule.contract.run.weights
    assert own.with_steps(3) is own
    assert host.for_schedule(l2c.methods.interval(host)) is host
    assert host.with_steps(3).run.steps == 3


def test_weights_require_no_gradient_while_it_is_prepared(host):
    weight = next(host.target.parameters()).requires_grad_(True)
    seen = []

    def fail():
        with host.prepared():
            seen.append(weight.requires_grad)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [False]
    assert weight.requires_grad


def test_another_engine_is_refused(host):
    with pytest.raises(ConfigError, match="unknown engine 'steam'"):
        host.ready(None, 1, "steam")
