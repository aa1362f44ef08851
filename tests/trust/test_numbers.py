"""Numbers that are none are refused where they come in, or named by the first evaluation where they appear."""

import json
import os
from dataclasses import replace

import pytest
import safetensors.torch
import torch

import l2c
from l2c.cli.main import run
from l2c.errors import CheckpointError, ConfigError, ContractError, NumericsError, ScheduleError
from l2c.learning.checkpoint import Checkpoint
from l2c.models import save_model
from l2c.schedule.forecast import Predictor
from l2c.testing import tiny_dit


@pytest.fixture
def schedule():
    return l2c.methods.interval(tiny_dit(), steps=4, every=2)


def test_weights_that_are_not_finite_end_a_run_at_its_first_evaluation(tmp_path, capsys):
    model = tiny_dit()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="the pictures are not finite, first at evaluation 0 of 3"):
        l2c.sample(model, [1], steps=3)
    save_model(model, tmp_path / "m.safetensors")
    command = [
        "sample",
        str(tmp_path / "m.safetensors"),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "made"),
        "--num",
        "1",
    ]
    assert run(command) == 1
    assert "first at evaluation 0 of 2; check the weights" in capsys.readouterr().err


def test_pictures_that_become_infinite_later_are_named_by_that_evaluation():
    model = tiny_dit()
    with torch.no_grad():
        model.t_embedder.mlp[2].bias.fill_(3e38)
    with pytest.raises(NumericsError, match="first at evaluation 0"):
        l2c.sample(model, [1], steps=2)
    with pytest.raises(NumericsError, match=r"first at evaluation \d of 4; .* lower the guidance 1e\+38"):
        l2c.sample(tiny_dit(), [1], steps=4, guidance=1e38)


def test_a_run_looks_for_them_once_at_its_end(monkeypatch):
    looked, original = [], torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: looked.append(1) or original(self))
    l2c.sample(tiny_dit(), [1, 2], steps=5)
    assert len(looked) == 1


def test_forecasts_that_are_not_finite_are_refused(schedule):
    coefficients = torch.ones(4, len(schedule.layers), 2)
    coefficients[3, 1, 0] = torch.inf
    with pytest.raises(ScheduleError, match="layer 1 has a forecast that is not finite at evaluation 3"):
        replace(schedule, predictor=Predictor("linear", coefficients=coefficients))


def test_scores_and_equal_noise_levels_that_mean_nothing_are_refused(schedule):
    for wrong in (torch.inf, -1.0, 1.5):
        with pytest.raises(ScheduleError, match="scores must be from 0 to 1"):
            replace(schedule, scores=torch.full(schedule.compute.shape, wrong))
    level = replace(schedule.contract.run, log_snrs=(0.0,) * 4)
    compute = schedule.compute.clone()
    compute[1] = True
    contract = replace(schedule.contract, run=level)
    with pytest.raises(ConfigError, match="two before it have the same log-SNR"):
        replace(schedule, contract=contract, compute=compute, predictor=Predictor("taylor", 1))


@pytest.mark.parametrize("field", ["log_snrs", "timesteps"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_file_with_noise_levels_that_are_no_numbers_is_refused(schedule, tmp_path, field, value):
    tensors, header = schedule.pack()
    header["contract"]["run"][field] = [123.25] * 4
    text = json.dumps({"version": 1, **header}).replace("123.25", value, 1)
    path = tmp_path / "s.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"l2c.cache-schedule": text})
    with pytest.raises(
        ScheduleError, match=rf"malformed: contract.run.{field}.0 is -?(nan|inf), expected a finite"
    ):
        l2c.CacheSchedule.load(path)


def test_noise_levels_that_are_no_numbers_fit_no_run(schedule):
    run = schedule.contract.run
    broken = replace(schedule.contract, run=replace(run, log_snrs=(float("nan"),) * 4))
    with pytest.raises(ContractError, match="evaluation 0 is at half log-SNR nan"):
        broken.check_run(run)


@pytest.fixture
def checkpoint(tmp_path):
    made = Checkpoint(tmp_path / "c", {"seed": 0}, 0.0)
    state = {"parameters": [torch.linspace(0, 1, 2000)], "optimizer": {"state": {}}}
    made.save(
        {"kept": {"references": torch.ones(3)}, "stage": "", "iteration": 3, "learned": state, "aside": {}}
    )
    return made


def test_a_checkpoint_comes_back_as_it_was_written(checkpoint):
    assert checkpoint.load()["iteration"] == 3
    assert checkpoint.load()["kept"]["references"].sum() == 3


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused_before_it_is_used(checkpoint, monkeypatch):
    content = torch.load(checkpoint.path, weights_only=True)
    content["state"]["learned"]["parameters"] = [torch.zeros(1).expand(10**9)]
    torch.save(content, checkpoint.path)
    used = []
    monkeypatch.setattr("l2c.learning.checkpoint._digest", used.append)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        checkpoint.load()
    assert used == []


def test_a_checkpoint_with_a_changed_number_is_not_gone_on_from(checkpoint):
    """Every 97th byte flipped: in tensors as in numbers, nothing is gone on from that is not as it was written."""
    whole = checkpoint.path.read_bytes()
    same = 0
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        checkpoint.path.write_bytes(damaged)
        try:
            state = checkpoint.load()
        except CheckpointError:
            continue
        same += 1
        assert state["iteration"] == 3
        assert torch.equal(state["learned"]["parameters"][0], torch.linspace(0, 1, 2000))
    assert same < len(whole) // 97 // 2  # bytes that pad the archive mean nothing


@pytest.mark.parametrize("iteration", [10**9, -1, "3", 2.5, None, 10**30])
def test_a_checkpoint_of_another_iteration_is_not_gone_on_from(checkpoint, iteration):
    content = torch.load(checkpoint.path, weights_only=True)
    content["state"]["iteration"] = iteration
    torch.save(content, checkpoint.path)
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint of learning; delete it"):
        checkpoint.load()


def test_a_checkpoint_that_claims_more_iterations_than_there_are_is_refused(tmp_path):
    path, settings = tmp_path / "c", l2c.LearnSettings(iterations=2, num_examples=8, batch_size=1, trials=1)
    session = l2c.Session(checkpoint=path, save_every_s=0.0)
    learned = {"settings": settings, "session": session, "solver": "ddim", "steps": 3, "budget": 0.7}
    l2c.learn(tiny_dit(), **learned)
    content = torch.load(path, weights_only=True)
    made = Checkpoint(path, {}, 0.0)
    made.identity = content["identity"]
    made.save({**content["state"], "iteration": 10**9})
    with pytest.raises(CheckpointError, match="is of iteration 1000000000 of 2; delete it"):
        l2c.learn(tiny_dit(), **learned)


def test_a_named_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        Checkpoint(tmp_path / "pipe", {}, 0.0).load()
