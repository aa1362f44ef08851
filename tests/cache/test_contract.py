"""The contract that every adapter keeps: what enabling, sampling with, and disabling a cache may and may not do."""

from dataclasses import replace

import pytest
import torch

import l2c
from l2c.cache.cached_model import attach
from l2c.cache.policy import MixingPolicy, StaticPolicy
from l2c.errors import CacheStateError
from l2c.layers import find_layers
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import count_calls, tiny_diffusers_dit, tiny_dit, tiny_uvit

STEPS = 6
LABELS = [1, 2]


@pytest.fixture(params=[tiny_dit, tiny_uvit, tiny_diffusers_dit], ids=["dit", "uvit", "diffusers-dit"])
def model(request):
    return request.param()


def sample(model, schedule=None, **options):
    return l2c.sample(model, LABELS, steps=STEPS, schedule=schedule, **options)


def interval(model, every=2, predictor="copy"):
    return l2c.methods.interval(model, solver="ddim", steps=STEPS, every=every, predictor=predictor)


def mixed_schedule(model, predictor="copy"):
    """Different layers at different evaluations, runs of several reuses in a row, nothing regular."""
    regular = interval(model, 1, predictor)
    compute = torch.rand(regular.compute.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    compute[:2] = True
    return CacheSchedule(compute, regular.layers, regular.contract, regular.predictor)


def test_computing_everything_is_bit_equal_to_the_bare_model(model):
    bare = sample(model)
    assert torch.equal(sample(model, interval(model, every=1)), bare)


def test_reuse_changes_the_result(model):
    assert not torch.equal(sample(model, interval(model)), sample(model))


def test_a_reused_layer_is_not_called(model):
    schedule = mixed_schedule(model)
    with count_calls(model) as calls:
        sample(model, schedule)
    expected = dict(zip(schedule.layers.names, schedule.compute.sum(0).tolist(), strict=True))
    assert {name: calls[name] for name in expected} == expected


def test_disabling_restores_the_model(model):
    bare = sample(model)
    keys, forwards = list(model.state_dict()), [m.__dict__.get("forward") for m in model.modules()]
    cache = l2c.enable_cache(model, interval(model))
    assert list(model.state_dict()) == keys
    l2c.disable_cache(model)
    assert [m.__dict__.get("forward") for m in model.modules()] == forwards
    assert torch.equal(sample(model), bare)
    with pytest.raises(CacheStateError, match="no cache is enabled"):
        l2c.disable_cache(model)
    cache.restore()  # harmless


def test_restoring_by_the_handle_disables_the_cache(model):
    bare = sample(model)
    l2c.enable_cache(model, interval(model)).restore()
    assert torch.equal(sample(model), bare)
    l2c.enable_cache(model, interval(model))
    l2c.disable_cache(model)


def test_a_layer_that_is_not_there_leaves_the_model_as_it_was(model):
    table = find_layers(model)
    broken = replace(table, layers=(*table.layers[:2], replace(table.layers[2], module_path="nowhere")))
    before = [m.__dict__.get("forward") for m in model.modules()]
    with pytest.raises(AttributeError, match="nowhere"):
        attach(model, broken, StaticPolicy({}, 1))
    assert [m.__dict__.get("forward") for m in model.modules()] == before


def test_an_exception_restores_the_model_and_empties_the_store(model):
    bare = sample(model)

    def fail(evaluation, x, noise):
        if evaluation == 3:
            raise RuntimeError("stopped by the test")

    with pytest.raises(RuntimeError, match="stopped by the test"):
        sample(model, interval(model), observer=fail)
    assert torch.equal(sample(model), bare)


def test_an_aborted_run_leaves_nothing_behind_in_an_enabled_cache(model):
    schedule = interval(model)
    expected = sample(model, schedule)

    def fail(evaluation, x, noise):
        if evaluation == 2:
            raise KeyboardInterrupt

    with l2c.enable_cache(model, schedule) as cache:
        with pytest.raises(KeyboardInterrupt):
            sample(model, observer=fail)
        assert cache.policy.store.nbytes == 0
        assert torch.equal(sample(model), expected)
        assert torch.equal(sample(model), expected)


def test_enabling_twice_is_refused(model):
    with l2c.enable_cache(model, interval(model)):
        with pytest.raises(CacheStateError, match=r"already enabled .* l2c.disable_cache"):
            l2c.enable_cache(model, interval(model))
        sample(model)


def test_a_call_outside_a_run_is_refused(model):
    x, t, y = torch.zeros(1, 3, 8, 8), torch.tensor([5]), torch.tensor([1])
    with l2c.enable_cache(model, interval(model)), pytest.raises(CacheStateError, match="outside a run"):
        model(x, t, y)
    model(x, t, y)


@pytest.mark.parametrize("predictor", ["copy", "taylor-1", "taylor-2"])
def test_soft_gates_at_0_and_1_equal_hard_ones(model, predictor):
    schedule = mixed_schedule(model, predictor)
    compute, parsed = schedule.compute.clone(), Predictor.parse(predictor)
    compute[: parsed.history] = True
    schedule = CacheSchedule(compute, schedule.layers, schedule.contract, parsed)
    hard = sample(model, schedule)

    def gate(evaluation, layer):
        value = schedule.compute[evaluation, layer]
        return True if evaluation < parsed.history else value.float()

    policy = MixingPolicy(gate, parsed, schedule.contract.run.log_snrs)
    with attach(model, find_layers(model), policy):
        soft = sample(model)
    torch.testing.assert_close(soft, hard, atol=1e-5, rtol=1e-4)


def test_soft_gates_pass_gradients_and_leave_the_model_frozen(model):
    schedule = interval(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = torch.zeros(schedule.compute.shape, requires_grad=True)

    def gate(evaluation, layer):
        return True if evaluation % 2 == 0 else logits[evaluation, layer].sigmoid()

    from l2c.sampling import Denoiser, Sampler, seeded_noise

    sampler = Sampler(Denoiser.of(model), "ddim", STEPS)
    policy = MixingPolicy(gate, Predictor(), schedule.contract.run.log_snrs)
    with attach(model, find_layers(model), policy):
        sampler(seeded_noise([0, 1], (3, 8, 8)), torch.tensor(LABELS)).square().mean().backward()
    assert (logits.grad[1::2] != 0).all()
    assert (logits.grad[0::2] == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_guidance_in_one_call_and_in_two_agree(model):
    schedule = mixed_schedule(model, "taylor")
    together = sample(model, schedule, guidance_mode="batch")
    apart = sample(model, schedule, guidance_mode="split")
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-4)


def test_branches_do_not_mix(model):
    """Without separate stores the unconditional call would reuse the conditional features."""
    schedule = interval(model, every=STEPS)
    seen = {}
    with l2c.enable_cache(model, schedule) as cache:
        original = cache.policy.store.put
        cache.policy.store.put = lambda branch, *rest: (seen.setdefault(branch, 0), original(branch, *rest))
        sample(model, guidance_mode="split")
    assert set(seen) == {"cond", "uncond"}


def test_two_runs_agree(model):
    schedule = mixed_schedule(model, "taylor")
    assert torch.equal(sample(model, schedule), sample(model, schedule))


@pytest.mark.parametrize("predictor", ["copy", "taylor-2"])
@pytest.mark.parametrize("mode", ["batch", "split"])
def test_the_store_peaks_at_what_was_announced(model, predictor, mode):
    schedule, peak = mixed_schedule(model, predictor), 0
    with l2c.enable_cache(model, schedule) as cache:
        store, put = cache.policy.store, cache.policy.store.put

        def watched(*args):
            nonlocal peak
            put(*args)
            peak = max(peak, store.nbytes)

        store.put = watched
        sample(model, guidance_mode=mode)
        calls = (4, 1) if mode == "batch" else (2, 2)
        assert peak == cache.peak_store_bytes(*calls)
        assert store.nbytes == 0


def test_hard_gates_hold_no_more_than_needed(model):
    schedule = interval(model, every=1)
    assert isinstance(policy := StaticPolicy(schedule.plan, STEPS), StaticPolicy)
    assert not policy.store.reads
