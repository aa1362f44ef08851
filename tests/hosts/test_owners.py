"""What owners of large pipelines do every day: quantised weights, LoRAs, schedulers that draw noise of their own."""

import copy
import pickle
import warnings

import diffusers
import pytest
import torch

import l2c
from l2c.layers import find_layers, fingerprint
from l2c.testing import tiny_call, tiny_pipeline

QUICK = l2c.LearnSettings(
    iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=2, trial_examples=1
)


def call(name):
    return {key: value for key, value in tiny_call(name).items() if key not in ("generator", "output_type")}


def prints(pipe):
    return fingerprint(pipe.transformer, find_layers(pipe.transformer))


def learned(pipe, name):
    return l2c.learn(pipe, budget=0.6, settings=QUICK, **call(name))


def add_lora(pipe):
    config = pytest.importorskip("peft").LoraConfig(r=2, target_modules=["to_q", "proj_out"])
    pipe.transformer.add_adapter(config)
    pipe.transformer.requires_grad_(False)


def test_weights_of_eight_bits_are_those_that_they_were_made_from():
    quantisation = pytest.importorskip("torchao.quantization", reason="needs torchao")
    pipe = tiny_pipeline("flux")
    schedule, before = learned(pipe, "flux"), prints(pipe)
    quantisation.quantize_(pipe.transformer, quantisation.Int8WeightOnlyConfig())
    assert max(abs(a - b) for a, b in zip(before, prints(pipe), strict=True)) < 0.1
    with l2c.enable_cache(pipe, schedule):
        pipe(**tiny_call("flux"))
    assert learned(pipe, "flux").cost.fraction <= 0.6


def test_a_pattern_looks_at_no_weights():
    pipe = tiny_pipeline("sd3")
    schedule = l2c.methods.interval(pipe, **call("sd3"))
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            weight.fill_(float("nan"))
    with l2c.enable_cache(pipe, schedule):
        pass


@pytest.mark.parametrize("before", [True, False])
def test_a_lora_is_told_and_not_refused_whenever_it_is_loaded(before):
    pipe = tiny_pipeline("flux")
    schedule, bare = learned(pipe, "flux"), prints(pipe)
    if before:
        add_lora(pipe)
    with l2c.enable_cache(pipe, schedule):
        if not before:
            add_lora(pipe)
        with pytest.warns(UserWarning, match="a LoRA was loaded .* l2c.check tells, and l2c.repair learns"):
            pipe(**tiny_call("flux"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe(**tiny_call("flux"))  # told once
    assert prints(pipe) == bare


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("sd3", diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)),
        ("sd3", diffusers.FlowMatchLCMScheduler()),
        ("pixart", diffusers.EulerAncestralDiscreteScheduler()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_noise_that_a_scheduler_draws_itself_is_the_same_with_and_without_a_schedule(name, scheduler):
    pipe = tiny_pipeline(name, scheduler)
    everything = l2c.methods.interval(pipe, every=1, **call(name))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert l2c.check(pipe, everything, **call(name)).error == 0
    assert torch.equal(torch.random.get_rng_state(), state)  # what others draw is not touched


def test_a_pipeline_that_never_repeats_is_refused():
    pipe = tiny_pipeline("sd3")
    generator = torch.Generator()
    pipe.transformer.register_forward_hook(
        lambda _module, _inputs, output: (output[0] + torch.randn(output[0].shape, generator=generator),)
    )
    with pytest.raises(
        l2c.ConfigError, match="two runs of StableDiffusion3Pipeline from the same noise differ"
    ):
        learned(pipe, "sd3")


def image_to_image(steps=12):
    base = tiny_pipeline("sd3")
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    options = {
        key: value for key, value in tiny_call("sd3", steps=steps).items() if key not in ("height", "width")
    }
    return base, pipe, {**options, "image": torch.zeros(1, 3, 16, 16)}


@pytest.mark.parametrize(("strength", "evaluations"), [(0.8, 10), (0.5, 6), (0.25, 3)])
def test_a_schedule_for_whole_runs_goes_on_reusing_where_image_to_image_begins(strength, evaluations):
    base, pipe, options = image_to_image()
    schedule = l2c.methods.interval(
        base, every=2, predictor="taylor-2", **call("sd3") | {"num_inference_steps": 12}
    )
    with l2c.enable_cache(pipe, schedule):
        pipe(**options, strength=strength)
        done = l2c.summary(pipe).models["transformer"]
    layers = len(schedule.layers)
    assert done.computed + done.reused == evaluations * layers
    first = 12 - evaluations
    planned = 1 + sum(1 for evaluation in range(first + 1, 12) if schedule.compute[evaluation, 0])
    assert (
        done.computed == planned * layers
    )  # nothing but the first evaluation is computed besides what is planned
    assert done.unplanned == 0


def test_image_to_image_learns_for_the_run_that_happens():
    _, pipe, options = image_to_image()
    options = {key: value for key, value in options.items() if key not in ("generator", "output_type")}
    schedule = l2c.learn(pipe, budget=0.6, settings=QUICK, strength=0.6, **options)
    assert schedule.num_evaluations == 8  # of 12
    assert schedule.cost.fraction <= 0.6
    found = l2c.check(pipe, schedule, strength=0.6, **options)
    assert found.error < 1.5 * schedule.provenance["held_out_error"]
    with pytest.raises(l2c.ConfigError, match="no solver is learned for a run that begins late"):
        l2c.learn(pipe, solver="auto", evaluations=3, settings=QUICK, strength=0.6, **options)


def test_a_plan_from_the_middle_keeps_weights_that_find_their_values():
    pipe = tiny_pipeline("sd3")
    schedule = l2c.methods.interval(
        pipe, every=2, predictor="taylor", **call("sd3") | {"num_inference_steps": 12}
    )
    plan = schedule.plan_from(4)
    assert min(evaluation for evaluation, _ in plan) == 5
    assert plan[5, 0] == ((4, 1.0),)  # one value so far
    assert plan[9, 0] == schedule.plan[9, 0]
    assert all(source >= 4 for terms in plan.values() for source, _ in terms)


@pytest.mark.parametrize("solver", [None, "auto"])
def test_another_picture_size_under_dynamic_shifting_is_told_and_not_refused(solver):
    pipe, options = tiny_pipeline("flux"), tiny_call("flux")
    learning = {"solver": "auto", "evaluations": 3} if solver else {"budget": 0.6}
    schedule = l2c.learn(pipe, settings=QUICK, **learning, **call("flux"))
    (note,) = notes_of(pipe, schedule, **{**options, "height": 128, "width": 128})
    error = schedule.provenance["held_out_error"]
    assert "made for height 16, width 16, and the run is of height 128, width 128; it works" in note
    assert f"expected to be off by about {error:.4f}" in note


def notes_of(pipe, schedule, **options):
    with l2c.enable_cache(pipe, schedule), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        pipe(**options)
    return [str(warning.message) for warning in warned if "it works" in str(warning.message)]


@pytest.mark.parametrize(
    ("name", "word", "made", "used"),
    [
        ("flux", "true_cfg_scale", 2.0, 4.5),
        ("qwen", "true_cfg_scale", 2.0, 4.5),
        ("wan2.2", "guidance_scale_2", 3.0, 1.5),  # which follows guidance_scale where it is not said
        ("pixart", "eta", 0.0, 0.5),
    ],
)
def test_other_words_for_guidance_are_part_of_the_run_and_of_its_warning(name, word, made, used, tmp_path):
    pipe = tiny_pipeline(name)
    l2c.learn(pipe, budget=0.6, settings=QUICK, **call(name)).save(tmp_path / "schedule.safetensors")
    schedule = l2c.CacheSchedule.load(tmp_path / "schedule.safetensors")
    assert dict(schedule.contract.run.call)[word] == made
    assert notes_of(pipe, schedule, **tiny_call(name)) == []
    (note,) = notes_of(pipe, schedule, **{**tiny_call(name), word: used})
    assert note.startswith(f"the schedule was made with {word}={made:g} and the run uses {used:g}; it works")


def test_a_pattern_fits_any_guidance():
    pipe = tiny_pipeline("flux")
    schedule = l2c.methods.interval(pipe, **call("flux"))
    assert notes_of(pipe, schedule, **{**tiny_call("flux"), "true_cfg_scale": 5.0}) == []


@pytest.mark.parametrize(
    ("name", "scheduler", "option"),
    [
        ("dit", diffusers.DDIMScheduler, {"clip_sample": False}),
        ("dit", diffusers.DDIMScheduler, {"set_alpha_to_one": False}),
        ("pixart", diffusers.UniPCMultistepScheduler, {"disable_corrector": [0, 1]}),
        ("pixart", diffusers.DPMSolverMultistepScheduler, {"lower_order_final": False}),
        ("sd3", diffusers.FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_change_a_schedulers_steps_are_another_run(name, scheduler, option):
    pipe = tiny_pipeline(name, scheduler())
    schedule = l2c.methods.interval(pipe, **call(name))
    pipe.scheduler = scheduler(**option)
    ((key, value),) = option.items()
    with l2c.enable_cache(pipe, schedule), pytest.raises(l2c.ContractError, match="the run uses") as refused:
        pipe(**tiny_call(name))
    assert f"{key}={value}" in str(refused.value)


def test_options_that_only_move_noise_levels_are_told_by_those():
    from l2c.hosts.pipeline.runs import settings_of

    assert (
        settings_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))
        == "default"
    )
    assert settings_of(diffusers.DDIMScheduler(beta_end=0.03, sample_max_value=2.0)) == settings_of(
        diffusers.DDIMScheduler()
    )


def test_a_transformer_replaced_while_the_cache_is_enabled_is_told_before_anything_runs():
    pipe, other = tiny_pipeline("sd3"), tiny_pipeline("sd3", seed=1)
    own, theirs = pipe.transformer, other.transformer
    bare = [pipe(**tiny_call("sd3")).images, other(**tiny_call("sd3")).images]
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, **call("sd3"))):
        cached = pipe(**tiny_call("sd3")).images
        pipe.transformer = theirs
        with pytest.raises(l2c.CacheStateError, match="another model was put in the place of .* transformer"):
            pipe(**tiny_call("sd3"))
        pipe.transformer = own
        assert torch.equal(pipe(**tiny_call("sd3")).images, cached)
    assert torch.equal(pipe(**tiny_call("sd3")).images, bare[0])
    pipe.transformer = theirs
    assert torch.equal(pipe(**tiny_call("sd3")).images, bare[1])


def test_a_wrapper_around_the_transformer_is_no_other_model():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            return self._modules["inner"] if name == "inner" else getattr(self._modules["inner"], name)

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    pipe = tiny_pipeline("sd3")
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, **call("sd3"))):
        cached = pipe(**tiny_call("sd3")).images
        own, pipe.transformer = pipe.transformer, Wrapper(pipe.transformer)
        assert torch.equal(pipe(**tiny_call("sd3")).images, cached)
        pipe.transformer = own


@pytest.mark.parametrize("solver", [None, "auto"])
def test_copies_and_pickles_of_a_pipeline_with_a_cache_are_refused(solver):
    pipe = tiny_pipeline("sd3")
    learning = {"solver": "auto", "evaluations": 3} if solver else {"budget": 0.6}
    schedule = l2c.learn(pipe, settings=QUICK, **learning, **call("sd3"))
    with l2c.enable_cache(pipe, schedule):
        with pytest.raises(l2c.CacheStateError, match=r"is not copied .* l2c.disable_cache"):
            copy.deepcopy(pipe)
        for saved in (pipe, pipe.transformer, pipe.scheduler):
            with pytest.raises(l2c.CacheStateError, match=r"is not pickled .* l2c.disable_cache"):
                pickle.dumps(saved)
        cached = pipe(**tiny_call("sd3")).images
    twin = pickle.loads(pickle.dumps(copy.deepcopy(pipe)))
    with l2c.enable_cache(twin, schedule):
        assert torch.equal(twin(**tiny_call("sd3")).images, cached)


def test_a_copy_of_the_transformer_alone_is_bare():
    pipe = tiny_pipeline("sd3")
    bare = pipe(**tiny_call("sd3")).images
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, **call("sd3"))):
        twin = copy.deepcopy(pipe.transformer)
    pipe.transformer = twin
    assert torch.equal(pipe(**tiny_call("sd3")).images, bare)


def test_taylor_forecasts_over_the_levels_of_ipndm():
    pipe = tiny_pipeline("pixart", diffusers.IPNDMScheduler())
    schedule = l2c.methods.interval(pipe, every=2, predictor="taylor", **call("pixart"))
    levels = schedule.contract.run.log_snrs
    assert list(levels) == sorted(set(levels))
    assert levels[3] == pytest.approx(
        torch.tensor(3**0.5).log().item()
    )  # betas are the sine of steps, alphas the rest
    assert schedule.contract.prediction_type == "epsilon"
    with l2c.enable_cache(pipe, schedule):
        assert pipe(**tiny_call("pixart")).images.isfinite().all()


@pytest.mark.parametrize(
    "make", [l2c.methods.interval, l2c.check, l2c.learn], ids=["interval", "check", "learn"]
)
def test_nothing_is_made_or_measured_on_a_pipeline_whose_cache_is_enabled(make):
    pipe = tiny_pipeline("sd3")
    schedule = l2c.methods.interval(pipe, **call("sd3"))
    given = (pipe, schedule) if make is l2c.check else (pipe,)
    with (
        l2c.enable_cache(pipe, schedule),
        pytest.raises(
            l2c.CacheStateError, match=r"call l2c.disable_cache\(pipe\) before another schedule is made"
        ),
    ):
        make(*given, **call("sd3"))
