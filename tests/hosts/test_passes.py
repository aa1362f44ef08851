"""Passes of guidance with rows of their own in pipelines: one call for both, in either order, or a call for each."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch

import l2c
from l2c.cache.patch import MethodPatch
from l2c.errors import ConfigError
from l2c.hosts.pipeline.rows import half, order_of, sample_of, with_sample
from l2c.schedule.branches import difference_column, join_branches
from l2c.schedule.forecast import Predictor
from l2c.testing import tiny_call, tiny_interval, tiny_pipeline, tiny_run

STEPS = 6
KINDS = ("sd3", "dit", "wan", "qwen")  # unconditional half first, conditional half first, and a call for each
RUNS = (0, 1, 4)


@pytest.fixture(scope="module", params=KINDS)
def named(request):
    """A pipeline with its name; no test may change it."""
    pipe = tiny_pipeline(request.param)
    bare = tiny_run(pipe, request.param)
    yield pipe, request.param
    assert torch.equal(tiny_run(pipe, request.param), bare)


def call_of(name, **changes):
    return {k: v for k, v in tiny_call(name, **changes).items() if k not in ("generator", "output_type")}


def runs_at(*places):
    runs = torch.zeros(STEPS, dtype=torch.bool)
    runs[list(places)] = True
    return runs


def apart(one, runs=None, cond=None, predictor=None):
    """A schedule with a row for each pass; the unconditional one as in `one`, where it runs."""
    runs = torch.ones(STEPS, dtype=torch.bool) if runs is None else runs
    cond = one.compute if cond is None else cond
    compute = join_branches(cond, one.compute & runs[:, None], runs)
    return replace(one, compute=compute, predictor=predictor or one.predictor)


def irregular(pipe, name, predictor="taylor-2"):
    """Passes that are computed in part, forecast and derived in every combination."""
    base, generator = tiny_interval(pipe, name, predictor=predictor), torch.Generator().manual_seed(3)
    cond, uncond = (torch.rand(base.compute.shape, generator=generator) < 0.5 for _ in range(2))
    for part in (cond, uncond):
        part[0] = part[3] = True
    return replace(base, compute=join_branches(cond, uncond, runs_at(0, 1, 3, 4)))


def used(pipe, name, schedule, **changes):
    with l2c.enable_cache(pipe, schedule) as cache:
        made = tiny_run(pipe, name, **changes)
        (found,) = cache.summary().models.values()
    return made, found


@pytest.mark.parametrize("predictor", ["copy", "taylor-2"])
def test_passes_with_equal_rows_make_the_same_bits_as_one_mask(named, predictor):
    one = tiny_interval(*named, predictor=predictor)
    (made, found), (expected, _) = used(*named, apart(one)), used(*named, one)
    assert torch.equal(made, expected)
    assert (found.derived, found.unplanned) == (0, 0)


@pytest.mark.parametrize("images", [1, 2])
def test_a_derived_pass_follows_the_continued_difference(named, images):
    pipe, name = named
    one = tiny_interval(pipe, name)
    coefficients = torch.zeros(STEPS, 2 * len(one.layers) + 1, 2)
    coefficients[..., 0], coefficients[:, -1] = 1.0, torch.tensor([1.5, -0.5])
    whole = replace(one, compute=torch.ones_like(one.compute))
    schedule = apart(whole, runs_at(*RUNS), predictor=Predictor("linear", coefficients=coefficients))
    made, found = used(pipe, name, schedule, images=images)

    differences, calls = [], []

    def forward(original, *args, **kwargs):
        """The whole network, with the unconditional prediction put in by hand."""
        output = original(*args, **kwargs)
        sample = sample_of(output)
        batched = name in ("sd3", "dit")
        calls.append(sample)
        evaluation, second = len(calls) - 1 if batched else (len(calls) - 1) // 2, len(calls) % 2 == 0
        if not batched and not second:
            return output
        cond, uncond = (calls[-2], sample) if not batched else sample.chunk(2)[:: 1 if name == "dit" else -1]
        if evaluation in RUNS:
            differences.insert(0, cond - uncond)
            return output
        last, before = differences[:2]
        derived = cond - (1.5 * last - 0.5 * before)
        order = (cond, derived) if name == "dit" else (derived, cond)
        return with_sample(output, derived if not batched else torch.cat(order))

    patch = MethodPatch(pipe.transformer, "forward", forward)
    expected = tiny_run(pipe, name, images=images)
    patch.remove()
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert found.derived == STEPS - len(RUNS)


def test_only_what_a_pass_computes_is_called(named):
    pipe, name = named
    schedule = apart(tiny_interval(pipe, name), runs_at(0, 4))
    layer = pipe.transformer.get_submodule(schedule.layers.layers[0].module_path)
    first, rows = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear)), []
    handle = first.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    _, found = used(pipe, name, schedule)
    handle.remove()
    assert rows == ([2, 1, 2] if name in ("sd3", "dit") else [1, 1, 1, 1, 1])
    assert found.calls == {"cond": STEPS, "uncond": 2}
    assert (found.derived, found.unplanned) == (STEPS - 2, 0)
    assert found.fraction == pytest.approx(schedule.cost.fraction)


def test_every_combination_samples_saves_and_loads(named, tmp_path):
    schedule = irregular(*named)
    made, found = used(*named, schedule)
    assert made.isfinite().all()
    assert found.unplanned == 0
    assert found.fraction == pytest.approx(schedule.cost.fraction)
    schedule.save(tmp_path / "schedule.safetensors")
    again, _ = used(*named, l2c.CacheSchedule.load(tmp_path / "schedule.safetensors"))
    assert torch.equal(made, again)


def test_two_pictures_of_a_batch_do_not_mix(named):
    pipe, name = named
    schedule = irregular(pipe, name)
    both, _ = used(pipe, name, schedule, images=2)
    alone, _ = used(pipe, name, schedule)
    if name in ("dit", "wan", "sd3"):  # the first of two has other prompts otherwise
        torch.testing.assert_close(both[:1], alone, rtol=1e-2, atol=0.05 * float(alone.abs().max()))
    assert not torch.allclose(both[:1], both[1:])


@pytest.mark.parametrize("name", ["sd3", "qwen"])
def test_without_guidance_the_conditional_rows_are_followed(name):
    pipe = tiny_pipeline(name)
    schedule = irregular(pipe, name)
    off = {"true_cfg_scale": 1.0} if name == "qwen" else {"guidance_scale": 1.0}
    count = len(schedule.layers)
    alone = replace(schedule, compute=schedule.compute[:, :count]).with_any_weights()
    free = replace(schedule.contract, run=replace(schedule.contract.run, guidance=None, call=()))
    for images in (1, 2):
        made, found = used(pipe, name, replace(schedule, contract=free), images=images, **off)
        expected, _ = used(pipe, name, replace(alone, contract=free), images=images, **off)
        assert torch.equal(made, expected)
        assert (set(found.calls), found.derived) == ({"cond"}, 0)


@pytest.mark.parametrize("name", ["sd3", "dit", "pixart", "sana", "wan", "qwen", "flux"])
def test_a_pipeline_whose_passes_are_told_apart_says_so(name):
    pipe = tiny_pipeline(name)
    assert l2c.host_of(pipe, **call_of(name)).has_branches
    off = {key: 1.0 for key in ("true_cfg_scale", "guidance_scale") if key in call_of(name)}
    assert not l2c.host_of(pipe, **{**call_of(name), **off}).has_branches


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated"
)  # the compiler, when it is loaded
def test_where_passes_cannot_be_run_apart_a_sentence_says_so():
    pipe = tiny_pipeline("sd3")
    schedule = irregular(pipe, "sd3")
    with l2c.enable_cache(pipe, schedule):
        pipe.transformer.compile()
        with pytest.raises(
            ConfigError, match="cannot run apart once its transformer is compiled; learn one with"
        ):
            tiny_run(pipe, "sd3")
    assert not l2c.host_of(pipe, **call_of("sd3")).has_branches
    pipe.transformer._compiled_call_impl = None
    two = tiny_pipeline("wan2.2")
    assert not l2c.host_of(two, **call_of("wan2.2")).has_branches
    with pytest.raises(ConfigError, match="cannot run apart on several transformers"):
        l2c.enable_cache(two, apart(tiny_interval(two, "wan2.2"), runs_at(*RUNS)))
    late = diffusers.StableDiffusion3Img2ImgPipeline(**pipe.components)
    late.set_progress_bar_config(disable=True)
    image = {"image": torch.zeros(1, 3, 16, 16), "strength": 0.5, "height": 16, "width": 16}
    with (
        l2c.enable_cache(late, schedule, any_run=True),
        pytest.raises(
            ConfigError, match="cannot run apart in a run that begins late, as image to image does"
        ),
    ):
        tiny_run(late, "sd3", **image)


QUICK = l2c.LearnSettings(
    iterations=2,
    batch_size=1,
    num_examples=4,
    trials=12,
    trial_examples=1,
    reference_steps=8,
    validate_every=0,
)


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_such_schedules_are_found_learned_and_repaired_through_a_pipeline(name, favoured, tmp_path):
    pipe, call = tiny_pipeline(name), call_of(name, steps=8)
    schedule = l2c.learn(pipe, budget=0.6, settings=QUICK, **call)
    assert schedule.has_branches
    assert 0.45 < schedule.cost.fraction <= 0.6
    column = difference_column(len(schedule.layers))
    derived = [place for place in schedule.plan if place[1] == column]
    assert derived
    schedule.save(tmp_path / "schedule.safetensors")
    with l2c.enable_cache(pipe, tmp_path / "schedule.safetensors") as cache:
        assert tiny_run(pipe, name, steps=8).isfinite().all()
        (found,) = cache.summary().models.values()
    assert found.derived == len(derived)
    assert found.fraction == pytest.approx(schedule.cost.fraction)
    again = l2c.repair(pipe, schedule, settings=QUICK, **call)
    assert torch.equal(again.compute, schedule.compute)
    assert again.provenance["held_out_error_before"] == pytest.approx(
        schedule.provenance["held_out_error"], abs=2e-5
    )
    off = replace(QUICK, branches=False)
    assert not l2c.learn(pipe, budget=0.6, settings=off, **call).has_branches


@pytest.mark.parametrize("recompute", [False, "evaluations"])
def test_the_continued_difference_has_gradients(recompute):
    from l2c.learning.student import Student

    pipe = tiny_pipeline("sd3")
    host = l2c.host_of(pipe, **call_of("sd3")).solver_starts(STEPS)[0]
    cond = torch.ones(STEPS, len(host.table), dtype=torch.bool)
    cond[[2, 5]] = False
    runs = runs_at(0, 1, 3)
    student = Student(host, join_branches(cond, cond, runs), 3, free_solver=True, recompute=recompute)
    with host.prepared(), student.attached():
        student(host.examples(1, 0, "test")).square().mean().backward()
    moved = student.forecasts.added.grad.abs().sum(-1) > 0
    assert moved[[2, 4, 5], -1].all()
    assert moved[2, : len(host.table)].any()


def test_a_solver_is_learned_with_passes_apart(favoured):
    pipe = tiny_pipeline("sd3")
    call = {key: value for key, value in call_of("sd3").items() if key != "num_inference_steps"}
    schedule = l2c.learn(
        pipe, solver="auto", evaluations=3, settings=QUICK, num_inference_steps=STEPS, **call
    )
    assert schedule.provenance["structure"] == "7 evaluations, passes apart"
    assert schedule.cost.fraction * schedule.num_evaluations <= 3
    with l2c.enable_cache(pipe, schedule):
        assert tiny_run(pipe, "sd3", steps=7).isfinite().all()


@pytest.mark.parametrize("scale", [1.01, 1.5, 4.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", ["plain", "negated", "rescaled"])
def test_the_conditional_half_counts_for_more(scale, dtype, made):
    generator = torch.Generator().manual_seed(0)
    cond = torch.randn(2, 4, 16, 16, generator=generator)
    uncond = cond + 0.1 * torch.randn(cond.shape, generator=generator)
    cond, uncond = cond.to(dtype), uncond.to(dtype)
    guided = uncond + scale * (cond - uncond)
    if made == "rescaled":
        guided = guided * (cond.norm(dim=1, keepdim=True) / guided.norm(dim=1, keepdim=True))
    guided = -guided if made == "negated" else guided
    for order, rows in ((("cond", "uncond"), (cond, uncond)), (("uncond", "cond"), (uncond, cond))):
        both = torch.cat(rows)
        assert order_of(both, guided) == order
        assert order_of(both, torch.cat([guided, guided])) == order
        assert order_of(torch.cat([both, both], dim=1), guided) == order  # with a learned variance
        assert order_of(both, both) == ("cond",)


def test_a_half_whose_place_cannot_be_told_is_refused():
    both = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="which half of the rows of a call is the conditional pass"):
        order_of(both, torch.zeros(1, 3, 5, 5))


def test_every_batched_argument_is_split():
    rows = torch.arange(4.0)
    given = {
        "hidden_states": rows[:, None],
        "time": torch.tensor(3.0),
        "more": [rows, {"sizes": (rows, None)}],
    }
    found = half(given, 4, 1)
    assert torch.equal(found["hidden_states"], rows[2:, None])
    assert found["time"] == 3
    assert torch.equal(found["more"][1]["sizes"][0], rows[2:])
    assert half(["a", "b"], 2, 0) == ["a"]
    assert half((16, 16), 2, 0) == (16, 16)
