import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.hosts import pipeline as pipelines
from l2c.hosts.pipeline.settings import FitSettings
from l2c.hosts.pipeline.trajectory import PipelineTrajectory
from l2c.testing import tiny_call, tiny_interval, tiny_pipeline, tiny_run

PROMPTS = [{"prompt": "a photo of a cat"}, {"prompt": "a painting of the green house"}]
SETTINGS = FitSettings(iterations=20, num_runs=4, history=2, learning_rate=2e-2)


def call_of(name):
    return {k: v for k, v in tiny_call(name).items() if k not in ("generator", "prompt", "output_type")}


@pytest.mark.parametrize("name", ["pixart", "flux", "sd3"])
def test_learning_through_the_pipeline_lowers_the_error_on_what_it_has_not_seen(name):
    pipe, call = tiny_pipeline(name), call_of(name)
    schedule = tiny_interval(pipe, name, every=3)
    conditions = PROMPTS if name == "pixart" else [{}]
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    learned = pipelines.fit_predictor(pipe, schedule, conditions, settings=SETTINGS, **call)
    made = learned.provenance
    assert made["held_out_error"] < 0.9 * made["held_out_error_before"]
    assert torch.equal(learned.compute, schedule.compute)
    assert all(torch.equal(value, before[key]) for key, value in pipe.transformer.state_dict().items())
    drift = l2c.check(pipe, learned, **call, **conditions[0])
    assert drift.reference == pytest.approx(made["held_out_error"], abs=1e-5)


def test_a_trajectory_is_the_pipeline_bit_for_bit(pixart):
    trajectory = PipelineTrajectory(pixart, call_of("pixart"))
    assert torch.equal(trajectory.sample(PROMPTS[0], seed=0), tiny_run(pixart, "pixart"))
    assert "encode_prompt" not in vars(pixart)


def test_computing_again_in_the_backward_pass_gives_the_same(pixart):
    schedule, made = tiny_interval(pixart, "pixart", every=2), []
    for recompute in (False, True):
        settings = FitSettings(iterations=3, num_runs=2, recompute=recompute)
        learned = pipelines.fit_predictor(pixart, schedule, PROMPTS, settings=settings, **call_of("pixart"))
        made.append(learned.predictor.coefficients)
    torch.testing.assert_close(made[0], made[1])


def test_a_few_iterations_repair_a_schedule_for_other_weights(flux):
    call, schedule = call_of("flux"), tiny_interval(flux, "flux", every=3)
    learned = pipelines.fit_predictor(flux, schedule, [{}], settings=SETTINGS, **call)
    tuned = tiny_pipeline("flux")
    with torch.no_grad():
        for index, weight in enumerate(tuned.transformer.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
            weight.add_(noise, alpha=0.5 * weight.abs().mean().item())
    few = FitSettings(iterations=8, num_runs=4, learning_rate=1e-2)
    repaired = pipelines.fit_predictor(tuned, learned, [{}], settings=few, **call)
    drifted = repaired.provenance["held_out_error_before"]
    assert drifted != learned.provenance["held_out_error"]
    assert repaired.provenance["held_out_error"] < drifted
    assert repaired.predictor.history == learned.predictor.history


def test_learning_refuses_what_it_cannot_learn_on(pixart):
    call, schedule = call_of("pixart"), tiny_interval(pixart, "pixart")
    without_decoder = tiny_pipeline("dit")
    without_decoder.vae = None
    with pytest.raises(ConfigError, match="computes everything"):
        pipelines.fit_predictor(pixart, tiny_interval(pixart, "pixart", every=1), PROMPTS, **call)
    with pytest.raises(ConfigError, match="at least one prompt or label"):
        pipelines.fit_predictor(pixart, schedule, [], **call)
    with pytest.raises(ConfigError, match="cannot put out latents"):
        PipelineTrajectory(without_decoder, {})
    with pytest.raises(ConfigError, match="leave out generator"):
        pipelines.fit_predictor(pixart, schedule, PROMPTS, generator=torch.Generator(), **call)
    with pytest.raises(ConfigError, match="history must be from 1 to 5, got 6"):
        FitSettings(history=6)
    with pytest.raises(ConfigError, match="trials must be at least 1, got 0"):
        FitSettings(trials=0)
    with pytest.raises(ConfigError, match="either prompts or conditions"):
        pipelines.fit_predictor(pixart, schedule, **call)


def test_weights_that_require_gradients_get_none_and_require_them_afterwards(pixart):
    schedule, made = tiny_interval(pixart, "pixart"), []
    few = FitSettings(iterations=2, num_runs=1, recompute=True)
    for wanted in (False, True):
        pixart.transformer.requires_grad_(wanted)
        pixart.transformer.proj_out.requires_grad_(False)
        learned = pipelines.fit_predictor(pixart, schedule, PROMPTS, settings=few, **call_of("pixart"))
        made.append(learned.predictor.coefficients)
    assert torch.equal(*made)
    assert all(weight.grad is None for weight in pixart.transformer.parameters())
    still = {name for name, weight in pixart.transformer.named_parameters() if not weight.requires_grad}
    assert still == {"proj_out.weight", "proj_out.bias"}
