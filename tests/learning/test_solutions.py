"""Fine-step solutions are taken from earlier runs: the very same ones, and only where the model still makes them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

import l2c
from l2c.hosts.pipeline.conditions import SeededConditions
from l2c.learning import solutions
from l2c.learning.session import Session, solutions_folder
from l2c.testing import tiny_call, tiny_dit, tiny_pipeline

FEW = {
    "num_examples": 6,
    "fit_examples": 3,
    "trial_examples": 2,
    "batch_size": 2,
    "trials": 2,
    "level_trials": 1,
}
SETTINGS = l2c.LearnSettings(iterations=1, reference_steps=10, **FEW)
TAKEN = "those of an earlier run"


def learn(target, folder, settings=SETTINGS, **how):
    how = how or {"solver": "auto", "evaluations": 3, "per_computed": 1}
    return l2c.learn(target, settings=settings, session=Session(solutions=folder), **how)


def calls_of(model, work) -> int:
    """How often the network is called meanwhile."""
    count = 0

    def counted(_module, _given, _made):
        nonlocal count
        count += 1

    hook = model.register_forward_hook(counted)
    work()
    hook.remove()
    return count


@pytest.fixture
def told(caplog):
    """Whether solutions were taken since it was last asked."""

    def asked() -> bool:
        said = TAKEN in caplog.text
        caplog.clear()
        return said

    with caplog.at_level(logging.INFO, logger="l2c"):
        yield asked


@pytest.mark.parametrize("how", [{}, {"solver": "ddim", "steps": 4, "budget": 0.6}], ids=["solver", "budget"])
def test_another_run_takes_them_and_learns_the_same(tmp_path, how, told):
    model = tiny_dit()
    alone = learn(model, None, **how)
    first = calls_of(model, lambda: learn(model, tmp_path, **how))
    assert not told()
    again: list[l2c.CacheSchedule] = []
    second = calls_of(model, lambda: again.append(learn(model, tmp_path, **how)))
    assert told()
    assert second < first
    assert again[0].contract.run.log_snrs == pytest.approx(alone.contract.run.log_snrs, abs=1e-6)
    error = alone.provenance["held_out_error"]
    assert again[0].provenance["held_out_error"] == pytest.approx(error, abs=2e-5)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_budgets_share_them_and_other_examples_do_not(tmp_path, told):
    model, how = tiny_dit(), {"solver": "auto", "per_computed": 1}
    learn(model, tmp_path, evaluations=3, **how)
    learn(model, tmp_path, evaluations=2, **how)
    assert told()
    others = [{"seed": 1}, {"num_examples": 8}, {"fit_examples": 5}, {"reference_steps": 12}]
    for changes in others:
        settings = l2c.LearnSettings(**{"iterations": 1, "reference_steps": 10, **FEW, **changes})
        learn(model, tmp_path, settings, evaluations=3, **how)
        assert not told(), changes
    learn(model, tmp_path, evaluations=3, guidance=3.0, **how)
    learn(tiny_dit(seed=1), tmp_path, evaluations=3, **how)
    assert not told()
    assert len(list(tmp_path.iterdir())) == 1 + len(others) + 2


def test_a_model_that_makes_something_else_is_noticed(tmp_path, told):
    """An adapter that its weights do not show."""
    model = tiny_dit()
    learn(model, tmp_path)
    hook = model.final_layer.register_forward_hook(lambda _module, _given, made: 1.1 * made)
    learn(model, tmp_path)
    assert not told()
    learn(model, tmp_path)
    assert told()  # the new ones are in the place of the others
    hook.remove()
    learn(model, tmp_path)
    assert not told()


@pytest.mark.parametrize("damage", ["empty", "text", "cut off", "one number"])
def test_a_damaged_file_is_made_anew(tmp_path, damage, told):
    model = tiny_dit()
    learn(model, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    other = bytes([whole[-1] ^ 1])
    made = {"empty": b"", "text": b"no tensors", "cut off": whole[: len(whole) // 2]}
    path.write_bytes(made.get(damage, whole[:-1] + other))
    learn(model, tmp_path)
    assert not told()
    assert path.read_bytes() == whole


def test_learning_goes_on_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="learning goes on"):
        schedule = learn(tiny_dit(), tmp_path / "file" / "folder")
    assert schedule.provenance["iterations"] == 1


def test_those_that_were_not_used_for_longest_go(tmp_path, monkeypatch):
    (tmp_path / "other.safetensors").write_bytes(b"not ours")
    model = tiny_dit()
    for seed in range(3):
        learn(model, tmp_path, l2c.LearnSettings(iterations=1, reference_steps=10, seed=seed, **FEW))
    files = [path for path in tmp_path.iterdir() if path.stem != "other"]
    for age, path in enumerate(files):
        os.utime(path, (0, 1000 - age))
    size = files[0].stat().st_size
    monkeypatch.setattr(solutions, "MOST_BYTES", 2 * size + size // 2)
    learn(model, tmp_path, l2c.LearnSettings(iterations=1, reference_steps=10, seed=3, **FEW))
    assert files[0].is_file()
    assert not files[1].exists()
    assert not files[2].exists()
    monkeypatch.setattr(solutions, "MOST_BYTES", size // 2)
    learn(model, tmp_path, l2c.LearnSettings(iterations=1, reference_steps=10, seed=4, **FEW))
    assert (tmp_path / "other.safetensors").is_file()
    assert (
        len(list(tmp_path.iterdir())) == 3
    )  # what is too large is not written, and no reason to remove others


def test_a_pipeline_takes_them_for_the_same_prompts(tmp_path, told):
    call = tiny_call("sd3")
    del call["generator"], call["output_type"]
    texts = {name: call.pop(name) for name in list(call) if name.endswith("embeds")}
    others = {**texts, "prompt_embeds": texts["prompt_embeds"] + 1}
    pipe, how = tiny_pipeline("sd3"), {"solver": "auto", "evaluations": 3, "per_computed": 1, **call}
    first = learn(pipe, tmp_path, conditions=[texts], **how)
    again = learn(pipe, tmp_path, conditions=[texts], **how)
    assert told()
    error = first.provenance["held_out_error"]
    assert again.provenance["held_out_error"] == pytest.approx(error, abs=2e-5)
    learn(pipe, tmp_path, conditions=[others], **how)
    assert not told()


def test_pictures_of_conditions_tell_examples_apart():
    from PIL import Image

    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    names = [SeededConditions(({"image": one, "prompt": "a"},), (3,)).identity for one in (red, blue, red)]
    assert names[0] == names[2] != names[1]
    model_names = [
        l2c.host_of(tiny_dit(), solver="ddim", steps=2).examples(2, seed).identity for seed in (0, 1)
    ]
    assert model_names[0] != model_names[1]


def test_the_folder_of_commands(monkeypatch, tmp_path):
    monkeypatch.setenv("L2C_SOLUTIONS", str(tmp_path))
    assert solutions_folder() == tmp_path
    for off in ("", "off"):
        monkeypatch.setenv("L2C_SOLUTIONS", off)
        assert solutions_folder() is None
    monkeypatch.delenv("L2C_SOLUTIONS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert solutions_folder() == tmp_path / "l2c" / "solutions"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert solutions_folder() == Path.home() / ".cache" / "l2c" / "solutions"


def test_solutions_are_finite_and_whole(tmp_path):
    learn(tiny_dit(), tmp_path)
    (path,) = tmp_path.iterdir()
    found = safetensors.torch.load_file(path)
    assert {name: len(tensor) for name, tensor in found.items() if name != "probe"} == {
        "fine-step solutions": 6 - 4,
        "paths to solutions": 4,
        "fine-step solutions for validation": SETTINGS.num_validation,
    }
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
