from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import l2c
from l2c.learning.paper import RouterSettings
from l2c.models import load_model, save_model
from l2c.records import Record
from l2c.report.pictures import to_pixels
from l2c.sampling import Denoiser
from l2c.sampling.sampler import Sampler
from l2c.sets import sampling_costs
from l2c.testing import tiny_dit, tiny_uvit

ONE = RouterSettings(iterations=1, batch_size=1)


def open_picture(path):
    """A picture that holds no file open."""
    with Image.open(path) as file:
        return file.copy()


def test_sample_writes_pictures_a_grid_and_a_record(invoke, tmp_path, checkpoint):
    out = tmp_path / "deep" / "out"
    finished = invoke("sample", checkpoint, "--labels", "3,5", "--num", 3, "--steps", 2, "--out", out)
    assert finished.code == 0, finished.err
    assert "3 in " in finished.out
    names = ["seed000000-label003.png", "seed000001-label005.png", "seed000002-label003.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "grid.png", "record.json"])
    assert open_picture(out / names[0]).size == (8, 8)
    record = Record.load(out / "record.json")
    assert record.seeds == (0, 1, 2)
    assert record.config["labels"] == [3, 5, 3]
    assert (record.config["solver"], record.config["steps"]) == ("ddim", 2)
    assert record.results["files"] == [*names, "grid.png"]
    assert record.versions["l2c"] == l2c.__version__
    assert len(record.timings["sample_s"]) == 1


def test_pictures_are_those_of_the_library(invoke, tmp_path, checkpoint):
    options = ("--seeds", "7", "--labels", "2", "--steps", 2, "--solver", "euler", "--guidance", 2)
    assert invoke("sample", checkpoint, *options, "--out", tmp_path).code == 0
    images = l2c.sample(load_model(checkpoint), [2], [7], solver="euler", steps=2, guidance=2.0)
    written = open_picture(tmp_path / "seed000007-label002.png")
    assert written.tobytes() == to_pixels(images)[0].tobytes()


def test_a_picture_depends_on_its_seed_alone(invoke, tmp_path, checkpoint):
    for name, options in (("alone", ["--seeds", "4"]), ("among", ["--seeds", "2-6", "--batch-size", "2"])):
        command = (
            "sample",
            checkpoint,
            "--labels",
            "1",
            "--steps",
            2,
            *options,
            "--out",
            tmp_path / name,
        )
        assert invoke(*command).code == 0
    name = "seed000004-label001.png"
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "among" / name).read_bytes()


def test_a_schedule_brings_its_run(invoke, tmp_path, checkpoint, schedule):
    finished = invoke("sample", checkpoint, "-s", schedule, "--num", 2, "--out", tmp_path, "--json")
    assert finished.code == 0, finished.err
    assert "at most" in finished.err
    data = json.loads(finished.out)
    assert data["config"]["solver"] == "dpmsolver++"
    assert data["config"]["steps"] == 4
    assert data["config"]["spacing"] == "logsnr"
    assert data["results"]["macs_per_picture"] < data["results"]["full_macs_per_picture"]
    # two pictures with guidance in one call, six layers of 16 tokens by 32 channels, four bytes each
    assert data["results"]["store_peak_bytes"] == 2 * 2 * 6 * 16 * 32 * 4
    assert data == {"folder": str(tmp_path), **json.loads((tmp_path / "record.json").read_text())}


@pytest.mark.filterwarnings("default::UserWarning")
def test_any_weights_warns(invoke, tmp_path, checkpoint):
    path = tmp_path / "router.safetensors"
    l2c.learn(tiny_dit(seed=1), pattern="alternate", solver="ddim", steps=2, settings=ONE).save(path)
    finished = invoke(
        "sample", checkpoint, "-s", path, "--any-weights", "--num", 1, "--out", tmp_path / "out"
    )
    assert finished.code == 0, finished.err
    assert "l2c: warning: the schedule was learned on other weights" in finished.err


@pytest.fixture
def latent_checkpoint(tmp_path):
    path = tmp_path / "latent.safetensors"
    save_model(tiny_uvit(in_channels=4), path)
    return path


def test_latent_models_write_latents(invoke, tmp_path, latent_checkpoint):
    out = tmp_path / "out"
    finished = invoke("sample", latent_checkpoint, "--num", 2, "--steps", 2, "--out", out)
    assert finished.code == 0, finished.err
    assert "--vae" in finished.err
    assert "latents" in finished.out
    assert sorted(path.name for path in out.iterdir()) == ["latents.safetensors", "record.json"]
    expected = l2c.sample(load_model(latent_checkpoint), [0, 1], steps=2)
    assert torch.equal(load_file(out / "latents.safetensors")["latents"], expected)


@pytest.fixture
def vae(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    model.save_pretrained(tmp_path / "pipeline" / "vae")
    return tmp_path / "pipeline"


def test_latents_are_decoded_by_an_autoencoder(invoke, tmp_path, latent_checkpoint, vae):
    out = tmp_path / "out"
    command = (
        "sample",
        latent_checkpoint,
        "--num",
        2,
        "--steps",
        2,
        "--vae",
        vae,
        "--out",
        out,
        "--json",
    )
    finished = invoke(*command)
    assert finished.code == 0, finished.err
    assert open_picture(out / "seed000001-label001.png").size == (16, 16)
    assert (out / "latents.safetensors").exists()
    assert len(json.loads(finished.out)["timings"]["decode_s"]) == 1


def test_an_autoencoder_is_refused_by_a_model_of_pictures(invoke, tmp_path, checkpoint, vae):
    finished = invoke("sample", checkpoint, "--vae", vae, "--out", tmp_path / "out")
    assert finished.code == 2
    assert "nothing to decode" in finished.err


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiled engines run their pieces as they are: the same work, at once and on any machine."""
    monkeypatch.setattr("l2c.engine.pieces._compile", lambda function, _index: function)


@pytest.mark.parametrize("npz", [(), ("--npz",)])
def test_engines_make_the_same_pictures_and_the_record_names_them(
    invoke, tmp_path, checkpoint, schedule, uncompiled, npz
):
    options = ("--num", 3, "--batch-size", 2, "-s", schedule, *npz)
    records = {}
    for engine in ("auto", "compile"):
        out = tmp_path / engine
        finished = invoke("sample", checkpoint, *options, "--engine", engine, "--out", out)
        assert finished.code == 0, finished.err
        records[engine] = Record.load(out / "record.json")
    assert "engine compile" in finished.out
    assert [record.config["engine"] for record in records.values()] == ["eager", "compile"]
    assert records["compile"].results == records["auto"].results
    assert records["compile"].results["store_peak_bytes"] > 0
    for name in ("seed000000-label000.png", "seed000002-label002.png"):
        ours, theirs = (open_picture(tmp_path / engine / name) for engine in records)
        levels = [abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)]
        assert max(levels) <= 1


@pytest.mark.filterwarnings("default:the schedule was learned")
def test_any_weights_is_for_every_engine(invoke, tmp_path, uncompiled):
    other = tmp_path / "other.safetensors"
    save_model(tiny_dit(seed=1), other)
    mine = tmp_path / "router.safetensors"
    learned = l2c.learn(
        tiny_dit(),
        pattern="alternate",
        solver="ddim",
        steps=4,
        settings=ONE,
    )
    learned.save(mine)
    command = (
        "sample",
        other,
        "-s",
        mine,
        "--num",
        1,
        "--engine",
        "compile",
        "--out",
        tmp_path / "out",
    )
    refused = invoke(*command)
    assert refused.code == 1
    assert "weights" in refused.err
    finished = invoke(*command, "--any-weights")
    assert finished.code == 0, finished.err
    assert "l2c: warning: the schedule was learned on other weights" in finished.err
    assert Record.load(tmp_path / "out" / "record.json").config["any_weights"]


@pytest.mark.parametrize("engine", ["eager", "compile"])
@pytest.mark.filterwarnings("default::UserWarning")
def test_another_guidance_than_the_schedules_is_said_by_every_engine(
    invoke, tmp_path, checkpoint, uncompiled, engine
):
    path = tmp_path / "router.safetensors"
    l2c.learn(
        tiny_dit(),
        pattern="alternate",
        solver="ddim",
        steps=2,
        settings=ONE,
    ).save(path)
    command = ("sample", checkpoint, "-s", path, "--num", 1, "--engine", engine, "--out", tmp_path)
    assert "warning" not in invoke(*command).err
    finished = invoke(*command, "--guidance", 4)
    assert finished.code == 0
    assert finished.err.count("l2c: warning: ") == 1
    assert "guidance" in finished.err


@pytest.mark.parametrize(
    ("engine", "words"), [("steam", "unknown engine 'steam'"), ("graph", "CUDA graphs need a CUDA device")]
)
def test_an_engine_that_cannot_be_had(invoke, tmp_path, checkpoint, engine, words):
    out = tmp_path / "out"
    finished = invoke("sample", checkpoint, "--steps", 2, "--engine", engine, "--out", out)
    assert finished.code == 2
    assert words in finished.err
    assert len(finished.err.splitlines()) == 1
    assert not out.exists()


def test_graphs_hold_stored_values_longer():
    """What a graph stores has one place, which others may have once it has been read for the last time."""
    model = tiny_dit()
    schedule = l2c.methods.interval(model, solver="ddim", steps=8, every=2)
    sampler = Sampler(Denoiser.of(model), "ddim", 8)
    graph, eager = (
        sampling_costs(sampler, schedule, mode, 3)["store_peak_bytes"] for mode in ("graph", "eager")
    )
    assert eager == 6 * 16 * 32 * 4 * 2 * 3  # layers, tokens, width, bytes, halves of guidance, pictures
    assert graph >= eager
