"""A page is made of the records and pictures of a comparison that really are in its folder, and of nothing else."""

import json
import os
import shutil
from pathlib import Path

import pytest

from l2c.cli.main import run
from l2c.report.compare_page import compare_page
from l2c.report.comparison_folder import read_comparison

STORED = Path(__file__).resolve().parents[2] / "results" / "compare-embedded-dit"
NAMES = ("ddim-50--full", "ddim-50--deepcache--b0.2", "ddim-50--fora--b0.2")
SECRET = "the secret of another folder"


@pytest.fixture
def folder(tmp_path):
    """A comparison of three variants, as an earlier version recorded it, and a file beside it that is no part of it."""
    made = tmp_path / "compared"
    for part in ("records", "pictures", "timing"):
        (made / part).mkdir(parents=True)
    for name in NAMES:
        shutil.copy(STORED / "records" / f"{name}.json", made / "records")
        shutil.copy(STORED / "pictures" / f"{name}.png", made / "pictures")
    shutil.copy(STORED / "config.json", made)
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "secret.json").write_text(json.dumps({"secret": SECRET}))
    (tmp_path / "secret.png").write_bytes((made / "pictures" / f"{NAMES[0]}.png").read_bytes())
    return made


def change(folder, name, edit):
    path = folder / "records" / f"{name}.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def page_of(folder):
    return compare_page(read_comparison(folder))


def test_pictures_of_the_comparison_are_embedded(folder):
    assert read_comparison(folder).problems == ()
    assert page_of(folder).count("data:image/png;base64,") > 3


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt", "../secret.png", "{root}/secret.txt", "{root}/secret.png", "/etc/hostname", "config.json",
        "pictures", "pictures/../../secret.png", "pictures/linked.png", "away/secret.png", "pictures/pipe.png", "a\0b",
        "/dev/zero", "",
    ],
)  # fmt: skip
def test_nothing_but_pictures_of_the_comparison_is_embedded(folder, name):
    (folder / "pictures" / "linked.png").symlink_to("../../secret.png")
    (folder / "away").symlink_to("..")
    os.mkfifo(folder / "pictures" / "pipe.png")
    before = page_of(folder).count("data:image/png;base64,")
    name = name.format(root=folder.parent)
    change(folder, NAMES[1], lambda record: record["results"].update(pictures=name))
    page = page_of(folder)
    assert page.count("data:image/png;base64,") < before
    assert SECRET not in page


def test_a_picture_that_is_no_png_is_left_out(folder):
    (folder / "pictures" / f"{NAMES[1]}.png").write_text(SECRET)
    assert DEEP not in page_of(folder)


DEEP = '"ddim-50--deepcache--b0.2": {"src"'


def test_a_link_is_no_configuration_and_no_record(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../secret.json")
    (folder / "records" / "linked.json").symlink_to(f"{NAMES[0]}.json")
    data = read_comparison(folder)
    assert SECRET not in compare_page(data)
    (problem,) = data.problems
    assert "linked.json cannot be read: it is not in the folder itself" in problem


def test_a_named_pipe_among_records_is_left_out(folder):
    os.mkfifo(folder / "records" / "pipe.json")
    (problem,) = read_comparison(folder).problems
    assert "pipe.json cannot be read: it is no ordinary file" in problem


def edits(record):
    """Every field of a record, with what to put there instead: nothing, another type, or no number."""

    def places(value, path):
        if isinstance(value, dict) and path.count("/") < 4:
            for key in value:
                yield f"{path}/{key}"
                yield from places(value[key], f"{path}/{key}")

    for place in places(record, ""):
        for new in ("missing", None, "text", 3, -1, [], {}, [{}], True, 1e999, [["deep"]]):
            yield place, new


def test_a_record_of_other_types_is_left_out_or_shown(folder, capsys):
    """Every field taken away or replaced by each type: the page is made of the others, or of this one, too."""
    original = json.loads((folder / "records" / f"{NAMES[1]}.json").read_text())
    reading = [(place, new) for place, new in edits(original) if "/timestep" not in place]
    for place, new in reading[:: max(1, len(reading) // 30)]:
        *parents, last = place.split("/")[1:]
        record = json.loads(json.dumps(original))
        inner = record
        for key in parents:
            inner = inner[key]
        if new == "missing":
            del inner[last]
        else:
            inner[last] = new
        (folder / "records" / f"{NAMES[1]}.json").write_text(json.dumps(record))
        data = read_comparison(folder)
        assert len(data.problems) + len(data.variants) + len(data.unable) >= 2, place
        assert compare_page(data), place
    assert run(["report", str(folder), "--json"]) == 0
    capsys.readouterr()
