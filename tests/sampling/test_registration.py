"""A solver from elsewhere, and models with every prediction type, from noise to pictures."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

import l2c
from l2c.errors import ConfigError, ContractError
from l2c.models.conversion import from_diffusers, to_diffusers
from l2c.models.loading import load_model, save_model
from l2c.sampling import FlowSchedule, NoiseSchedule, make_solver, register_solver, solver_names, solvers
from l2c.sampling.compiled import CompiledSampler
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.sampling.noise_schedule import data_prediction
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.solvers import evaluations_per_step, exponential_step
from l2c.schedule.contract import Run
from l2c.testing import tiny_dit


class Heun:
    """Two evaluations a step, at its start and at its end, and a step with the mean of their data predictions."""

    init_scale = 1.0

    def __init__(self, process, name, steps, spacing):
        ends = np.linspace(process.log_snr(999), process.log_snr(0), (steps + 1) // 2 + 1).tolist()
        self.points = [point for step in pairwise(ends) for point in step]
        self.process, at = process, tuple(self.points[:steps])
        self.run = Run(name, steps, spacing, tuple(map(process.timestep, at)), at)

    def scale_input(self, x, evaluation):
        return x

    def step(self, evaluation, x, prediction):
        at = self.points[evaluation]
        alpha, sigma = self.process.alpha_sigma(at)
        data = data_prediction(x, prediction, alpha, sigma, self.process.prediction_type)
        if evaluation % 2 == 0:
            self.start = x, data
            return exponential_step(x, data, at, self.points[evaluation + 1], self.process)
        x, before = self.start
        return exponential_step(x, (before + data) / 2, self.points[evaluation - 1], at, self.process)


@pytest.fixture
def heun(monkeypatch):
    monkeypatch.setattr(solvers, "_SOLVERS", dict(solvers._SOLVERS))
    register_solver("heun", Heun, evaluations_per_step=2)


@pytest.mark.parametrize("process", [NoiseSchedule(), FlowSchedule()], ids=str)
def test_a_registered_solver_reaches_the_known_solution(heun, process):
    """Where the data are normal with a deviation of 0.5 the flow is linear; the error falls with the step squared."""

    def deviation(log_snr):
        alpha, sigma = process.alpha_sigma(log_snr)
        return math.hypot(alpha * 0.5, sigma)

    def predict(log_snr, x):
        alpha, sigma = process.alpha_sigma(log_snr)
        data, noise = alpha * 0.25 * x / deviation(log_snr) ** 2, sigma * x / deviation(log_snr) ** 2
        return noise if process == NoiseSchedule() else noise - data

    errors = []
    for steps in (80, 160):
        run = make_solver("heun", steps, "logsnr", process).run
        end = run_loop(
            sampling_loop(make_solver("heun", steps, "logsnr", process), torch.ones(1, dtype=torch.float64)),
            lambda i, x, levels=run.log_snrs: predict(levels[i], x),
        )
        errors.append(abs(end.item() - deviation(process.log_snr(0)) / deviation(process.log_snr(999))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow_prediction"])
def test_a_registered_solver_samples_with_a_schedule(heun, prediction_type):
    model = tiny_dit(prediction_type=prediction_type)
    schedule = l2c.methods.interval(model, solver="heun", steps=6)
    sampled = l2c.sample(model, [1, 2], schedule=schedule)
    assert schedule.contract.run.solver == "heun"
    sampler = Sampler.of_run(Denoiser.of(model), schedule.contract.run, Sampler(Denoiser.of(model)).guidance)
    compiled = by_pieces(sampler, schedule)(seeded_noise([0, 1], (3, 8, 8)), torch.tensor([1, 2]))
    assert_close(compiled.clamp(-1, 1), sampled)


def test_registered_solvers_are_named_and_checked(heun):
    assert "heun" in solver_names()
    assert evaluations_per_step("heun") == 2
    for arguments, message in (
        (("heum", 4), "unknown solver 'heum'; did you mean 'heun'? choose one of"),
        (("heun", 1), "the number of steps of heun must be at least 2, got 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            make_solver(*arguments)
    with pytest.raises(ConfigError, match="there is a solver 'heun' already; give the new one another name"):
        register_solver("heun", Heun)
    with pytest.raises(ConfigError, match="evaluations_per_step must be at least 1, got 0"):
        register_solver("none", Heun, evaluations_per_step=0)


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


def by_pieces(sampler, schedule):
    """The engine with pieces that run as they are: the same work, on any machine."""
    compiled = sampler.compile(schedule, "compile")
    assert isinstance(compiled, CompiledSampler)
    compiled.engine.pieces.compiled = False
    return compiled


def assert_close(ours, theirs):
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "dpmsolver-singlestep", "unipc", "euler"])
def test_every_prediction_type_samples_with_a_schedule_by_every_engine(prediction_type, solver):
    model = tiny_dit(prediction_type=prediction_type)
    schedule = l2c.methods.interval(model, solver=solver, steps=6, predictor="taylor-1")
    assert schedule.contract.prediction_type == prediction_type
    sampler = Sampler(Denoiser.of(model), solver, 6)
    noise, labels = seeded_noise([5, 6], (3, 8, 8)), torch.tensor([1, 7])
    eager = sampler.compile(schedule, "eager")(noise, labels)
    assert torch.equal(l2c.sample(model, [1, 7], [5, 6], schedule=schedule), eager.clamp(-1, 1))
    assert_close(by_pieces(sampler, schedule)(noise, labels), eager)
    assert_close(by_pieces(sampler, None)(noise, labels), sampler.compile(None, "eager")(noise, labels))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_checkpoints_keep_what_a_model_predicts(prediction_type, tmp_path):
    model = tiny_dit(prediction_type=prediction_type)
    save_model(model, tmp_path / "model.safetensors", dtype=torch.float32)
    loaded = load_model(tmp_path / "model.safetensors")
    assert Denoiser.of(loaded).noise_schedule == Denoiser.of(model).noise_schedule
    options = {"solver": "dpmsolver++", "steps": 3}
    assert torch.equal(l2c.sample(loaded, [1], **options), l2c.sample(model, [1], **options))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_diffusers_transformers_are_sampled_by_what_they_predict(prediction_type, tmp_path):
    model = tiny_dit(in_channels=4, prediction_type=prediction_type)
    foreign = to_diffusers(model)
    foreign.save_pretrained(tmp_path)
    expected = l2c.sample(model, [1, 2], steps=4)
    for same in (foreign, from_diffusers(foreign), load_model(tmp_path)):
        assert_close(l2c.sample(same, [1, 2], steps=4), expected)


@pytest.mark.parametrize(("solver", "last"), [("euler", 333), ("unipc", 333), ("ddim", 333)])
def test_the_network_of_a_flow_is_fed_a_thousand_times_s(solver, last):
    seen = []
    model = tiny_dit(prediction_type="flow_prediction")
    model.register_forward_pre_hook(lambda module, args: seen.append(float(args[1][0])))
    l2c.sample(model, [1], solver=solver, steps=3)
    assert seen == pytest.approx([999, 666, last], abs=1e-3)


def test_a_schedule_for_noise_does_not_fit_a_flow():
    schedule = l2c.methods.interval(tiny_dit(), solver="ddim", steps=4)
    with pytest.raises(ContractError, match="is at timestep .* it is at"):
        l2c.sample(tiny_dit(prediction_type="flow_prediction"), [1], schedule=schedule)
