"""No output of a command replaces one of its inputs, or a file of another kind, however its path is spelled."""

import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import l2c
from l2c.cli.main import run
from l2c.errors import OutputError
from l2c.files import atomic_write, check_kind, file_kind, same_file
from l2c.models import save_model
from l2c.records import Record
from l2c.testing import tiny_dit


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(tiny_dit(), path)
    return path


@pytest.fixture
def schedule(tmp_path):
    path = tmp_path / "schedule.safetensors"
    l2c.methods.interval(tiny_dit(), steps=4, every=2).save(path)
    return path


def spellings(path: Path):
    linked, hard = path.with_name("linked.safetensors"), path.with_name("hard.safetensors")
    linked.symlink_to(path.name)
    os.link(path, hard)
    return [
        str(path),
        f"{path.parent}/./{path.name}",
        f"{path.parent}/../{path.parent.name}/{path.name}",
        linked,
        hard,
    ]


def refused(capsys, *arguments: object) -> str:
    assert run([str(argument) for argument in arguments]) in (1, 2)
    return capsys.readouterr().err


def test_a_schedule_does_not_replace_the_model(model, capsys):
    before = model.read_bytes()
    for path in spellings(model):
        for command in (("learn", model), ("repair", model, "dit-mini-cifar10-ddim-20", "--budget", 0.5)):
            assert "would be overwritten" in refused(capsys, *command, "--out", path)
        assert "would be overwritten" in refused(capsys, "learn", model, "--checkpoint", path)
    assert model.read_bytes() == before


def test_a_schedule_and_its_checkpoint_are_two_files(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (
        "q.safetensors",
        "./q.safetensors",
        tmp_path / "q.safetensors",
        "../" + tmp_path.name + "/q.safetensors",
    ):
        said = refused(capsys, "learn", model, "--out", "q.safetensors", "--checkpoint", path)
        assert "is named twice, as out and as checkpoint, and would be overwritten" in said
    assert not Path("q.safetensors").exists()


def test_a_repaired_schedule_does_not_replace_the_one_before(model, schedule, capsys):
    assert "would be overwritten" in refused(capsys, "repair", model, schedule, "--out", schedule)
    assert "would be overwritten" in refused(capsys, "inspect", schedule, "--save", schedule)


@pytest.mark.parametrize("content", ["model", "record", "text", "weights"])
def test_a_schedule_replaces_no_file_of_another_kind(model, schedule, capsys, content):
    other = schedule.with_name("other.safetensors")
    if content == "model":
        shutil.copy(model, other)
    elif content == "record":
        Record("sample", {}).save(other)
    elif content == "text":
        other.write_text("precious\n")
    else:
        safetensors.torch.save_file({"w": torch.zeros(1)}, other)
    before = other.read_bytes()
    said = refused(capsys, "inspect", schedule, "--save", other)
    assert "which a schedule must not replace; name another file, or move this one away" in said
    said = refused(capsys, "learn", model, "--out", other)
    assert "which a schedule must not replace" in said
    assert other.read_bytes() == before


def test_pages_records_and_plots_replace_none_of_another_kind(schedule, tmp_path, capsys):
    for name in ("a.html", "a.json", "a.png"):
        (tmp_path / name).write_text("precious\n")
    results = Path(__file__).resolve().parents[2] / "results" / "compare-embedded-dit"
    assert "is a text" in refused(capsys, "report", results, "--out", tmp_path / "a.html")
    assert "is a text" in refused(capsys, "bench", schedule, "--out", tmp_path / "a.json")
    assert "is a text" in refused(capsys, "inspect", schedule, "--plot", tmp_path / "a.png")
    assert all((tmp_path / name).read_text() == "precious\n" for name in ("a.html", "a.json", "a.png"))


def test_a_set_of_pictures_replaces_no_file_of_another_kind(tmp_path):
    (tmp_path / "settings.json").write_text("precious\n")
    with pytest.raises(OutputError, match="settings.json is a text, which a JSON document must not replace"):
        l2c.sample_set(tiny_dit(), tmp_path, [0], steps=1)
    assert (tmp_path / "settings.json").read_text() == "precious\n"


def test_a_device_or_a_named_pipe_is_no_output(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(OutputError, match="is a device or a named pipe; write to a file"):
            atomic_write(path, b"text")


def test_what_is_there_of_the_same_kind_or_empty_is_replaced(schedule, tmp_path, capsys):
    (tmp_path / "empty.safetensors").touch()
    for name in ("empty.safetensors", "empty.safetensors"):
        assert run(["inspect", str(schedule), "--save", str(tmp_path / name)]) == 0
    capsys.readouterr()
    check_kind(tmp_path / "none", "PNG picture")
    check_kind(schedule, file_kind(schedule.read_bytes()))


def test_one_file_has_many_spellings(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(same_file(model, path) for path in [*spellings(model), model.name])
    assert not same_file(model, "other")
    assert not same_file("a\0b", "other")
