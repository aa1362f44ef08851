import itertools
import math
import re

import numpy as np
import pytest
import torch

from l2c.errors import ConfigError
from l2c.sampling import SOLVERS, SPACINGS, NoiseSchedule, make_solver
from l2c.sampling.noise_schedule import alpha_sigma

SCHEDULE = NoiseSchedule("scaled_linear")
STD = 0.5


def exact_noise(x, log_snr):
    """Noise prediction where the data are normal with standard deviation `STD`: the flow is then linear."""
    alpha, sigma = alpha_sigma(log_snr)
    return x * sigma / (alpha**2 * STD**2 + sigma**2)


def solve(name, steps, spacing="linspace", start=1.0):
    """Final value of the flow, and where it ends: at half log-SNR `end`, infinity for clean data."""
    solver = make_solver(name, steps, spacing, SCHEDULE)
    x = torch.full((1, 1, 1, 1), start, dtype=torch.float64) * solver.init_scale
    for evaluation, log_snr in enumerate(solver.run.log_snrs):
        scaled = solver.scale_input(x, evaluation)
        x = solver.step(evaluation, x, exact_noise(scaled, log_snr))
    return x.item(), solver


def exact(solver, end, start=1.0):
    """The flow scales x by the ratio of the standard deviations of its marginals."""

    def deviation(log_snr):
        alpha, sigma = alpha_sigma(log_snr)
        return math.sqrt(alpha**2 * STD**2 + sigma**2)

    return start * deviation(end) / deviation(solver.run.log_snrs[0])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_solver_reaches_the_known_solution(name, spacing):
    value, solver = solve(name, 400, spacing)
    end = SCHEDULE.log_snr(0) if name == "dpmsolver-singlestep" else math.inf
    assert value == pytest.approx(exact(solver, end), rel=0.02)
    assert len(solver.run.timesteps) == len(solver.run.log_snrs) == 400
    assert list(solver.run.log_snrs) == sorted(solver.run.log_snrs)


def test_singlestep_has_order_two():
    """Global error falls with the square of the step size."""
    errors = []
    for steps in (40, 80, 160):
        value, solver = solve("dpmsolver-singlestep", steps, "logsnr")
        errors.append(abs(value - exact(solver, SCHEDULE.log_snr(0))))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.25)


def test_singlestep_makes_the_evaluations_of_the_paper():
    run = make_solver("dpmsolver-singlestep", 50, "linspace", SCHEDULE).run
    outer = np.linspace(1, 1 / 1000, 26) * 1000 - 1
    assert np.allclose(run.timesteps[0::2], outer[:-1])
    log_snrs = [SCHEDULE.log_snr(t) for t in outer]
    assert np.allclose(run.log_snrs[1::2], (np.array(log_snrs[:-1]) + log_snrs[1:]) / 2)


def test_singlestep_ends_an_odd_run_with_a_first_order_step():
    value, solver = solve("dpmsolver-singlestep", 201, "logsnr")
    assert len(solver.run.timesteps) == 201
    assert value == pytest.approx(exact(solver, SCHEDULE.log_snr(0)), rel=0.01)


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


def test_solvers_pass_gradients():
    for name in SOLVERS:
        solver = make_solver(name, 4)
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
        (("ddim", 0), "ddim takes from 1 to 1000 steps, got 0"),
        (("dpmsolver-singlestep", 1), "dpmsolver-singlestep takes from 2 to 1000 steps, got 1"),
        (("ddim", 10, "even"), "unknown spacing 'even'; choose one of linspace, trailing, karras, logsnr"),
    ],
)
def test_unknown_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_solver(*arguments)
