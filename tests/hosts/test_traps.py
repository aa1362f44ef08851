"""What users of caching libraries complain about: each complaint has a test that is named after it."""

import gc
import threading

import diffusers
import pytest
import torch

import l2c
from l2c.cache.cached_model import active_cache
from l2c.errors import CacheStateError, ContractError
from l2c.testing import tiny_interval as interval
from l2c.testing import tiny_mixed as mixed
from l2c.testing import tiny_pipeline
from l2c.testing import tiny_run as run


def test_state_shared_between_conditional_and_unconditional_calls(flux):
    """Each call has the features of its own: guidance of 1 makes the unconditional call vanish from the result."""
    schedule = mixed(flux, "flux", true_cfg_scale=1.0)
    with l2c.enable_cache(flux, schedule):
        alone = run(flux, "flux", true_cfg_scale=1.0)
        together = run(flux, "flux", true_cfg_scale=1.0 + 1e-7)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_state_shared_between_calls_without_names():
    """Lumina 2's pipeline makes two calls and names neither."""
    from l2c.testing import TINY

    tiny = TINY["Lumina2Transformer2DModel"]
    model, scheduler = tiny.build(), diffusers.FlowMatchEulerDiscreteScheduler()
    x = torch.randn((1, *tiny.shape), generator=torch.Generator().manual_seed(0))
    other = {key: value * 0 + 1 for key, value in tiny.conditions(1).items()}

    def loop(second):
        scheduler.set_timesteps(4)
        y = x
        for t in scheduler.timesteps:
            first = tiny.call(model, y, float(t))
            if second:
                model(hidden_states=y, timestep=t.expand(1), **other)
            y = scheduler.step(first, t, y).prev_sample
        return y

    from l2c.hosts.pipeline.runs import describe_run
    from l2c.layers import find_layers
    from l2c.schedule.contract import Contract
    from l2c.schedule.schedule import CacheSchedule

    scheduler.set_timesteps(4)
    table = find_layers(model)
    compute = torch.ones(4, len(table), dtype=torch.bool)
    compute[1::2] = False
    schedule = CacheSchedule(compute, table, Contract(describe_run(scheduler)))
    with l2c.enable_cache(model, schedule, scheduler=scheduler) as cache:
        assert torch.equal(loop(second=True), loop(second=False))
        loop(second=True)
        assert cache.summary().models["transformer"].calls == {"all": 4, "all-2": 4}


def test_counter_desynchronised_after_an_aborted_run(flux):
    with l2c.enable_cache(flux, mixed(flux, "flux")) as cache:
        expected = run(flux, "flux")
        for stop in range(1, 5):

            def fail(pipe, step, timestep, values, stop=stop):
                if step == stop:
                    raise RuntimeError("stopped by the test")
                return values

            with pytest.raises(RuntimeError, match="stopped by the test"):
                run(flux, "flux", callback_on_step_end=fail)
            assert not cache.clock.running
            assert torch.equal(run(flux, "flux"), expected)


def test_counter_desynchronised_by_a_second_order_solver():
    pipe = tiny_pipeline("pixart", diffusers.HeunDiscreteScheduler())
    with l2c.enable_cache(pipe, mixed(pipe, "pixart")) as cache:
        first = run(pipe, "pixart")
        assert cache.summary().models["transformer"].evaluations == 11
        assert torch.equal(run(pipe, "pixart"), first)


def test_counter_desynchronised_by_two_transformers(wan22):
    schedule = interval(wan22, "wan2.2")
    with l2c.enable_cache(wan22, schedule) as cache:
        first = run(wan22, "wan2.2")
        models = cache.summary().models
        assert models["transformer"].evaluations + models["transformer_2"].evaluations == 6
        assert torch.equal(run(wan22, "wan2.2"), first)


def test_stale_hooks_after_enabling_twice(pixart):
    bare, schedule = run(pixart, "pixart"), interval(pixart, "pixart")
    with l2c.enable_cache(pixart, schedule):
        expected = run(pixart, "pixart")
        with pytest.raises(
            CacheStateError, match=r"already enabled on this pipeline; call l2c.disable_cache"
        ):
            l2c.enable_cache(pixart, schedule)
        with pytest.raises(CacheStateError, match="already enabled on this model"):
            l2c.enable_cache(pixart.transformer, schedule)
        assert torch.equal(run(pixart, "pixart"), expected)
    assert torch.equal(run(pixart, "pixart"), bare)
    with l2c.enable_cache(pixart, schedule):
        assert torch.equal(run(pixart, "pixart"), expected)


def test_stale_hooks_of_another_library_over_ours(pixart):
    """What was put over our methods stays, and ours no longer do anything under it."""
    bare = run(pixart, "pixart")
    cache = l2c.enable_cache(pixart, interval(pixart, "pixart"))
    block = pixart.transformer.transformer_blocks[0].ff
    inner, seen = block.forward, []
    block.forward = lambda *args, **kwargs: seen.append(1) or inner(*args, **kwargs)
    run(pixart, "pixart")
    cache.restore()
    assert len(seen) == 6
    assert torch.equal(run(pixart, "pixart"), bare)
    assert len(seen) == 12
    del block.forward


def test_two_caches_at_once_are_refused(flux):
    own, schedule = diffusers.FirstBlockCacheConfig(threshold=0.1), interval(flux, "flux")
    flux.transformer.enable_cache(own)
    with pytest.raises(
        CacheStateError, match=r"diffusers' own cache \(FirstBlockCacheConfig\) .* disable_cache"
    ):
        l2c.enable_cache(flux, schedule)
    with pytest.raises(CacheStateError, match="diffusers' own cache"):
        l2c.enable_cache(flux.transformer, schedule)
    flux.transformer.disable_cache()
    with l2c.enable_cache(flux, schedule):
        run(flux, "flux")
        flux.transformer.enable_cache(own)
        with pytest.raises(CacheStateError, match="diffusers' own cache"):
            run(flux, "flux")
        flux.transformer.disable_cache()
        run(flux, "flux")


def test_crash_when_a_request_changes_shape():
    pipe = tiny_pipeline("sd3")
    schedule = mixed(pipe, "sd3")
    with l2c.enable_cache(pipe, schedule):
        one = run(pipe, "sd3")
        assert run(pipe, "sd3", images=3).shape[0] == 3
        with pytest.warns(UserWarning, match="made for samples of 4x8x8 and the run has 4x4x8"):
            assert run(pipe, "sd3", height=8).shape[-2:] == (4, 8)
        assert torch.equal(run(pipe, "sd3"), one)


def test_crash_when_guidance_ends_in_the_middle_of_a_run(pixart):
    """The batch halves, so there is nothing to reuse until its own history begins."""
    model, scheduler = pixart.transformer, pixart.scheduler
    schedule = interval(pixart, "pixart")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    kwargs = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    with l2c.enable_cache(model, schedule, scheduler=scheduler) as cache:
        scheduler.set_timesteps(6)
        for i, t in enumerate(scheduler.timesteps):
            rows = 2 if i < 3 else 1
            noise = model(x[:rows], text[:rows], t.expand(rows), **kwargs).sample[:, :4]
            x = scheduler.step(noise, t, x[:rows]).prev_sample
        seen = cache.summary().models["transformer"]
    assert seen.calls == {"all": 3, "all (shape 2)": 3}
    assert seen.unplanned == len(schedule.layers)  # evaluation 3
    assert seen.reused == 2 * len(schedule.layers)  # evaluations 1 and 5


def test_crash_when_feed_forward_is_chunked(pixart):
    schedule = mixed(pixart, "pixart")
    with l2c.enable_cache(pixart, schedule):
        expected = run(pixart, "pixart")
    for block in pixart.transformer.transformer_blocks:
        block.set_chunk_feed_forward(chunk_size=8, dim=1)
    with l2c.enable_cache(pixart, schedule):
        torch.testing.assert_close(run(pixart, "pixart"), expected, atol=1e-5, rtol=1e-5)


def adapter(pipe, rank=2, scale=1.0):
    from peft import LoraConfig

    targets = ["to_q", "to_v", "proj_out", "proj_mlp", "net.2"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=targets, init_lora_weights=False)
        pipe.transformer.add_adapter(config)
    pipe.transformer.requires_grad_(False)


def test_lora_loaded_while_enabled_is_used_and_told(flux):
    """FLUX's single blocks keep their residual in a linear map that a LoRA replaces."""
    pytest.importorskip("peft")
    schedule = mixed(flux, "flux")
    bare = run(flux, "flux")
    with l2c.enable_cache(flux, schedule):
        without = run(flux, "flux")
        adapter(flux)
        with pytest.warns(UserWarning, match="a LoRA was loaded or unloaded .* l2c.check tells"):
            during = run(flux, "flux")
        assert torch.equal(run(flux, "flux"), during)
    with l2c.enable_cache(flux, schedule):
        assert torch.equal(run(flux, "flux"), during)
        flux.transformer.delete_adapters("default")
        flux.unload_lora_weights()
        with pytest.warns(UserWarning, match="a LoRA was loaded or unloaded"):
            after = run(flux, "flux")
    assert not torch.equal(during, without)
    assert torch.equal(after, without)
    assert torch.equal(run(flux, "flux"), bare)


def test_quality_loss_with_lora_that_nothing_warns_about(flux):
    pytest.importorskip("peft")
    schedule = interval(flux, "flux")
    call = {key: value for key, value in l2c.testing.tiny_call("flux").items() if key != "generator"}
    first = l2c.check(flux, schedule, **call)
    assert first.accepted is None
    assert "none was recorded" in str(first)
    schedule = first.record(schedule)
    assert l2c.check(flux, schedule, **call).ratio == pytest.approx(1.0, abs=1e-4)
    adapter(flux, scale=8.0)
    drifted = l2c.check(flux, schedule, **call)
    assert drifted.ratio > 1.5
    assert drifted.accepted is False
    assert "beyond the limit of 1.5" in str(drifted)


def test_schedule_of_other_weights_is_refused_until_it_is_checked(pixart):
    from dataclasses import replace

    from l2c.layers import fingerprint

    schedule = interval(pixart, "pixart")
    prints = fingerprint(pixart.transformer, schedule.layers)
    learned = replace(schedule, contract=replace(schedule.contract, fingerprint=prints, model="tiny"))
    l2c.enable_cache(pixart, learned).restore()
    half = tiny_pipeline("pixart")
    half.transformer.to(torch.bfloat16)
    l2c.enable_cache(half, learned).restore()  # the same weights in another precision
    tuned = tiny_pipeline("pixart", seed=1)
    with pytest.raises(ContractError, match=r"learned on other weights \(tiny\): 6 of 6 layers differ"):
        l2c.enable_cache(tuned, learned)
    assert active_cache(tuned.transformer) is None
    with pytest.warns(UserWarning, match="learned on other weights"):
        l2c.enable_cache(tuned, learned, any_weights=True).restore()
    call = {key: value for key, value in l2c.testing.tiny_call("pixart").items() if key != "generator"}
    assert l2c.check(tuned, learned, **call).error > 0


def test_memory_growth_over_runs(flux):
    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with l2c.enable_cache(flux, mixed(flux, "flux")) as cache:
        run(flux, "flux")
        before = tensors()
        for _ in range(3):
            run(flux, "flux")
        assert tensors() <= before
        assert cache.transformers["transformer"].policy.store.nbytes == 0
    for _ in range(3):
        with l2c.enable_cache(flux, mixed(flux, "flux")):
            run(flux, "flux")
    assert tensors() <= before


def test_no_state_per_request_in_threads_with_pipelines_of_their_own():
    pipes = [tiny_pipeline("pixart", seed=seed) for seed in range(3)]
    schedules = [mixed(pipe, "pixart") for pipe in pipes]
    expected, got = [], {}
    for pipe, schedule in zip(pipes, schedules, strict=True):
        with l2c.enable_cache(pipe, schedule):
            expected.append(run(pipe, "pixart"))

    def work(index):
        with l2c.enable_cache(pipes[index], schedules[index]):
            got[index] = [run(pipes[index], "pixart") for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, result in enumerate(expected):
        assert all(torch.equal(one, result) for one in got[index])


def test_offloading_hooks_and_a_cache_live_together(pixart):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    seen = []

    class Loading(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(module)
            return args, kwargs

    schedule = interval(pixart, "pixart")
    with l2c.enable_cache(pixart, schedule):
        expected = run(pixart, "pixart")
    part = pixart.transformer.transformer_blocks[0].attn1
    add_hook_to_module(part, Loading())
    with l2c.enable_cache(pixart, schedule):
        assert torch.equal(run(pixart, "pixart"), expected)
    assert len(seen) == 3  # what is reused is not loaded
    remove_hook_from_module(part)
    assert "forward" not in vars(part) or part.forward.__func__ is type(part).forward
