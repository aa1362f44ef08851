from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from l2c.scenes import parse_prompt, random_scenes
from l2c.scenes.layout import Placement
from l2c.scenes.vocabulary import COLOURS, SHAPES, words

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def pretrain(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with batches that are small enough for a test."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import pretrain_scenes
    from scenes_recipe import latents, transformer

    monkeypatch.setattr(latents, "NUM_IN_FILE", 8)
    monkeypatch.setattr(transformer, "BATCH_SIZE", 2)
    threads = torch.get_num_threads()
    yield pretrain_scenes
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.split(".")[0] in ("scenes_recipe", "pretrain_scenes")]:
        del sys.modules[name]


def train(pretrain: ModuleType, stage: str, work: Path, *more: str) -> None:
    options = ["--work", str(work), "--minutes", "0.01", "--threads", "1", *more]
    assert pretrain.main([stage, *options]) == 0


@pytest.mark.slow
def test_recipe_ends_in_a_pipeline_that_loads(
    pretrain: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scenes_recipe.state import read_state

    work, folder, record = tmp_path / "work", tmp_path / "pipeline", tmp_path / "record.json"
    train(pretrain, "autoencoder", work)
    train(pretrain, "latents", work, "--pictures", "16")
    encoder = read_state(work / "autoencoder.pt", "autoencoder")["model"]["encoder.conv_in.weight"]
    train(pretrain, "autoencoder", work, "--finish")
    after = read_state(work / "autoencoder.pt", "autoencoder")
    assert torch.equal(after["model"]["encoder.conv_in.weight"], encoder)  # latents are of this encoder

    train(pretrain, "transformer", work)
    steps = read_state(work / "transformer.pt", "transformer")["step"]
    assert steps > 0
    train(pretrain, "transformer", work, "--finish")
    assert read_state(work / "transformer-finished.pt", "transformer")["step"] > steps
    assert read_state(work / "transformer.pt", "transformer")["step"] == steps

    assert pretrain.main(["export", "--work", str(work), "--out", str(folder)]) == 0
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 25e6
    options = ["--prompts", "2", "--steps", "2", "--threads", "1", "--sheet", str(tmp_path / "sheet.png")]
    assert pretrain.main(["evaluate", "--folder", str(folder), "--out", str(record), *options]) == 0
    parts = json.loads(record.read_text())
    assert parts["num_prompts"] == 2
    assert parts["adherence_of_drawn_pictures"]["pictures"] == 1.0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(folder), str(record)]

    again, second = tmp_path / "again", tmp_path / "second"
    assert pretrain.main(["import", "--folder", str(folder), "--work", str(again)]) == 0
    assert pretrain.main(["import", "--folder", str(folder), "--work", str(again)]) == 1
    assert "holds a state already; give a new folder" in capsys.readouterr().err
    assert pretrain.main(["export", "--work", str(again), "--out", str(second)]) == 0
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (second / weights).read_bytes() == (folder / weights).read_bytes()
    train(pretrain, "latents", again, "--pictures", "16")
    train(pretrain, "transformer", again)


def test_recipe_says_which_stage_is_missing(
    pretrain: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main(["latents", "--work", str(tmp_path), "--threads", "1"]) == 1
    assert "run the stage 'autoencoder' first, or remove the file" in capsys.readouterr().err
    assert pretrain.main(["transformer", "--work", str(tmp_path), "--threads", "1"]) == 1
    assert "holds no latents; run the stage 'latents' first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pretrain.main(["latents", "--work", str(tmp_path), "--pictures", "0"])
    assert "--pictures must be positive, got 0" in capsys.readouterr().err


def test_tokenizer_has_one_token_a_word(pretrain: ModuleType) -> None:
    from scenes_recipe.tokenizer import MAX_LENGTH, new_tokenizer

    tokenizer = new_tokenizer()
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word  # start, word, end
    prompts = [scene.prompt() for scene in random_scenes(0, 500, held_out=None)]
    assert max(map(len, tokenizer(prompts).input_ids)) <= MAX_LENGTH
    assert tokenizer.tokenize("zebra")[-1] == "a</w>"  # what is not a word is spelt


def test_orthogonalise_brings_singular_values_near_one(pretrain: ModuleType) -> None:
    from scenes_recipe.muon import orthogonalise

    matrices = torch.randn(3, 24, 8, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_labels_say_what_lies_at_each_patch(pretrain: ModuleType) -> None:
    from scenes_recipe.latents import object_labels

    scene = parse_prompt("a large red circle left of a small blue star on a grey background")
    left, right = Placement(16.0, 32.0, 13.5, 0.0), Placement(52.0, 20.0, 7.0, 0.0)
    shapes, colours = object_labels([scene], [[left, right]])[0]
    assert shapes[4, 1] == 1 + SHAPES.index("circle")
    assert colours[4, 1] == 1 + list(COLOURS).index("red")
    assert shapes[2, 6] == 1 + SHAPES.index("star")
    assert colours[2, 6] == 1 + list(COLOURS).index("blue")
    assert not shapes[:, 4].any()
    assert torch.equal(shapes > 0, colours > 0)


def test_model_computes_what_the_pipeline_does(pretrain: ModuleType) -> None:
    from diffusers import StableDiffusion3Pipeline
    from scenes_recipe.networks import TextToLatents
    from scenes_recipe.tokenizer import MAX_LENGTH, new_tokenizer

    torch.manual_seed(0)
    model, tokenizer = TextToLatents().eval(), new_tokenizer()
    pipeline = StableDiffusion3Pipeline(
        model.transformer,
        None,
        None,
        model.text_encoder,
        tokenizer,
        model.text_encoder_2,
        tokenizer,
        None,
        None,
    )
    prompts = [scene.prompt() for scene in random_scenes(0, 3)]
    tokens = tokenizer(prompts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        embeddings, pooled = model.encode_tokens(tokens, num_empty=5)
        expected, _, expected_pooled, _ = pipeline.encode_prompt(
            prompts, None, None, max_sequence_length=5, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(embeddings, expected)
    torch.testing.assert_close(pooled, expected_pooled)
