import itertools
import math
import re

import numpy as np
import pytest
import torch

from l2c.errors import ConfigError
from l2c.sampling import FlowSchedule, NoiseSchedule, make_solver, solver_names
from l2c.sampling.linear import LinearSolver, solver_table
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.sampling.noise_schedule import data_prediction

SCHEDULE = NoiseSchedule("scaled_linear")
STD = 0.5
PROCESSES = [
    SCHEDULE,
    NoiseSchedule("scaled_linear", "v_prediction"),
    NoiseSchedule("linear", "sample"),
    FlowSchedule(),
]


def prediction_of(process, data, noise, log_snr):
    """What a network that knows data and noise says."""
    alpha, sigma = process.alpha_sigma(log_snr)
    return {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * data,
        "sample": data,
        "flow_prediction": noise - data,
    }[process.prediction_type]


def exact_prediction(process, x, log_snr):
    """Prediction where the data are normal with standard deviation `STD`: the flow is then linear."""
    alpha, sigma = process.alpha_sigma(log_snr)
    scaled = x / (alpha**2 * STD**2 + sigma**2)
    return prediction_of(process, alpha * STD**2 * scaled, sigma * scaled, log_snr)


def drive(solver, run, process, start=1.0):
    noise = torch.full((1, 1, 1, 1), start, dtype=torch.float64)
    return run_loop(
        sampling_loop(solver, noise), lambda i, x: exact_prediction(process, x, run.log_snrs[i])
    ).item()


def solve(name, steps, spacing="linspace", process=SCHEDULE):
    """Final value of the flow from 1, and the run."""
    solver = make_solver(name, steps, spacing, process)
    return drive(solver, solver.run, process), solver.run


def exact(run, end, process=SCHEDULE):
    """The flow scales x by the ratio of the standard deviations of its marginals."""

    def deviation(log_snr):
        alpha, sigma = process.alpha_sigma(log_snr)
        return math.sqrt(alpha**2 * STD**2 + sigma**2)

    return deviation(end) / deviation(run.log_snrs[0])


@pytest.mark.parametrize("name", solver_names())
@pytest.mark.parametrize(
    ("process", "spacing"), [(p, s) for p in PROCESSES for s in p.spacings], ids=lambda value: str(value)
)
def test_every_solver_reaches_the_known_solution(name, process, spacing):
    value, run = solve(name, 400, spacing, process)
    end = process.log_snr(0) if name == "dpmsolver-singlestep" else math.inf
    assert value == pytest.approx(exact(run, end, process), rel=0.02)
    assert len(run.timesteps) == len(run.log_snrs) == 400
    assert list(run.log_snrs) == sorted(run.log_snrs)
    at = [process.timestep(log_snr) for log_snr in run.log_snrs]
    assert np.allclose(
        run.timesteps, at, atol=0.01 if process == FlowSchedule() else 1.01
    )  # diffusers rounds


@pytest.mark.parametrize("name", solver_names())
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_table_of_every_solver_does_the_same(name, process):
    value, run = solve(name, 7, "logsnr", process)
    table = solver_table(make_solver(name, 7, "logsnr", process)).double()
    assert drive(LinearSolver(run, table), run, process) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_data_are_found_in_every_prediction(process):
    data, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(-0.7)
    prediction = prediction_of(process, data, noise, -0.7)
    found = data_prediction(alpha * data + sigma * noise, prediction, alpha, sigma, process.prediction_type)
    torch.testing.assert_close(found, data)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmsolver++", "dpmsolver++3", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_flow_is_evaluated_where_diffusers_does(name, steps):
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    run = make_solver(name, steps, "linspace", FlowSchedule()).run
    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    theirs.set_timesteps(steps)
    assert np.allclose(run.timesteps, 1000 * theirs.sigmas[:-1].double(), atol=1e-4)
    assert run.timesteps[0] == pytest.approx(999)
    if name in ("ddim", "euler"):  # the same formula over velocities
        x, velocities = torch.randn(1, 3, 2, 2), torch.randn(steps, 1, 3, 2, 2)
        euler = FlowMatchEulerDiscreteScheduler()
        euler.set_timesteps(sigmas=[t / 1000 for t in run.timesteps])
        expected = x
        for timestep, velocity in zip(euler.timesteps, velocities, strict=True):
            expected = euler.step(velocity, timestep, expected).prev_sample
        ours = run_loop(
            sampling_loop(make_solver(name, steps, "linspace", FlowSchedule()), x), lambda i, _: velocities[i]
        )
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_timesteps_of_a_flow_are_a_thousand_times_s():
    flow = FlowSchedule()
    log_snrs = torch.tensor([flow.log_snr(t) for t in (999, 700.5, 3)], dtype=torch.float64)
    torch.testing.assert_close(flow.timesteps_of(log_snrs), torch.tensor([999, 700.5, 3]).double())
    assert [flow.timestep(s) for s in log_snrs.tolist()] == pytest.approx([999, 700.5, 3])
    assert (flow.log_snr(1000), flow.log_snr(0)) == (flow.log_snr(999), flow.log_snr(1))


def test_singlestep_has_order_two():
    """Global error falls with the square of the step size."""
    errors = []
    for steps in (40, 80, 160):
        value, run = solve("dpmsolver-singlestep", steps, "logsnr")
        errors.append(abs(value - exact(run, SCHEDULE.log_snr(0))))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.25)


def test_singlestep_makes_the_evaluations_of_the_paper():
    run = make_solver("dpmsolver-singlestep", 50, "linspace", SCHEDULE).run
    outer = np.linspace(1, 1 / 1000, 26) * 1000 - 1
    assert np.allclose(run.timesteps[0::2], outer[:-1])
    log_snrs = [SCHEDULE.log_snr(t) for t in outer]
    assert np.allclose(run.log_snrs[1::2], (np.array(log_snrs[:-1]) + log_snrs[1:]) / 2)


def test_singlestep_ends_an_odd_run_with_a_first_order_step():
    value, run = solve("dpmsolver-singlestep", 201, "logsnr")
    assert len(run.timesteps) == 201
    assert value == pytest.approx(exact(run, SCHEDULE.log_snr(0)), rel=0.01)


def test_ddim_makes_the_steps_of_dit():
    """Timesteps round(linspace(0, 999, N)), and the closed DDIM formula from each to the next."""
    solver = make_solver("ddim", 5, "linspace", SCHEDULE)
    times = np.linspace(0, 999, 5).round()[::-1]
    assert solver.run.timesteps == tuple(times)
    alphas = np.exp(SCHEDULE.log_alphas)
    x, noise = torch.randn(1, 3, 2, 2), torch.randn(5, 1, 3, 2, 2)
    expected = x.double()
    for i, t in enumerate(times.astype(int)):
        alpha = alphas[t]
        data = (expected - math.sqrt(1 - alpha**2) * noise[i].double()) / alpha
        after = alphas[int(times[i + 1])] if i < 4 else 1.0
        expected = after * data + math.sqrt(1 - after**2) * noise[i].double()
        x = solver.step(i, x, noise[i])
    torch.testing.assert_close(x.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_log_snr_agrees_with_diffusers(beta_schedule):
    schedule = NoiseSchedule(beta_schedule)
    solver = make_solver("dpmsolver++", 20, "linspace", schedule)
    ours = [schedule.log_snr(t) for t in solver.run.timesteps]
    assert np.allclose(ours, solver.run.log_snrs, atol=1e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_solvers_pass_gradients(process):
    for name in solver_names():
        solver = make_solver(name, 4, "linspace", process)
        x = torch.ones(1, 1, 2, 2, requires_grad=True)
        y = x
        for i in range(4):
            y = solver.step(i, y, 0.1 * solver.scale_input(y, i))
        y.sum().backward()
        assert (x.grad != 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpmsolver+", 10), "unknown solver 'dpmsolver+'; did you mean 'dpmsolver++'? choose one of"),
        (("ddim", 0), "the number of steps of ddim must be at least 1, got 0"),
        (
            ("dpmsolver-singlestep", 1),
            "the number of steps of dpmsolver-singlestep must be at least 2, got 1",
        ),
        (("ddim", 10, "even"), "unknown spacing 'even'; choose one of linspace, trailing, karras, logsnr"),
        (
            ("ddim", 10, "karras", FlowSchedule()),
            "unknown spacing of a flow 'karras'; choose one of linspace, logsnr",
        ),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_solver(*arguments)


@pytest.mark.parametrize(
    ("beta_schedule", "prediction_type", "message"),
    [
        ("cosine", "epsilon", "beta_schedule must be one of linear, scaled_linear, got 'cosine'"),
        ("linear", "noise", "prediction_type must be one of epsilon, v_prediction, sample, got 'noise'"),
        ("linear", "flow_prediction", "one of epsilon, v_prediction, sample, got 'flow_prediction'"),
    ],
)
def test_unknown_processes_are_refused(beta_schedule, prediction_type, message):
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule(beta_schedule, prediction_type)
