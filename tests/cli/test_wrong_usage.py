"""Whatever goes wrong ends in one sentence, with the right exit code, and nothing is left half-written."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import l2c
from l2c.learning.paper import RouterSettings
from l2c.testing import tiny_dit, tiny_uvit


def check(finished, code: int, *words: str) -> None:
    assert finished.code == code, finished.err
    assert finished.out == ""
    assert len(finished.err.splitlines()) == 1
    assert finished.err.startswith("l2c: error: ")
    for word in words:
        assert word in finished.err


@pytest.fixture
def out(tmp_path):
    """An output folder that must not be there after a failure."""
    path = tmp_path / "out"
    yield path
    assert not path.exists()


def test_missing_checkpoint(invoke, out):
    check(
        invoke("sample", "nowhere.safetensors", "--out", out),
        1,
        "nowhere.safetensors",
        "there is no file of weights",
    )


def test_unknown_model_name(invoke, out):
    check(invoke("sample", "dit-mini-cifar11", "--out", out), 2, "dit-mini-cifar10")


@pytest.mark.parametrize("command", ["sample", "learn"])
def test_truncated_checkpoint(invoke, tmp_path, checkpoint, command):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    target = tmp_path / "out.safetensors"
    check(invoke(command, broken, "--out", target), 1, "broken.safetensors")
    assert not target.exists()


def test_truncated_schedule(invoke, out, tmp_path, checkpoint, schedule):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(schedule.read_bytes()[:-20])
    check(invoke("sample", checkpoint, "-s", broken, "--out", out), 1, "not a whole schedule file")
    check(invoke("inspect", broken), 1, "not a whole schedule file")


def test_missing_schedule(invoke, out, checkpoint):
    check(invoke("sample", checkpoint, "-s", "no.safetensors", "--out", out), 1, "no.safetensors")
    check(invoke("inspect", "no.pt"), 1, "no.pt")


def test_schedule_of_another_architecture(invoke, out, other_checkpoint, schedule):
    check(invoke("sample", other_checkpoint, "-s", schedule, "--out", out), 1, "dit", "uvit", "l2c learn")


def test_published_router_of_another_model(invoke, out, checkpoint, shared):
    router = shared / "routers/DDIM50_router.pt"
    check(invoke("sample", checkpoint, "-s", router, "--out", out), 1, "56 layers", "l2c learn")


def test_schedule_of_other_weights(invoke, out, tmp_path, checkpoint):
    path = tmp_path / "router.safetensors"
    settings = RouterSettings(iterations=1, batch_size=1)
    l2c.learn(
        tiny_dit(seed=1), pattern="alternate", solver="ddim", steps=2, settings=settings, model_name="another"
    ).save(path)
    check(invoke("sample", checkpoint, "-s", path, "--out", out), 1, "other weights", "--any-weights")


def test_schedule_for_fifty_evaluations_used_with_twenty(invoke, out, tmp_path, checkpoint):
    path = tmp_path / "fifty.safetensors"
    l2c.methods.interval(tiny_dit(), steps=50).save(path)
    finished = invoke("sample", checkpoint, "-s", path, "--steps", 20, "--out", out)
    check(finished, 1, "covers 50 evaluations", "makes 20", "--steps 20")


@pytest.mark.parametrize("command", ["sample", "learn"])
def test_unknown_solver(invoke, tmp_path, checkpoint, command):
    target = tmp_path / "out.safetensors"
    finished = invoke(command, checkpoint, "--solver", "dpmsolver", "--out", target)
    check(finished, 2, "unknown solver 'dpmsolver'", "did you mean 'dpmsolver++'")
    assert not target.exists()


def test_unknown_spacing(invoke, out, checkpoint):
    check(invoke("sample", checkpoint, "--spacing", "cosine", "--out", out), 2, "cosine", "karras")


@pytest.mark.parametrize("label", [10, 1000])  # 10 is the null class
def test_class_label_out_of_range(invoke, out, checkpoint, label):
    finished = invoke("sample", checkpoint, "--labels", f"3,{label}", "--out", out)
    check(finished, 2, f"class label {label} is out of range", "0 to 9")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--labels", "cat", "whole numbers"),
        ("--labels", "5-2", "empty"),
        ("--labels", "", "whole numbers"),
        ("--seeds", "1,-2", "whole numbers"),
        ("--steps", "0", "steps"),
        ("--steps", "many", "--steps"),
        ("--guidance", "-1", "guidance"),
        ("--guidance-mode", "both", "both"),
        ("--batch-size", "0", "--batch-size"),
        ("--num", "0", "--num"),
        ("--dtype", "int8", "int8"),
        ("--device", "abacus", "abacus"),
        ("--frames", "3", "--frames"),
        ("--vae", "nowhere", "autoencoder"),
    ],
)
def test_values_that_make_no_sense(invoke, out, checkpoint, option, value, word):
    code = 1 if option == "--vae" else 2
    check(invoke("sample", checkpoint, "--out", out, option, value), code, word)


def test_seeds_and_number_that_disagree(invoke, out, checkpoint):
    check(invoke("sample", checkpoint, "--seeds", "1,2", "--num", 3, "--out", out), 2, "--num")


@pytest.mark.parametrize("command", ["sample", "learn", "demo"])
def test_output_that_cannot_be_written(invoke, tmp_path, command, monkeypatch):
    """The check comes before any model is loaded."""
    monkeypatch.setattr("l2c.models.loading.load_model", None)
    (tmp_path / "file").write_text("a file, not a folder")
    target = tmp_path / "file" / "out.safetensors"
    check(invoke(command, "--out", target), 1, "cannot write", "--out")
    assert (tmp_path / "file").read_text() == "a file, not a folder"


def test_learn_into_a_folder(invoke, tmp_path):
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    check(invoke("learn", "--out", folder), 1, "it is a folder")


def test_learn_into_a_name_of_another_kind(invoke):
    check(invoke("learn", "--out", "router.pt"), 2, ".safetensors")


class Payload:
    """A pickle of this would make a folder when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(params=["bare", "torch"])
def dangerous(request, tmp_path):
    """A pickle that would execute code, alone or in PyTorch's format, and the trace it would leave."""
    trace, path = tmp_path / "executed", tmp_path / "dangerous.pt"
    if request.param == "bare":
        path.write_bytes(pickle.dumps({"0.prob": Payload(trace)}))
    else:
        torch.save({"0.prob": Payload(trace)}, path)
        assert zipfile.is_zipfile(path)
    yield path
    assert not trace.exists()


def test_checkpoint_that_would_execute_code(invoke, out, dangerous):
    check(invoke("sample", dangerous, "--out", out), 1, "dangerous.pt")


def test_router_that_would_execute_code(invoke, out, checkpoint, dangerous):
    check(invoke("sample", checkpoint, "-s", dangerous, "--out", out), 1, "dangerous.pt")
    check(invoke("inspect", dangerous), 1, "dangerous.pt")


def test_data_that_are_not_there(invoke, tmp_path, checkpoint):
    target = tmp_path / "router.safetensors"
    command = ("learn", checkpoint, "--pattern", "alternate", "--data", tmp_path / "none")
    check(invoke(*command, "--out", target), 1, "none")
    assert not target.exists()


def test_data_for_a_model_without_pictures(invoke, tmp_path):
    from l2c.models import save_model

    latent = tmp_path / "latent.safetensors"
    save_model(tiny_uvit(in_channels=4), latent)
    command = ("learn", latent, "--pattern", "alternate", "--data", tmp_path)
    check(invoke(*command, "--out", tmp_path / "router.safetensors"), 2, "latents")


def test_an_existing_output_folder_survives_a_failure(invoke, tmp_path, checkpoint):
    kept = tmp_path / "kept"
    kept.mkdir()
    check(invoke("sample", checkpoint, "--labels", 99, "--out", kept), 2, "99")
    assert list(kept.iterdir()) == []
