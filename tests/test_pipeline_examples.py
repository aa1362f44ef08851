"""The examples of docs/pipelines.md run, on tiny models."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

import l2c

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_speed_up_pipeline(tmp_path, capsys):
    pytest.importorskip("transformers")
    from l2c.testing import tiny_pipeline

    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    example, out = load("speed_up_pipeline"), tmp_path / "fast"
    arguments = ["--pipeline", str(tmp_path / "pipe"), "--steps", "6", "--device", "cpu", "--out", str(out)]
    assert example.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "run of 6 evaluations, finished" in printed
    assert "with the schedule; error 0." in printed
    schedule = l2c.CacheSchedule.from_pretrained(out)
    assert schedule.provenance["drift"]["error"] > 0
    for name in ("bare", "cached"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size == (16, 16)
    assert example.main([*arguments, "--every", "0"]) == 1
    assert "the interval must be at least 1" in capsys.readouterr().err


def test_learn_for_pipeline(tmp_path, capsys):
    pytest.importorskip("transformers")
    from l2c.testing import tiny_pipeline

    tiny_pipeline("dit").save_pretrained(tmp_path / "pipe")
    example, out = load("learn_for_pipeline"), tmp_path / "fast"
    arguments = ["--pipeline", str(tmp_path / "pipe"), "--steps", "6", "--device", "cpu", "--out", str(out)]
    arguments += [
        "--labels",
        "1",
        "2",
        "--iterations",
        "2",
        "--trials",
        "2",
        "--examples",
        "4",
        "--batch-size",
        "1",
    ]
    assert example.main(arguments) == 0
    captured = capsys.readouterr()
    assert "learning: 2 of 2, error 0." in captured.err
    assert "of all 6; relative error 0." in captured.out
    assert "after learning, on 1 held-out examples" in captured.out
    assert l2c.CacheSchedule.from_pretrained(out).cost.fraction <= 0.5
    assert {path.name for path in out.iterdir()} >= {"bare.png", "cached.png"}
    assert not (out / "learning.pt").exists()
    again = [*arguments, "--repair", str(out), "--out", str(tmp_path / "repaired")]
    assert example.main(again) == 0
    learned, repaired = map(l2c.CacheSchedule.from_pretrained, (out, tmp_path / "repaired"))
    assert learned.compute.equal(repaired.compute)
    assert repaired.provenance["held_out_error_before"] == pytest.approx(
        learned.provenance["held_out_error"], abs=2e-5
    )
    free = [*arguments, "--evaluations", "3", "--out", str(tmp_path / "free")]
    assert example.main(free) == 0
    assert "the work of 3.0 evaluations" in capsys.readouterr().out
    assert l2c.CacheSchedule.from_pretrained(tmp_path / "free").contract.run.weights is not None
    assert example.main([*arguments, "--budget", "0"]) == 1
    assert "budgets are fractions of the MACs" in capsys.readouterr().err


def test_compare_on_pipeline(tmp_path, capsys):
    pytest.importorskip("transformers")
    from l2c.testing import tiny_pipeline

    pipe = tiny_pipeline("dit")
    pipe.save_pretrained(tmp_path / "pipe")
    call = {"class_labels": [1], "num_inference_steps": 6}
    l2c.methods.interval(pipe, every=6, predictor="copy", **call).save_pretrained(tmp_path / "own")
    arguments = [
        "--pipeline",
        str(tmp_path / "pipe"),
        "--steps",
        "6",
        "--reference-steps",
        "12",
        "--device",
        "cpu",
    ]
    arguments += ["--seeds", "0", "1", "--repetitions", "1", "--schedule", str(tmp_path / "own")]
    assert load("compare_on_pipeline").main(arguments) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["evaluations", "s/picture", "error", "p95", "worst"]
    figures = {row[:44].strip(): [float(figure) for figure in row[44:].split()] for row in rows}
    assert list(figures) == [
        "everything computed", "fewer steps, 4", "fewer steps, 3", "fewer steps, 2", "every 2, copy",
        "every 2, taylor", "every 3, copy", "every 3, taylor", "own",
    ]  # fmt: skip
    assert figures["everything computed"][0] == 6
    assert figures["own"][0] < figures["every 3, copy"][0] < figures["every 2, copy"][0] < 6
    assert 0 < figures["everything computed"][2] < figures["fewer steps, 2"][2]
    assert all(error <= p95 <= worst for _, _, error, p95, worst in figures.values())
    arguments[-1] = str(tmp_path / "nothing")
    assert load("compare_on_pipeline").main(arguments) == 1
    assert "error: " in capsys.readouterr().err


def test_add_a_model(capsys):
    assert load("add_a_model").main() == 0
    printed = capsys.readouterr().out
    assert "32 layers computed, 32 reused" in printed
    assert "at 50% of the multiply-accumulates" in printed


def test_first_example_of_the_readme(scenes_pipeline, tmp_path, monkeypatch):
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^<!-- pipeline -->\n```python\n(.*?)\n```$", text, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    quick = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=4, trials=1)
    learn = l2c.learn
    monkeypatch.setattr(l2c, "learn", lambda *given, **how: learn(*given, settings=quick, **how))
    names = {"l2c": l2c}
    exec(block, names)
    assert (tmp_path / "scene.png").is_file()
    schedule = l2c.load_schedule("half.safetensors")
    assert schedule.num_evaluations == 14
    assert schedule.contract.run.weights is not None
    assert type(names["pipe"].scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"


@pytest.mark.slow
def test_examples_of_the_pipelines_page(scenes_pipeline, tmp_path, monkeypatch):
    """Blocks that are marked run one after another, on a small pipeline, and learn hardly anything."""
    import diffusers

    text = (EXAMPLES.parent / "docs" / "pipelines.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- runs -->\n```python\n(.*?)\n```$", text, flags=re.M | re.S)
    assert len(blocks) > 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n", encoding="utf-8")
    pipe = l2c.load_pipeline("l2c:scenes-sd3", quiet=True)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *_, **__: pipe)
    quick = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=4, trials=1)
    for name in ("learn", "repair", "estimate_learning"):
        whole = getattr(l2c, name)
        monkeypatch.setattr(
            l2c, name, lambda *given, whole=whole, **how: whole(*given, settings=quick, **how)
        )
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["begun_late"].num_evaluations == 12
    assert names["drift"].error > 0
    assert (tmp_path / "folder" / "schedule.safetensors").is_file()


def test_example_of_a_modular_pipeline(tmp_path, monkeypatch):
    modular_pipelines = pytest.importorskip("diffusers.modular_pipelines")
    from l2c.testing.modular import tiny_modular

    text = (EXAMPLES.parent / "docs" / "pipelines.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^<!-- runs: modular -->\n```python\n(.*?)\n```$", text, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a photo of a cat\nthe green house\n", encoding="utf-8")
    monkeypatch.setattr(modular_pipelines.FluxModularPipeline, "default_sample_size", 8)
    quick = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=4, trials=1)
    learn = l2c.learn
    monkeypatch.setattr(l2c, "learn", lambda *given, **how: learn(*given, settings=quick, **how))
    names = {"l2c": l2c, "parts": tiny_modular("flux").components}
    exec(block, names)
    assert names["image"].size == (16, 16)
    assert names["schedule"].provenance["pipeline"] == "FluxModularPipeline"
