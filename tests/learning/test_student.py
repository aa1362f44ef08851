from dataclasses import replace

import pytest
import torch

import l2c
from l2c.errors import CacheStateError
from l2c.hosts.labelled_noise import LabelledNoise
from l2c.layers import find_layers
from l2c.learning.coefficients import difference_weights
from l2c.learning.student import Student
from l2c.sampling import Denoiser, Guidance, seeded_noise
from l2c.sampling.linear import LEARNED, multistep_table
from l2c.sampling.sampler import Sampler
from l2c.schedule.contract import Contract
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import count_calls, tiny_dit, tiny_uvit

STEPS = 7
LABELS = torch.tensor([1, 2])


@pytest.fixture
def noise():
    return seeded_noise([1, 2], (3, 8, 8))


def host_of(model, spacing="logsnr", steps=STEPS):
    return l2c.host_of(model, solver="dpmsolver++", steps=steps, spacing=spacing)


def make_with(student, noise):
    """What a student makes of noise."""
    with student.attached():
        return student(LabelledNoise(noise, LABELS[: len(noise)]))


def mask_of(model, steps=STEPS):
    """Most layers are reused, some several times in a row, and one alone is computed in between."""
    compute = torch.zeros(steps, len(find_layers(model)), dtype=torch.bool)
    compute[[0, 2, 3]] = True
    compute[5, 1::2] = True
    return compute


def shaken(student, generator):
    """A student that has learned something, if nothing useful."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        if student.shifts is not None:
            student.shifts.mul_(10)
    return student


def as_schedule(student, host):
    run, predictor = student.result()
    run = replace(run, guidance=host.run.guidance)
    return CacheSchedule(student.compute, host.table, Contract(run), predictor)


def sample_with(schedule, model, noise):
    """Without the clamping of `l2c.sample`."""
    sampler = Sampler.of_run(Denoiser.of(model), schedule.contract.run, Guidance(1.5))
    with torch.no_grad(), l2c.enable_cache(model, schedule):
        return sampler(noise, LABELS)


@pytest.mark.parametrize("make", [tiny_dit, tiny_uvit])
@pytest.mark.parametrize("free_solver", [False, True])
@pytest.mark.parametrize("history", [1, 2, 3])
def test_nothing_learned_is_the_polynomial_of_the_sampler(make, free_solver, history, noise):
    model = make()
    host = host_of(model)
    run = host.run
    if free_solver:  # diffusers rounds timesteps
        log_snrs = torch.tensor(run.log_snrs, dtype=torch.float64)
        timesteps = tuple(map(host.sampler.denoiser.noise_schedule.timestep, run.log_snrs))
        assert timesteps == pytest.approx(run.timesteps, abs=0.51)
        table = tuple(map(tuple, multistep_table(log_snrs).tolist()))
        run = replace(run, solver=LEARNED, spacing=LEARNED, timesteps=timesteps, weights=table)
    student = Student(host, mask_of(model), history, free_solver=free_solver)
    taylor = Predictor("taylor", history - 1) if history > 1 else Predictor()
    schedule = CacheSchedule(mask_of(model), find_layers(model), Contract(run), taylor)
    with torch.no_grad():
        made = make_with(student, noise)
    torch.testing.assert_close(made, sample_with(schedule, model, noise), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["logsnr", "karras", "linspace"])
@pytest.mark.parametrize("free_solver", [False, True])
def test_what_is_saved_samples_what_the_student_made(spacing, free_solver, noise, generator, tmp_path):
    model = tiny_dit()
    host = host_of(model, spacing)
    untouched = Student(host, mask_of(model), 3, free_solver=free_solver)
    student = shaken(Student(host, mask_of(model), 3, free_solver=free_solver), generator)
    as_schedule(student, host).save(tmp_path / "s.safetensors")
    loaded = CacheSchedule.load(tmp_path / "s.safetensors")
    with torch.no_grad():
        made, before = make_with(student, noise), make_with(untouched, noise)
    sampled = sample_with(loaded, model, noise)
    torch.testing.assert_close(sampled, made, atol=1e-3, rtol=1e-4)
    assert (made - before).abs().mean() > 100 * (made - sampled).abs().mean()
    assert (loaded.contract.run.weights is not None) == free_solver


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_differences(recompute, noise, generator):
    model = tiny_dit()
    student = Student(host_of(model), mask_of(model), 3, free_solver=True, recompute=recompute)
    shaken(student, generator)
    target = torch.zeros_like(noise)

    def loss():
        return (make_with(student, noise) - target).square().mean()

    loss().backward()
    for name, parameter in student.named_parameters():
        direction = parameter.grad / parameter.grad.norm()
        step = 2e-3
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(loss().item())
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(parameter.grad.norm().item(), rel=0.05), name


def test_gradients_reach_what_can_be_learned_and_nothing_else(noise):
    model = tiny_dit()
    student = Student(host_of(model), mask_of(model), 2, free_solver=True)
    make_with(student, noise).square().sum().backward()
    compute = mask_of(model)
    assert (student.forecasts.added.grad[compute] == 0).all()
    assert (student.forecasts.added.grad[~compute][:, 0] != 0).all()
    assert student.shifts.grad[0] == 0  # where the initial noise is given
    assert (student.shifts.grad[1:] != 0).all()
    assert (student.corrections.grad.triu(1) == 0).all()
    assert (student.corrections.grad[0] == 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("spacing", ["logsnr", "karras", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [2, 5, 24])
def test_noise_levels_stay_in_order_however_far_they_are_moved(spacing, steps, generator):
    model = tiny_dit()
    host = host_of(model, spacing, steps)
    compute = torch.ones(steps, len(find_layers(model)), dtype=torch.bool)
    student = Student(host, compute, 3, free_solver=True)
    for _ in range(5):
        with torch.no_grad():
            student.shifts.copy_(100 * torch.randn(steps, generator=generator))
        run, _ = student.result()
        gaps = [after - before for before, after in zip(run.log_snrs, run.log_snrs[1:], strict=False)]
        assert min(gaps) > 0
        assert run.log_snrs[0] == host.run.log_snrs[0]
        steps_down = [before - after for before, after in zip(run.timesteps, run.timesteps[1:], strict=False)]
        assert min(steps_down) >= 0


def test_layers_that_are_reused_are_not_called(noise):
    model = tiny_dit()
    with count_calls(model) as counts, torch.no_grad():
        make_with(Student(host_of(model), mask_of(model), 3), noise)
    expected = mask_of(model).sum(0).tolist()
    assert [counts[name] for name in find_layers(model).names] == expected


def test_everything_computed_is_the_sampler(noise):
    model = tiny_dit()
    host = host_of(model)
    student = Student(host, torch.ones(STEPS, len(find_layers(model)), dtype=torch.bool), 3)
    with torch.no_grad():
        assert torch.equal(make_with(student, noise), host.sampler(noise, LABELS))
    assert student.result() == (host.run, Predictor())


def test_the_model_is_free_again_after_a_run_and_after_an_error(noise):
    model = tiny_dit()
    student = Student(host_of(model), mask_of(model), 3)
    with torch.no_grad():
        make_with(student, noise)
    with pytest.raises(RuntimeError):
        make_with(student, noise[:, :1])
    with pytest.raises(CacheStateError, match="no cache is enabled"):
        l2c.disable_cache(model)


def test_differences_of_a_polynomial():
    """The second difference of a line is none, that of a square is constant."""
    weights = difference_weights(3)
    latest_first = torch.tensor([[3.0, 2.0, 1.0], [9.0, 4.0, 1.0]])
    assert (weights @ latest_first[0]).tolist() == [3.0, 1.0, 0.0]
    assert (weights @ latest_first[1]).tolist() == [9.0, 5.0, 2.0]


@pytest.mark.parametrize(("recompute", "tensors"), [(False, 9.0), (True, 2.5)])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_graph_of_a_run_takes_no_more_memory_than_documented(dit, recompute, tensors, bf16):
    """docs/learning.md, Memory: so many times rows x tokens x width for every computed layer, and once for others."""
    host = host_of(dit, steps=6)
    compute = torch.zeros(6, 24, dtype=torch.bool)
    compute[::2] = True
    student = Student(host, compute, 3, recompute=recompute, bf16=bf16)
    weights = {parameter.untyped_storage().data_ptr() for parameter in dit.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        storage = tensor.untyped_storage().data_ptr()
        if storage not in weights:
            kept[storage] = tensor  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        make_with(student, torch.randn(1, 3, 32, 32))
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    unit = 2 * 256 * 192 * (2 if bf16 else 4)  # rows x tokens x width x bytes
    inputs = compute.sum().item() * unit if recompute else 0  # which checkpoints hold beside the graph
    assert total + inputs <= unit * (tensors * compute.sum().item() + (~compute).sum().item())
