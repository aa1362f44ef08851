from dataclasses import replace

import pytest
import torch

import l2c
from l2c import LearnSettings
from l2c.errors import ConfigError
from l2c.hosts.pipeline.trajectory import PipelineTrajectory
from l2c.testing import tiny_call, tiny_interval, tiny_pipeline, tiny_run

CONDITIONS = [{"prompt": "a photo of a cat"}, {"prompt": "a painting of the green house"}]
SETTINGS = LearnSettings(
    iterations=20, batch_size=1, num_examples=8, history=2, learning_rate=2e-2, reference_steps=None
)
FEW = replace(SETTINGS, iterations=2, num_examples=4, history=3, learning_rate=4e-3)


def call_of(name):
    return {k: v for k, v in tiny_call(name).items() if k not in ("generator", "prompt", "output_type")}


@pytest.mark.parametrize("name", ["pixart", "flux", "sd3"])
def test_learning_through_the_pipeline_lowers_the_error_on_what_it_has_not_seen(name):
    pipe, call = tiny_pipeline(name), call_of(name)
    schedule = tiny_interval(pipe, name, every=3)
    conditions = CONDITIONS if name == "pixart" else [{}]
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    learned = l2c.repair(pipe, schedule, conditions=conditions, settings=SETTINGS, **call)
    made = learned.provenance
    assert made["held_out_error"] < 0.9 * made["held_out_error_before"]
    assert torch.equal(learned.compute, schedule.compute)
    assert all(torch.equal(value, before[key]) for key, value in pipe.transformer.state_dict().items())
    drift = l2c.check(pipe, learned, **call, **conditions[0])
    assert drift.recorded == pytest.approx(made["held_out_error"], abs=1e-5)


def test_a_trajectory_is_the_pipeline_bit_for_bit(pixart):
    trajectory = PipelineTrajectory(pixart, call_of("pixart"))
    assert torch.equal(trajectory.sample(CONDITIONS[0], seed=0), tiny_run(pixart, "pixart"))
    assert "encode_prompt" not in vars(pixart)


def test_computing_again_in_the_backward_pass_gives_the_same(pixart):
    schedule, made = tiny_interval(pixart, "pixart", every=2), []
    for recompute in (False, True):
        settings = replace(FEW, iterations=3, recompute=recompute)
        learned = l2c.repair(pixart, schedule, conditions=CONDITIONS, settings=settings, **call_of("pixart"))
        made.append(learned.predictor.coefficients)
    torch.testing.assert_close(made[0], made[1])


def test_a_few_iterations_repair_a_schedule_for_other_weights(flux):
    call, schedule = call_of("flux"), tiny_interval(flux, "flux", every=3)
    learned = l2c.repair(flux, schedule, settings=SETTINGS, **call)
    tuned = tiny_pipeline("flux")
    with torch.no_grad():
        for index, weight in enumerate(tuned.transformer.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
            weight.add_(noise, alpha=0.5 * weight.abs().mean().item())
    few = replace(SETTINGS, iterations=8, history=3, learning_rate=1e-2)
    repaired = l2c.repair(tuned, learned, settings=few, **call)
    drifted = repaired.provenance["held_out_error_before"]
    assert drifted != learned.provenance["held_out_error"]
    assert repaired.provenance["held_out_error"] < drifted
    assert repaired.predictor.history == learned.predictor.history


def test_learning_refuses_what_it_cannot_learn_on(pixart):
    call, schedule = call_of("pixart"), tiny_interval(pixart, "pixart")
    without_decoder = tiny_pipeline("dit")
    without_decoder.vae = None
    with pytest.raises(ConfigError, match="computes everything"):
        l2c.repair(pixart, tiny_interval(pixart, "pixart", every=1), conditions=CONDITIONS, **call)
    with pytest.raises(ConfigError, match="at least one prompt or label"):
        l2c.repair(pixart, schedule, prompts=[], **call)
    with pytest.raises(ConfigError, match="cannot put out latents"):
        PipelineTrajectory(without_decoder, {})
    with pytest.raises(ConfigError, match="leave out generator"):
        l2c.repair(pixart, schedule, conditions=CONDITIONS, generator=torch.Generator(), **call)
    with pytest.raises(ConfigError, match="history must be at most 5, got 6"):
        LearnSettings(history=6)
    with pytest.raises(ConfigError, match="trials must be at least 1, got 0"):
        LearnSettings(trials=0)
    with pytest.raises(ConfigError, match="either prompts or conditions"):
        l2c.repair(pixart, schedule, prompts=["a cat"], conditions=CONDITIONS, **call)


def test_weights_that_require_gradients_get_none_and_require_them_afterwards(pixart):
    schedule, made = tiny_interval(pixart, "pixart"), []
    few = replace(FEW, recompute=True)
    for wanted in (False, True):
        pixart.transformer.requires_grad_(wanted)
        pixart.transformer.proj_out.requires_grad_(False)
        learned = l2c.repair(pixart, schedule, conditions=CONDITIONS, settings=few, **call_of("pixart"))
        made.append(learned.predictor.coefficients)
    assert torch.equal(*made)
    assert all(weight.grad is None for weight in pixart.transformer.parameters())
    still = {name for name, weight in pixart.transformer.named_parameters() if not weight.requires_grad}
    assert still == {"proj_out.weight", "proj_out.bias"}


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen", "wan"])
def test_a_prompt_given_as_embeddings_in_the_call_is_run_for_several_pictures_at_once(name):
    """Without that no solver is fitted, and learning one begins at a known one."""
    host = l2c.host_of(tiny_pipeline(name), **call_of(name))
    examples = host.seeded([0, 1, 2])
    together, states = host.together(examples)
    torch.testing.assert_close(together, host.sample(examples), atol=1e-3, rtol=1e-3)
    assert len(states) == len(host.run.timesteps) + 1
    assert host.ready(None, batch_size=2)().shape[0] == 2


def test_a_solver_for_a_prompt_given_as_embeddings_in_the_call_begins_fitted(caplog):
    few = replace(FEW, num_examples=6, reference_steps=8, trials=2, level_trials=2, fit_examples=3)
    with caplog.at_level("INFO", logger="l2c"):
        l2c.learn(tiny_pipeline("sd3"), solver="auto", evaluations=3, settings=few, **call_of("sd3"))
    assert "sets of noise levels tried" in caplog.text
    assert "cannot be fitted" not in caplog.text
