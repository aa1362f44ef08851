import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

import l2c
from l2c.errors import ConfigError, ContractError
from l2c.layers import find_layers
from l2c.sampling import FlowSchedule, NoiseSchedule, make_solver
from l2c.sampling.compiled import engine_of, release_engines
from l2c.sampling.denoiser import Denoiser
from l2c.sampling.guidance import Guidance
from l2c.sampling.linear import LEARNED, LinearSolver, multistep_table
from l2c.sampling.loop import run_loop, sampling_loop
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.schedule.contract import Contract, Run
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_dit

SCHEDULE = NoiseSchedule()
STD = 0.5


PROCESSES = [
    SCHEDULE,
    NoiseSchedule("linear", "v_prediction"),
    NoiseSchedule("linear", "sample"),
    FlowSchedule(),
]


def table_at(log_snrs, process):
    kind = process.prediction_type
    return multistep_table(log_snrs, kind, flow=kind == "flow_prediction")


def table_of(log_snrs, process=SCHEDULE):
    return table_at(torch.tensor(log_snrs, dtype=torch.float64), process)


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize(
    ("process", "spacing"), [(p, s) for p in PROCESSES for s in p.spacings if s != "trailing"], ids=str
)
def test_the_table_is_the_solver_of_order_two(steps, process, spacing):
    """On predictions that are anything but linear."""

    def predict(evaluation, x):
        return torch.tanh(x + evaluation)

    theirs = make_solver("dpmsolver++", steps, spacing, process)
    ours = LinearSolver(theirs.run, table_of(theirs.run.log_snrs, process))
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    expected = run_loop(sampling_loop(theirs, noise), predict)
    torch.testing.assert_close(run_loop(sampling_loop(ours, noise), predict), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("process", [SCHEDULE, FlowSchedule()], ids=str)
def test_the_table_has_order_two(process):
    """Where the data are normal the flow is linear, and its end is known."""

    def solve(steps):
        log_snrs = torch.linspace(-2.0, 2.0, steps + 1, dtype=torch.float64)
        run = Run(LEARNED, steps, LEARNED, tuple([0.0] * steps), tuple(log_snrs[:-1].tolist()))
        rows = table_at(log_snrs, process)[: steps + 1, : steps + 1]  # without the step to zero noise

        def predict(evaluation, x):
            alpha, sigma = process.alpha_sigma(run.log_snrs[evaluation])
            noise, data = x * sigma, x * alpha * STD**2
            predicted = noise - data if process == FlowSchedule() else noise
            return predicted / (alpha**2 * STD**2 + sigma**2)

        return run_loop(
            sampling_loop(LinearSolver(run, rows), torch.ones(1, dtype=torch.float64)), predict
        ).item()

    def deviation(log_snr):
        alpha, sigma = process.alpha_sigma(log_snr)
        return math.sqrt(alpha**2 * STD**2 + sigma**2)

    errors = [abs(solve(steps) - deviation(2.0) / deviation(-2.0)) for steps in (40, 80, 160)]
    orders = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.25)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_gradients_of_the_table_are_those_of_differences(process):
    log_snrs = torch.tensor([-3.0, -1.2, 0.1, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda levels: table_at(levels, process), (log_snrs,))


def test_a_solver_is_used_again_from_the_beginning():
    run = make_solver("dpmsolver++", 4).run
    solver, noise = LinearSolver(run, table_of(run.log_snrs)), torch.ones(1, 1, 1, 1)
    first, second = (run_loop(sampling_loop(solver, noise), lambda _, x: 0.5 * x) for _ in range(2))
    assert torch.equal(first, second)


def test_a_table_of_another_size_is_one_sentence():
    run = make_solver("dpmsolver++", 4).run
    message = "4 evaluations has a table of 5 x 5 weights, .* got 4 rows of 4"
    with pytest.raises(ConfigError, match=message):
        LinearSolver(run, torch.eye(4))
    with pytest.raises(ConfigError, match="brings no weights of a solver"):
        LinearSolver.of_run(run)
    with pytest.raises(ConfigError, match="a table of 5 x 5 weights"):
        LinearSolver.of_run(replace(run, weights=((1.0,),)))


@pytest.fixture
def model():
    return tiny_dit()


def learned_schedule(model, steps=5, scales=1, seed=0):
    """A schedule with a solver of its own: that of order two at unusual noise levels, and a little off."""
    log_snrs = torch.linspace(SCHEDULE.log_snr(999), 3.0, steps, dtype=torch.float64)
    weights = multistep_table(log_snrs).float()
    generator = torch.Generator().manual_seed(seed)
    weights[1:] += 0.01 * torch.randn(steps, steps + 1, generator=generator).tril()
    coarser = [0.1 * torch.randn(steps + 1, steps + 1, generator=generator).tril() for _ in range(scales - 1)]
    weights = torch.cat([weights, *(F.pad(one[1:], (0, 0, 1, 0)) for one in coarser)], dim=1)
    run = Run(
        LEARNED,
        steps,
        LEARNED,
        tuple(SCHEDULE.timestep(log_snr) for log_snr in log_snrs.tolist()),
        tuple(log_snrs.tolist()),
        1.5,
        tuple(tuple(row) for row in weights.tolist()),
    )
    table = find_layers(model)
    compute = torch.ones(steps, len(table), dtype=torch.bool)
    compute[1::2] = False
    return CacheSchedule(compute, table, Contract(run))


def test_sampling_takes_the_solver_of_the_schedule(model):
    schedule = learned_schedule(model)
    everything = replace(schedule, compute=torch.ones_like(schedule.compute))
    run, seen = schedule.contract.run, []
    sampled = l2c.sample(model, [1], schedule=everything, observer=lambda *call: seen.append(call))
    first, weights = seen[0][1], torch.tensor(run.weights)
    terms = torch.stack([first, *(predicted for _, _, predicted in seen)])
    for evaluation, x, _ in seen:
        by_hand = (
            weights[evaluation, : evaluation + 1, None, None, None, None] * terms[: evaluation + 1]
        ).sum(0)
        torch.testing.assert_close(x, by_hand, atol=1e-4, rtol=1e-4)
    end = (weights[-1, :, None, None, None, None] * terms).sum(0)
    near = 1e-4 * max(1.0, float(end.abs().max()))
    torch.testing.assert_close(sampled, end.clamp(-1, 1), atol=near, rtol=1e-4)


def test_scales_are_sampled_alike_by_every_engine_and_from_a_file(model, tmp_path):
    """Pictures of a random model can be of any size, and rounding with them."""
    schedule, path = learned_schedule(model, scales=2), tmp_path / "s.safetensors"
    schedule.save(path)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["l2c.cache-schedule"])["version"] == 3
    loaded, contract = CacheSchedule.load(path), schedule.contract
    assert loaded.contract.run.scales == 2
    table = tuple(row[:6] for row in contract.run.weights)
    alike = replace(schedule, contract=replace(contract, run=replace(contract.run, weights=table)))
    assert alike.version == 1
    engine_of(model, "compile").pieces.compiled = False
    made = []
    for one, engine in ((loaded, "eager"), (schedule, "compile"), (alike, "eager")):
        sampler = Sampler.of_run(Denoiser.of(model), one.contract.run, Guidance(1.5))
        noise = seeded_noise([1, 2], sampler.denoiser.sample_shape)
        made.append(sampler.compile(one, engine)(noise, torch.tensor([1, 2])))
    release_engines(model)
    eager, compiled, plain = made
    size = eager.abs().max()
    assert (compiled - eager).abs().max() < 1e-4 * size
    assert not torch.allclose(plain, eager, atol=1e-2)
    shown = l2c.sample(model, [1, 2], [1, 2], schedule=path, engine="eager")
    torch.testing.assert_close(shown, eager.clamp(-1, 1))


def test_a_saved_schedule_samples_the_same(model, tmp_path):
    schedule = learned_schedule(model)
    schedule.save(tmp_path / "s.safetensors")
    loaded = CacheSchedule.load(tmp_path / "s.safetensors")
    assert loaded.contract == schedule.contract
    first, second = (l2c.sample(model, [1, 2], schedule=s) for s in (schedule, loaded))
    assert torch.equal(first, second)
    with l2c.enable_cache(model, loaded):
        assert torch.equal(l2c.sample(model, [1, 2]), first)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "ddim"},
        {"solver": "ddim", "steps": 5, "spacing": "linspace"},
        {"solver": "dpmsolver++", "steps": 7, "spacing": "logsnr"},
        {"steps": 5},
        {"spacing": "karras"},
    ],
)
def test_another_solver_than_the_schedules_is_refused(model, options):
    with pytest.raises(ContractError, match="name no solver, steps or spacing.* brings its own solver"):
        l2c.sample(model, [1], schedule=learned_schedule(model), **options)


def test_a_schedule_with_another_learned_solver_is_refused(model):
    first, second = learned_schedule(model), learned_schedule(model, seed=1)
    with (
        l2c.enable_cache(model, first) as cache,
        pytest.raises(ContractError, match="another learned solver"),
        cache.run(second.contract.run),
    ):
        pass
