"""Comparisons of diffusers pipelines: everything runs on the pipeline itself, and leaves nothing behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from l2c.cli.main import run as l2c_command
from l2c.compare.baselines import BASELINES, running
from l2c.compare.config import CompareConfig, to_plain
from l2c.compare.plan import plan
from l2c.compare.runner import Comparison
from l2c.errors import ConfigError
from l2c.evaluation.metrics import rmse
from l2c.evaluation.registry import _METRICS, register_metric
from l2c.hosts.pipeline.decoding import PipelineDecoder
from l2c.hosts.pipeline.host import PipelineHost
from l2c.methods.base import all_computed, pattern
from l2c.report.compare_page import compare_page
from l2c.report.compare_table import comparison_text
from l2c.report.comparison_folder import read_comparison
from l2c.testing import tiny_call, tiny_pipeline

HEAD = """
images = 3
timing_images = 1
repetitions = 2
shown_images = 2
metrics = ["rmse", "psnr"]
reference = {{ steps = 24 }}

[model]
pipeline = "tiny:{name}"
{prompts}
call = {{ guidance_scale = 2.5 }}

[[base]]
steps = 8
budgets = [0.6]
"""

METHODS = """
[[base]]
steps = 6
scheduler = "{rival}"
budgets = [0.5]

[[method]]
name = "fewer-steps"
settings = [{{}}, {{ to_solver = "{rival}" }}, {{ to_solver = "no such" }}]
bases = ["steps-8"]

[[method]]
name = "interval"

[[method]]
name = "smoothcache"
settings = [{{ num_images = 1 }}]
bases = ["steps-8"]

[[method]]
name = "learned"
settings = [{{ path = "{learned}" }}]
budgets = []
bases = ["steps-8"]

[[method]]
name = "diffusers-taylorseer"
settings = [{{ cache_interval = 2, disable_cache_before_step = 2 }}]
bases = ["steps-8"]

[[method]]
name = "diffusers-mag"
settings = [{{ threshold = 10.0, max_skip_steps = 2 }}]
bases = ["steps-8"]

[[method]]
name = "diffusers-first-block"
settings = [{{ threshold = 10.0 }}]
bases = ["steps-8"]
"""
RIVALS = {"sd3": "unipc, shift 3", "pixart": "unipc, logsnr"}
PROMPTS = {"sd3": "", "pixart": 'prompts = ["a photo of a cat", "the green house"]'}


def host(name: str, steps: int = 8) -> PipelineHost:
    call = tiny_call(name, steps)
    for left_out in ("generator", "output_type"):
        del call[left_out]
    return PipelineHost.of(tiny_pipeline(name), **call)


@pytest.fixture(scope="module", params=["sd3", "pixart"])
def compared_pipeline(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """Name of a pipeline, the file of its comparison, and the folder of that."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    solved = host(name).solver_starts(4)[0]
    learned = pattern(solved, all_computed(solved), {"method": "learned", **solved.provenance})
    learned.save(folder / "auto-4.safetensors")
    file = folder / "compare.toml"
    text = (HEAD + METHODS).format(
        name=name, rival=RIVALS[name], prompts=PROMPTS[name], learned=folder / "auto-4.safetensors"
    )
    file.write_text(text)
    Comparison(CompareConfig.load(file), folder / "out", "cpu").run()
    return name, file, folder / "out"


def results(folder: Path) -> dict[str, dict]:
    return {p.stem: json.loads(p.read_text())["results"] for p in sorted(folder.glob("records/*.json"))}


def test_every_variant_is_recorded(compared_pipeline):
    name, file, out = compared_pipeline
    config, found = CompareConfig.load(file), results(out)
    assert set(found) == {variant.id for variant in plan(config)}
    assert CompareConfig.from_plain(json.loads(json.dumps(to_plain(config)))) == config
    rival = RIVALS[name].replace(",", "-").replace(" ", "-")
    unable = {key for key, value in found.items() if "failed" in value}
    expected = {"steps-8--fewer-steps--to-solver-no-such--b0.6"}
    if name == "sd3":  # diffusers' own cache does not know that the last block drops the text
        expected.add("steps-8--diffusers-first-block--1")
    assert unable == expected
    assert all(value["unit"] == "absolute" for key, value in found.items() if key not in unable)
    full = found["steps-8--full"]
    assert full["metrics"]["psnr"] == [None] * 3
    assert (full["evaluations"], full["macs"]) == (8, full["full_macs"])
    assert found["steps-8--learned--path-auto-4"]["run"]["steps"] == 4
    fewer, based = (
        found[f"steps-8--fewer-steps--to-solver-{rival}--b0.6"],
        found[f"{rival.replace('--', '-')}-6--full"],
    )
    assert (fewer["run"]["solver"], fewer["run"]["steps"]) == (RIVALS[name], 5)
    assert (based["run"]["solver"], based["run"]["steps"]) == (RIVALS[name], 6)
    assert fewer["run"]["spacing"] == based["run"]["spacing"]
    for cache in ("diffusers-taylorseer--1", "diffusers-mag--1", "interval--b0.6"):
        assert 0.3 < found[f"steps-8--{cache}"]["macs"] / full["full_macs"] < 0.9


def test_errors_are_of_decoded_pictures_and_of_latents(compared_pipeline):
    name, _, out = compared_pipeline
    pipe = tiny_pipeline(name)
    call = {**tiny_call(name, 8), "guidance_scale": 2.5}
    for key in ("generator", "output_type"):
        del call[key]
    if name == "pixart":
        del call["prompt"]
        call["prompts"] = ["a photo of a cat", "the green house"]
    mine = PipelineHost.of(pipe, **call)
    examples, decode = mine.seeded(range(2_000_000, 2_000_003)), PipelineDecoder(pipe, mine.call)
    with torch.no_grad():
        made, fine = mine.sample(examples), mine.reference(24).sample(examples)
    pictures = [
        torch.cat([decode(row[None], c) for row, c in zip(latents, examples.conditions, strict=True)])
        for latents in (made, fine)
    ]
    metrics = results(out)["steps-8--full"]["metrics"]
    assert metrics["rmse"] == pytest.approx(rmse(*pictures).tolist(), rel=1e-5)
    assert metrics["latent-rmse"] == pytest.approx(rmse(made, fine, "relative").tolist(), rel=1e-5)


def test_nothing_is_run_again(compared_pipeline, monkeypatch):
    _, file, out = compared_pipeline
    unable = {key for key, value in results(out).items() if "failed" in value}
    measure, notes = Comparison._measure, list[str]()

    def only_unable(self, variant):
        assert variant.id in unable
        return measure(self, variant)

    monkeypatch.setattr(Comparison, "_measure", only_unable)
    monkeypatch.setattr("l2c.compare.rounds.interleave", lambda *_, **__: pytest.fail("timed again"))
    before = results(out)
    Comparison(CompareConfig.load(file), out, "cpu", notes.append).run()
    assert results(out) == before
    assert sum("cannot be run: " in text for text in notes) == len(unable)


def test_interrupted_comparison_ends_with_the_same_figures(compared_pipeline, tmp_path, monkeypatch):
    _, file, out = compared_pipeline
    record = Comparison._record

    def interrupted(self, variant, *rest):
        if variant.method == "smoothcache":
            raise KeyboardInterrupt
        return record(self, variant, *rest)

    monkeypatch.setattr(Comparison, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Comparison(CompareConfig.load(file), tmp_path, "cpu").run()
    monkeypatch.undo()
    assert 0 < len(results(tmp_path)) < len(results(out))
    Comparison(CompareConfig.load(file), tmp_path, "cpu").run()
    assert results(tmp_path) == results(out)


def test_report_and_page_show_it(compared_pipeline, capsys):
    name, _, out = compared_pipeline
    data = read_comparison(out)
    assert data.unit == "absolute"
    assert all(len(variant.seconds) == 2 for variant in data.variants)
    assert len(data.decode_s) == 2
    text, page = comparison_text(data), compare_page(data)
    assert "cannot be run here" in text
    assert "unknown solver of" in text
    assert f"<h1>tiny:{name}: faster variants, compared</h1>" in page
    assert "guidance 2.5" in page
    assert "error of latents, relative" in page
    assert "prompts take turns" in page
    assert page.count("<tr class=") == len(data.variants)
    assert f"{RIVALS[name]}, 5 steps" in page
    assert 'class="above" src="data:image/png' in page
    assert l2c_command(["report", str(out), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["variants"]) == {v.id for v in data.variants}


def attributes(pipe) -> dict[str, object]:
    """Everything that a library could have left on a pipeline, its models or their classes."""
    found: dict[str, object] = {"pipe": dict(vars(pipe)), "class": dict(vars(type(pipe)))}
    for name, module in pipe.transformer.named_modules():
        found[name] = {
            key: list(value) if isinstance(value, dict) else value for key, value in vars(module).items()
        }
        found[type(module).__name__] = dict(vars(type(module)))
    return found


SETTINGS = {
    "diffusers-taylorseer": {"cache_interval": 2, "disable_cache_before_step": 2},
    "diffusers-first-block": {"threshold": 10.0},
    "diffusers-mag": {"threshold": 10.0, "max_skip_steps": 2, "mag_ratios": [1.0] * 8},
    "diffusers-pyramid": {"spatial_attention_block_skip_range": 2},
    "diffusers-faster": {"unconditional_batch_skip_range": 2},
    "freqca": {"interval": 3},
    "cache-dit": {"Fn_compute_blocks": 1, "residual_diff_threshold": 10.0, "max_warmup_steps": 2},
}
CALIBRATORS = [{"taylorseer_order": 1}, {"calibrator": "foca"}, {"calibrator": "dmd"}]


@pytest.mark.parametrize("pipeline", ["sd3", "pixart", "flux"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_caches_of_others_leave_nothing_on_a_pipeline(name, pipeline):
    baseline, mine = BASELINES[name], host(pipeline)
    if not baseline.installed:
        pytest.skip(f"{name} is not installed")
    examples, failed = mine.seeded([3]), None
    with torch.no_grad():
        full = mine.sample(examples)
        before = attributes(mine.target)
        try:
            with running(mine) as other, baseline.enable(other, SETTINGS[name]) as around:
                first = around(lambda: other.sample(examples))
                second = around(lambda: other.sample(examples))
        except Exception as error:  # what does not run on this transformer
            failed = error
        assert attributes(mine.target) == before
        assert torch.equal(mine.sample(examples), full)
    never = {("sd3", "diffusers-first-block"), ("sd3", "diffusers-faster"), ("flux", "diffusers-faster")}
    if (pipeline, name) in never:
        assert failed is not None
        return
    assert failed is None
    assert torch.equal(first, second)
    if (pipeline, name) != ("flux", "diffusers-pyramid"):  # timesteps of 0 to 1, so that none is in its range
        assert not torch.equal(first, full)


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=str)
def test_calibrators_of_cache_dit_run_on_sd3(calibrator):
    if not BASELINES["cache-dit"].installed:
        pytest.skip("cache-dit is not installed")
    mine = host("sd3")
    examples = mine.seeded([3])
    settings = {**SETTINGS["cache-dit"], **calibrator}
    with torch.no_grad(), running(mine) as other, BASELINES["cache-dit"].enable(other, settings) as around:
        assert around(lambda: other.sample(examples)).isfinite().all()


def test_schedule_of_other_weights_is_recorded_as_such(tmp_path):
    mine = host("sd3")
    schedule = pattern(mine, all_computed(mine), {})
    contract = mine.contract()
    other = tuple(value * 1.5 for value in contract.fingerprint)
    replace(schedule, contract=replace(contract, fingerprint=other)).save(tmp_path / "other.safetensors")
    text = HEAD.format(name="sd3", prompts="").replace("repetitions = 2", "repetitions = 1")
    path = tmp_path / "compare.toml"
    method = f'[[method]]\nname = "learned"\nsettings = [{{ path = "{tmp_path}/other.safetensors" }}]\nbudgets = []\n'
    path.write_text(text + method)
    Comparison(CompareConfig.load(path), tmp_path / "out", "cpu").run()
    found = results(tmp_path / "out")
    assert "weights" in found["steps-8--learned--path-other"]["failed"]


@pytest.fixture
def brightness():
    """A metric of prompts: whether a picture is as bright as its prompt is long."""
    register_metric(
        "brightness", lambda images, prompts: images.mean((1, 2, 3)) * len(prompts[0]), of_prompts=True
    )
    yield
    del _METRICS["brightness"]


@pytest.mark.usefixtures("brightness")
def test_metric_of_prompts_is_given_them(tmp_path):
    path = tmp_path / "compare.toml"
    (tmp_path / "prompts.txt").write_text("a photo of a cat\n\nthe green house\n")
    text = HEAD.format(name="pixart", prompts=f'prompts = "{tmp_path}/prompts.txt"')
    path.write_text(text.replace('"psnr"', '"brightness"').replace("repetitions = 2", "repetitions = 1"))
    config = CompareConfig.load(path)
    assert config.pipeline is not None
    assert config.pipeline.prompts == ("a photo of a cat", "the green house")
    Comparison(config, tmp_path / "out", "cpu").run()
    assert len(results(tmp_path / "out")["steps-8--full"]["metrics"]["brightness"]) == 3
    assert "brightness" in compare_page(read_comparison(tmp_path / "out"))
    path.write_text(path.read_text().replace("tiny:pixart", "tiny:sd3").replace("prompts = ", "# "))
    with pytest.raises(
        ConfigError, match="brightness scores pictures against their prompts, and tiny:sd3 is given"
    ):
        Comparison(CompareConfig.load(path), tmp_path / "sd3", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("steps = 8", 'steps = 8\nsolver = "ddim"'),
            "a base of a pipeline has steps and perhaps a scheduler",
        ),
        (("steps = 8", "steps = 0"), "the number of steps of a base must be at least 1"),
        (("guidance_scale = 2.5", "num_inference_steps = 3"), "the number of steps is that of each base"),
        (("tiny:pixart", "nowhere"), "what is nowhere to make? give prompts"),
        (("images = 3", "images = 3\nguidance = 2.0"), "its guidance is guidance_scale in its call"),
        (("[model]", '[model]\nprompts = "no-such.txt"'), "'no-such.txt' is no text file with prompts"),
        (("pipeline = ", "pipline = "), "unknown setting 'pipline'; did you mean 'pipeline'"),
    ],
)
def test_wrong_configurations_are_sentences(tmp_path, change, message):
    path = tmp_path / "compare.toml"
    path.write_text(HEAD.format(name="pixart", prompts="").replace(*change, 1))
    with pytest.raises(ConfigError) as caught:
        CompareConfig.load(path)
    assert message in str(caught.value)


def test_pipeline_that_is_there_already_may_have_no_fine_solution(tmp_path):
    from diffusers import EulerAncestralDiscreteScheduler

    path, notes = tmp_path / "compare.toml", list[str]()
    path.write_text(HEAD.format(name="pixart", prompts=""))
    mine = host("pixart", 8)
    mine = PipelineHost.of(
        tiny_pipeline("pixart", EulerAncestralDiscreteScheduler()), conditions=mine.conditions, **mine.call
    )
    Comparison(CompareConfig.load(path), tmp_path / "out", "cpu", notes.append, host=mine).run()
    assert notes[0].startswith(
        "no fine solution can be had under EulerAncestralDiscreteScheduler; errors are dis"
    )
    assert results(tmp_path / "out")["steps-8--full"]["metrics"]["rmse"] == [0.0] * 3


def test_unknown_scheduler_names_those_that_there_are(tmp_path):
    path = tmp_path / "compare.toml"
    base = '[[base]]\nsteps = 4\nscheduler = "unipc, logsn"\n'
    path.write_text(HEAD.format(name="pixart", prompts="") + base)
    with pytest.raises(ConfigError, match="unknown scheduler 'unipc, logsn'; did you mean 'unipc, logsnr'"):
        Comparison(CompareConfig.load(path), tmp_path / "out", "cpu").run()
    path.write_text(path.read_text().replace("unipc, logsn", "EulerDiscreteScheduler"))
    Comparison(CompareConfig.load(path), tmp_path / "other", "cpu").run()
    assert (
        results(tmp_path / "other")["EulerDiscreteScheduler-4--full"]["run"]["solver"]
        == "EulerDiscreteScheduler"
    )


@pytest.mark.parametrize("name", ["sd3", "pixart", "flux", "dit"])
def test_decoded_latents_are_the_pipelines_own_pictures(name):
    mine = host(name, 3)
    with torch.no_grad():
        latents = mine.sample(mine.seeded([3]))
    scheduler = mine.target.scheduler
    mine_of = PipelineDecoder(mine.target, mine.call)(latents, mine.conditions[0])
    assert mine.target.scheduler is scheduler
    kind = "np" if name == "dit" else "pt"
    call = {**mine.call, **mine.conditions[0], "output_type": kind, "return_dict": False}
    own = torch.as_tensor(mine.target(**call, generator=torch.Generator().manual_seed(3))[0])
    own = own.permute(0, 3, 1, 2) if name == "dit" else own
    torch.testing.assert_close(mine_of, own * 2 - 1, atol=1e-6, rtol=0)


def test_pipeline_in_a_folder_is_loaded(tmp_path):
    tiny_pipeline("pixart").save_pretrained(tmp_path / "pipe")
    path = tmp_path / "compare.toml"
    call = "call = { height = 16, width = 16, use_resolution_binning = false, clean_caption = false, "
    text = HEAD.format(name="pixart", prompts='prompts = ["a photo of a cat"]').replace("call = { ", call)
    path.write_text(
        text.replace("tiny:pixart", str(tmp_path / "pipe")).replace("repetitions = 2", "repetitions = 1")
    )
    Comparison(CompareConfig.load(path), tmp_path / "out", "cpu").run()
    assert results(tmp_path / "out")["steps-8--full"]["unit"] == "absolute"
    assert read_comparison(tmp_path / "out").model == str(tmp_path / "pipe")
