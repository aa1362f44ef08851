"""A comparison is the same however often it was interrupted, and loses nothing that is finished."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import l2c
from l2c.cli.main import run
from l2c.compare.config import CompareConfig
from l2c.compare.plan import plan
from l2c.compare.runner import Comparison
from l2c.errors import ConfigError
from l2c.evaluation.metrics import rmse
from l2c.models import DiT, load_model, save_model
from l2c.records import Record
from l2c.report.compare_page import compare_page
from l2c.report.comparison_folder import read_comparison
from l2c.testing import tiny_dit


def results(folder: Path) -> dict[str, dict]:
    """What records say, without what depends on the clock."""
    return {p.name: json.loads(p.read_text())["results"] for p in sorted(folder.glob("records/*.json"))}


def test_every_variant_is_recorded_with_its_figures(compared, tiny_file):
    config = CompareConfig.load(tiny_file)
    found = results(compared)
    assert set(found) == {f"{variant.id}.json" for variant in plan(config)}
    model = load_model(config.model)
    fine = l2c.sample(
        model,
        [0, 1, 2, 3],
        list(range(2_000_000, 2_000_004)),
        solver="dpmsolver++3",
        steps=8,
        spacing="logsnr",
    )
    schedule = l2c.CacheSchedule.load(compared / "schedules" / "ddim-6--fora--b0.5.safetensors")
    images = l2c.sample(
        model, [0, 1, 2, 3], list(range(2_000_000, 2_000_004)), steps=6, schedule=schedule, batch_size=2
    )
    variant = found["ddim-6--fora--b0.5.json"]
    assert variant["metrics"]["rmse"] == pytest.approx(rmse(images, fine).tolist(), rel=1e-4)
    assert variant["macs"] == schedule.cost.macs
    assert found["ddim-6--full.json"]["metrics"]["psnr"] == [None] * 4  # identical
    assert found["ddim-6--fewer-steps--b0.5.json"]["run"]["steps"] == 3
    baseline = found["ddim-6--diffusers-first-block--1.json"]
    assert 0.2 < baseline["macs"] / baseline["full_macs"] < 1
    assert baseline["store_bytes"] is None
    assert baseline["baseline"] is True
    assert baseline["unit"] == "absolute"


def test_timing_rounds_have_every_variant(compared, tiny_file):
    ids = [variant.id for variant in plan(CompareConfig.load(tiny_file))]
    for index in range(2):
        record = Record.load(compared / "timing" / f"round-{index}.json")
        assert sorted(record.timings) == sorted(ids)
        assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in record.timings.values())


def test_nothing_is_run_again(compared, tiny_file, monkeypatch):
    monkeypatch.setattr(Comparison, "_measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr("l2c.compare.rounds.interleave", lambda *_, **__: pytest.fail("timed again"))
    comparison = Comparison(CompareConfig.load(tiny_file), compared, "cpu")
    assert len(comparison.run()) == len(comparison.variants)


def test_records_of_earlier_versions_are_not_made_again(compared, tiny_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    older = {
        '"variant":': '"way":',
        '"variants":': '"ways":',
        '"baseline":': '"peer":',
        '"unit": "absolute"': '"x": 0',
    }
    for path in (*out.glob("records/*.json"), *out.glob("timing/*.json")):
        text = path.read_text()
        for new, old in older.items():
            text = text.replace(new, old)
        path.write_text(text)
    test_nothing_is_run_again(out, tiny_file, monkeypatch)
    mine, other = read_comparison(out), read_comparison(compared)
    assert [(v.id, v.group, v.setting, v.errors) for v in mine.variants] == [
        (v.id, v.group, v.setting, v.errors) for v in other.variants
    ]


def test_latents_have_relative_errors(tiny_file, tmp_path):
    model = replace(tiny_dit().config, in_channels=4)
    save_model(DiT(model), tmp_path / "latent.safetensors")
    text = tiny_file.read_text().split("[[base]]")[0]
    base = '[[base]]\nsolver = "ddim"\nsteps = 4\nbudgets = [0.5]\n[[method]]\nname = "fora"\n'
    path = tmp_path / "latent.toml"
    path.write_text(re.sub('model = ".*"', f'model = "{tmp_path / "latent.safetensors"}"', text) + base)
    with pytest.raises(
        ConfigError, match="makes latents, and psnr is of pictures; name the autoencoder's folder"
    ):
        Comparison(CompareConfig.load(path), tmp_path / "out", "cpu")
    path.write_text(path.read_text().replace('["rmse", "psnr"]', '["rmse"]'))
    Comparison(CompareConfig.load(path), tmp_path / "latent", "cpu").run()
    data = read_comparison(tmp_path / "latent")
    assert data.unit == "relative"
    assert all(variant.results["pictures"] is None for variant in data.variants)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_killed_comparison_ends_with_the_same_figures(fork_server, compared, tiny_file, tmp_path):
    for records in (1, 6):
        process = fork_server.Process(target=run, args=(["compare", str(tiny_file), "--out", str(tmp_path)],))
        process.start()
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("records/*.json"))) < records:
            assert process.is_alive()
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(list(tmp_path.glob("records/*.json"))) < len(results(compared))
    assert run(["compare", str(tiny_file), "--out", str(tmp_path)]) == 0
    assert results(tmp_path) == results(compared)
    for name in ("schedules", "pictures"):
        files = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        assert files == {p.name: p.read_bytes() for p in (compared / name).iterdir()}
    mine, other = read_comparison(tmp_path), read_comparison(compared)
    assert [(w.id, w.metrics) for w in mine.variants] == [(w.id, w.metrics) for w in other.variants]


@pytest.fixture
def small(tiny_file, tmp_path):
    """A comparison of a base and one method, half finished."""
    path = tmp_path / "small.toml"
    text = tiny_file.read_text().split("[[base]]")
    path.write_text(
        text[0].replace("repetitions = 2", "repetitions = 1")
        + '[[base]]\nsolver = "ddim"\nsteps = 4\nbudgets = [0.5]\n[[method]]\nname = "fora"\n'
    )
    return path


def test_half_written_record_is_made_again_and_the_others_kept(small, invoke, tmp_path):
    out = tmp_path / "out"
    assert invoke("compare", small, "--out", out).code == 0
    before = results(out)
    broken, whole = out / "records" / "ddim-4--fora--b0.5.json", out / "records" / "ddim-4--full.json"
    text, stamp = broken.read_text(), whole.stat().st_mtime_ns
    broken.write_text(text[: len(text) // 2])
    data = read_comparison(out)
    assert [variant.id for variant in data.variants] == ["ddim-4--full"]
    assert "is not a record written by l2c" in data.problems[0]
    finished = invoke("compare", small, "--out", out)
    assert finished.code == 0
    assert finished.err.count("it is made again") == 1
    assert results(out) == before
    assert whole.stat().st_mtime_ns == stamp


def test_record_of_other_settings_is_made_again(small, invoke, tmp_path):
    out = tmp_path / "out"
    baseline = '[[method]]\nname = "diffusers-first-block"\nsettings = [{ threshold = 100.0 }]\n'
    small.write_text(small.read_text() + baseline)
    assert invoke("compare", small, "--out", out).code == 0
    before = results(out)["ddim-4--diffusers-first-block--1.json"]
    small.write_text(small.read_text().replace("threshold = 100.0", "threshold = 0.0"))
    finished = invoke("compare", small, "--out", out)
    assert finished.err.count("was made with other settings; it is made again") == 1
    after = results(out)["ddim-4--diffusers-first-block--1.json"]
    assert before["macs"] < 0.7 * after["full_macs"] < after["macs"]


def test_full_disk_is_a_sentence_and_finished_runs_are_kept(small, invoke, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sync = os.fsync

    def full(handle):
        if (out / "records" / "ddim-4--full.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr("l2c.files.os.fsync", full)
    finished = invoke("compare", small, "--out", out)
    assert finished.code == 1
    assert (
        "No space left on device; free some space or choose another --out; finished runs are kept"
        in finished.err
    )
    assert list(results(out)) == ["ddim-4--full.json"]
    monkeypatch.undo()
    assert invoke("compare", small, "--out", out).code == 0
    assert len(results(out)) == 2


def test_folder_of_another_comparison_is_refused(compared, tiny_file, tmp_path):
    text = tiny_file.read_text()
    other = tmp_path / "other.toml"
    other.write_text(text.replace("images = 4\n", "images = 5\nguidance = 2.0\n", 1))
    with pytest.raises(ConfigError, match="another guidance and images; choose another --out"):
        Comparison(CompareConfig.load(other), compared, "cpu")


def test_variant_that_cannot_be_run_is_recorded_and_tried_again(small, invoke, tmp_path):
    out = tmp_path / "out"
    method = (
        '[[method]]\nname = "faster-diffusion"\n[[method]]\nname = "interval"\nsettings = [{ every = 2 }]\n'
    )
    small.write_text(small.read_text() + method)
    for _ in range(2):
        finished = invoke("compare", small, "--out", out)
        assert finished.code == 0
        assert "ddim-4--faster-diffusion--b0.5 cannot be run: Faster Diffusion is not for dit" in finished.err
        assert "cannot be run here\n  ddim-4--faster-diffusion--b0.5: Faster Diffusion is not" in finished.out
    found = results(out)
    assert set(found["ddim-4--faster-diffusion--b0.5.json"]) == {
        "id", "base", "method", "title", "source", "baseline", "failed"
    }  # fmt: skip
    assert "metrics" in found["ddim-4--interval--every-2--b0.5.json"]
    data = read_comparison(out)
    assert len(data.variants) == 3
    assert list(data.unable) == ["ddim-4--faster-diffusion--b0.5"]
    assert "What cannot be run here" in compare_page(data)
    assert all(len(variant.seconds) == 1 for variant in data.variants)


def test_baselines_that_are_not_installed(small, invoke, tmp_path, monkeypatch):
    for module in ("l2c.compare.baselines", "l2c.errors"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == "cache_dit" else object())
    small.write_text(small.read_text() + '[[method]]\nname = "cache-dit"\n')
    finished = invoke("compare", small, "--out", tmp_path / "out")
    assert finished.code == 2
    assert "is not installed; pip install 'l2c[baselines]', or leave 'cache-dit' out" in finished.err
    small.write_text(small.read_text() + "optional = true\n")
    finished = invoke("compare", small, "--out", tmp_path / "out")
    assert finished.code == 0
    assert "cache-dit, DBCache and TaylorSeer is not installed and is left out" in finished.err


def test_sets_are_scored_with_intervals(small, tmp_path, monkeypatch):
    import l2c.compare.scoring as scoring
    from l2c.report.pictures import to_pixels

    class Flat:
        name = "flat"
        distance_name = "FD-flat"

        def __call__(self, pixels):
            small = pixels.float().mean(dim=(2, 3)) / 255
            return small, small

    monkeypatch.setattr(scoring, "make_extractor", lambda name, device: Flat())
    real = tmp_path / "real"
    real.mkdir()
    from PIL import Image

    for index, pixels in enumerate(
        to_pixels(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    ):
        Image.fromarray(pixels).save(real / f"{index:02d}.png")
    text = small.read_text().replace("images = 4", f'images = 12\nreal_images = "{real}"', 1)
    small.write_text(text.replace('["rmse", "psnr"]', '["rmse", "fd", "kd", "is", "precision-recall"]'))
    Comparison(CompareConfig.load(small), tmp_path / "out", "cpu").run()
    metrics = results(tmp_path / "out")["ddim-4--full.json"]["metrics"]
    assert set(metrics) == {"rmse", "fd", "kd", "is", "precision", "recall"}
    assert metrics["fd"]["title"] == "FD-flat"
    assert metrics["fd"]["low"] <= metrics["fd"]["value"] <= metrics["fd"]["high"]
