"""`sample_set`, from Python: what `l2c sample` writes, for whoever has a model and a schedule at hand."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import l2c
from l2c.errors import ConfigError, DataError
from l2c.records import Record
from l2c.report.pictures import to_pixels
from l2c.sampling.decoding import LatentDecoder
from l2c.testing import tiny_dit, tiny_uvit

RUN = {"solver": "euler", "steps": 3}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_set_has_the_pictures_of_sample(tmp_path):
    model, progress = tiny_dit(), []
    record = l2c.sample_set(
        model, tmp_path, [7, 3], [2], batch_size=1, on_progress=lambda *both: progress.append(both), **RUN
    )
    pictures = ["seed000003-label002.png", "seed000007-label002.png"]
    assert names(tmp_path) == ["grid.png", "record.json", *pictures]
    images = l2c.sample(model, [2, 2], [7, 3], **RUN)
    for seed, pixels in zip((7, 3), to_pixels(images), strict=True):
        with Image.open(tmp_path / f"seed{seed:06d}-label002.png") as picture:
            assert picture.tobytes() == pixels.tobytes()
    assert Record.load(tmp_path / "record.json") == record
    assert record.config["labels"] == [2, 2]
    assert progress == [(done, 6) for done in range(7)]  # three evaluations for each batch of one


def test_a_set_goes_on_only_with_the_same_schedule(tmp_path):
    model = tiny_dit()
    schedules = [l2c.methods.interval(model, solver="ddim", steps=6, every=every) for every in (2, 3)]
    for _ in range(2):
        l2c.sample_set(model, tmp_path, range(3), schedule=schedules[0], resume=True)
    with pytest.raises(ConfigError, match="pictures with another schedule's content; choose another --out"):
        l2c.sample_set(model, tmp_path, range(3), schedule=schedules[1], resume=True)
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(DataError, match=r"settings\.json cannot be read"):
        l2c.sample_set(model, tmp_path, range(3), schedule=schedules[0], resume=True)


def test_pictures_whose_settings_nothing_tells_are_made_again(tmp_path):
    """A plain run keeps no settings, so that a set that goes on in its folder cannot know what is there."""
    model = tiny_dit()
    l2c.sample_set(model, tmp_path, range(2), guidance=1.0, **RUN)
    said = []
    l2c.sample_set(model, tmp_path, range(2), guidance=4.0, resume=True, note=said.append, **RUN)
    assert said == []
    assert json.loads((tmp_path / "settings.json").read_text())["guidance"] == 4.0
    l2c.sample_set(model, tmp_path, range(2), guidance=1.0, **RUN)
    assert not (tmp_path / "settings.json").exists()


def test_what_makes_no_sense_is_said_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    for model, options, words in (
        (tiny_dit(), {"labels": [10]}, "class label 10 is out of range; the model has classes 0 to 9"),
        (tiny_dit(), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (tiny_dit(), {"decoder": LatentDecoder.__call__}, "nothing to decode"),
        (tiny_uvit(in_channels=4), {"npz": True}, "name an autoencoder"),
        (tiny_dit(), {"engine": "steam"}, "unknown engine"),
    ):
        with pytest.raises(ConfigError, match=words):
            l2c.sample_set(model, out, [0], **options)
        assert not out.exists()
