"""Large sets: shared by processes, resumed, the same whatever happened on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2c.cli.main import run
from l2c.errors import DataError
from l2c.records import Record
from l2c.report.pictures import write_npz

COMMON = ("--steps", "3", "--batch-size", "2", "--npz")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".png", ".npz")}


def arrays(folder: Path) -> np.ndarray:
    with np.load(folder / "samples.npz") as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "whole"
    assert run(["sample", str(checkpoint), "--num", "7", *COMMON, "--out", str(folder)]) == 0
    return folder


def test_npz_is_what_the_adm_evaluator_reads(whole):
    array = arrays(whole)
    assert array.dtype == np.uint8
    assert array.shape == (7, 8, 8, 3)
    for index in range(7):
        with Image.open(whole / f"seed{index:06d}-label{index:03d}.png") as picture:
            assert (np.asarray(picture) == array[index]).all()
    record = Record.load(whole / "record.json")
    assert record.seeds == tuple(range(7))
    assert record.results["files"] == ["grid.png", "samples.npz"]


def test_set_has_the_pictures_of_a_plain_run(whole, invoke, tmp_path, checkpoint):
    assert invoke("sample", checkpoint, "--num", 7, *COMMON[:4], "--out", tmp_path).code == 0
    plain = contents(tmp_path)
    assert {k: v for k, v in contents(whole).items() if k.startswith("seed")} == {
        k: v for k, v in plain.items() if k.startswith("seed")
    }


def test_resume_makes_only_what_is_missing(whole, invoke, tmp_path, checkpoint):
    command = ("sample", checkpoint, "--num", 7, *COMMON, "--out", tmp_path)
    assert invoke(*command).code == 0
    missing, kept = tmp_path / "seed000003-label003.png", tmp_path / "seed000000-label000.png"
    missing.unlink()
    before = kept.stat().st_mtime_ns
    finished = invoke(*command, "--resume")
    assert finished.code == 0
    assert "3 of 4 batches are there already" in finished.err
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(whole)
    other = invoke(*command, "--resume", "--guidance", 3)
    assert other.code == 2
    assert "holds pictures with another guidance; choose another --out" in other.err
    assert contents(tmp_path) == contents(whole)


def test_two_processes_make_what_one_does(whole, tmp_path, checkpoint):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "l2c"]
    command = ["sample", str(checkpoint), "-n", "7", *COMMON, "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [*launcher, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(whole)
    assert done.stdout.count("pictures") == 1
    assert Record.load(tmp_path / "two" / "record.json").config["processes"] == 2


def test_npz_refuses_pictures_of_mixed_sizes(tmp_path):
    for index, size in enumerate((4, 4, 5)):
        Image.new("RGB", (size, size)).save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.glob("*.png"))
    with pytest.raises(DataError, match=r"2\.png is 5x5 pixels but the first picture of the set is 4x4"):
        write_npz(tmp_path / "set.npz", paths, "choose another --out")
    assert not (tmp_path / "set.npz").exists()
    assert write_npz(tmp_path / "set.npz", paths[:2], "") is None
