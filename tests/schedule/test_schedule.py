import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

import l2c
from l2c.errors import ContractError, OutputError, ScheduleError
from l2c.layers import find_layers, fingerprint
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_diffusers_dit, tiny_dit, tiny_uvit


@pytest.fixture
def model():
    return tiny_dit()


@pytest.fixture
def schedule(model):
    regular = l2c.methods.interval(model, solver="ddim", steps=6)
    contract = replace(regular.contract, fingerprint=fingerprint(model, find_layers(model)), model="tiny")
    return replace(regular, contract=contract)


def test_save_and_load_round_trip(schedule, tmp_path):
    coefficients = torch.randn(*schedule.compute.shape, 2)
    full = replace(
        schedule,
        predictor=Predictor("linear", coefficients=coefficients),
        scores=torch.rand(schedule.compute.shape),
        provenance={"method": "test", "seed": 3},
    )
    full.save(tmp_path / "s.safetensors")
    loaded = CacheSchedule.load(tmp_path / "s.safetensors")
    assert torch.equal(loaded.compute, full.compute)
    assert torch.equal(loaded.scores, full.scores)
    assert torch.equal(loaded.predictor.coefficients, coefficients)
    assert (loaded.layers, loaded.contract) == (full.layers, full.contract)
    assert loaded.provenance == full.provenance
    assert loaded.plan == full.plan


def test_save_gives_the_same_bytes_for_the_same_schedule(schedule, tmp_path):
    schedule.save(tmp_path / "a")
    schedule.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_save_to_an_impossible_place_says_so_and_leaves_nothing(schedule, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        schedule.save(tmp_path / "file" / "s.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_load_refuses_missing_truncated_foreign_and_newer_files(schedule, tmp_path):
    with pytest.raises(ScheduleError, match="there is no schedule file"):
        CacheSchedule.load(tmp_path / "none")
    path = tmp_path / "s.safetensors"
    schedule.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ScheduleError, match="not a whole schedule file"):
        CacheSchedule.load(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ScheduleError, match="not a schedule written by l2c"):
        CacheSchedule.load(path)
    newer = {"l2c.cache-schedule": json.dumps({"version": 99})}
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata=newer)
    with pytest.raises(ScheduleError, match="format 99.*update l2c"):
        CacheSchedule.load(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata={"l2c.cache-schedule": "{}"})
    with pytest.raises(ScheduleError, match="malformed"):
        CacheSchedule.load(path)


def test_reuse_before_any_computation_is_refused(schedule):
    compute = schedule.compute.clone()
    compute[0, 2] = False
    with pytest.raises(ScheduleError, match="layer 2 is reused at evaluation 0 before"):
        replace(schedule, compute=compute)


def test_cost_counts_computed_layers_and_the_rest(schedule):
    table = schedule.layers
    assert schedule.cost.full_macs == 6 * table.full_macs
    assert schedule.cost.macs == 6 * table.rest_macs + 3 * table.layer_macs


def test_another_number_of_evaluations_is_one_sentence_with_the_way_out(model, schedule):
    with pytest.raises(ContractError) as error:
        l2c.sample(model, [1], steps=4, schedule=schedule)
    assert str(error.value) == (
        "schedule covers 6 evaluations but ddim with 4 steps (linspace spacing) makes 4; sample with solver "
        "'ddim', 6 steps and 'linspace' spacing, or get a schedule for this run with: "
        "l2c learn MODEL --steps 4 --solver ddim --spacing linspace"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler"}, "made for ddim with 6 steps .* but the run uses euler"),
        ({"spacing": "karras"}, "evaluation 1 is at timestep"),
    ],
)
def test_another_run_is_refused(model, schedule, options, message):
    if "spacing" in options:
        message = "at timestep"
    with pytest.raises(ContractError, match=message):
        l2c.sample(model, [1], steps=6, schedule=schedule, **options)


def test_other_noise_levels_are_refused(schedule):
    scaled = tiny_dit(beta_schedule="scaled_linear")
    with pytest.raises(ContractError, match="at half log-SNR"):
        l2c.sample(scaled, [1], steps=6, schedule=schedule)


def test_another_guidance_is_a_warning(model, schedule):
    run = replace(schedule.contract.run, guidance=1.5)
    learned = replace(schedule, contract=replace(schedule.contract, run=run))
    with pytest.warns(UserWarning, match="learned with guidance 1.5 and the run uses 4;"):
        l2c.sample(model, [1], steps=6, guidance=4.0, schedule=learned)
    l2c.sample(model, [1], steps=6, guidance=1.5, schedule=learned)


def test_another_model_is_refused(schedule):
    with pytest.raises(ContractError, match="made for a dit with 6 layers .* the model is a uvit"):
        l2c.enable_cache(tiny_uvit(), schedule)
    with pytest.raises(ContractError, match="the model is a dit with 8 layers"):
        l2c.enable_cache(tiny_dit(depth=4), schedule)
    with pytest.raises(ContractError, match="GMACs"):
        l2c.enable_cache(tiny_dit(hidden_size=64), schedule)


def test_other_weights_are_refused_unless_accepted(schedule):
    other = tiny_dit(seed=1)
    with pytest.raises(ContractError, match=r"learned on other weights \(tiny\)"):
        l2c.enable_cache(other, schedule)
    with pytest.warns(UserWarning, match="learned on other weights"):
        l2c.enable_cache(other, schedule, any_weights=True)


def test_precision_and_implementation_do_not_change_the_fingerprint(model, schedule):
    for dtype in (torch.bfloat16, torch.float16):
        l2c.enable_cache(tiny_dit().to(dtype), schedule)
    l2c.enable_cache(tiny_diffusers_dit(), schedule)


def test_summary_is_plain_data(schedule):
    summary = json.loads(json.dumps(schedule.summary()))
    assert summary["cached"] == {
        "evaluations": 3,
        "computed": 0,
        "total": 18,
        "removed": 1.0,
        "kinds": {"attention": {"computed": 0, "total": 9}, "mlp": {"computed": 0, "total": 9}},
    }
