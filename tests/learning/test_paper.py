from dataclasses import replace

import pytest
import torch

import l2c
from l2c.errors import ConfigError, NumericsError
from l2c.learning.objective import router_loss
from l2c.learning.paper import RouterSettings
from l2c.learning.router import Router
from l2c.testing import tiny_dit, tiny_uvit

SETTINGS = RouterSettings(iterations=3, batch_size=2, seed=5)


def learn_router(model, **options):
    return l2c.learn(model, pattern="alternate", **options)


def test_learning_leaves_the_model_as_it_was():
    model = tiny_dit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bare = l2c.sample(model, [1], steps=4)
    learn_router(model, steps=4, settings=SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(l2c.sample(model, [1], steps=4), bare)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "dpmsolver-singlestep", "euler"])
def test_a_learned_schedule_fits_its_run(solver, guidance):
    model = tiny_uvit()
    schedule = learn_router(model, solver=solver, steps=6, guidance=guidance, settings=SETTINGS)
    l2c.sample(model, [1], solver=solver, steps=6, guidance=guidance, schedule=schedule)
    decided = schedule.scores.isfinite().all(1).nonzero().flatten().tolist()
    assert decided == ([2, 4] if solver == "dpmsolver-singlestep" else [1, 3, 5])


def test_the_price_of_computing_decides_how_much_is_computed():
    free = replace(SETTINGS, iterations=12, lambda_=0.0, learning_rate=1.0)
    dear = replace(free, lambda_=10.0)
    model = tiny_dit()
    assert learn_router(model, steps=4, settings=free).cost.fraction > 0.9
    expensive = learn_router(model, steps=4, settings=dear)
    assert not expensive.compute[1::2].any()


def test_layers_whose_reuse_hurts_more_are_kept():
    """With one branch made ten times as loud as it was, the router keeps that one and drops the others."""
    model = tiny_dit()
    model.blocks[1].mlp.fc2.weight.mul_(30)
    settings = replace(SETTINGS, iterations=20, learning_rate=0.5)
    scores = learn_router(model, steps=6, settings=replace(settings, lambda_=2e-3)).scores[1::2]
    loud = list(learn_router(model, steps=6, settings=SETTINGS).layers.names).index("blocks.1.mlp")
    assert scores.mean(0).argmax() == loud


def test_learning_is_reproducible():
    first, second = (learn_router(tiny_dit(), steps=4, settings=SETTINGS) for _ in range(2))
    other = learn_router(tiny_dit(), steps=4, settings=replace(SETTINGS, seed=6))
    assert torch.equal(first.scores[1::2], second.scores[1::2])
    assert not torch.equal(first.scores[1::2], other.scores[1::2])


def test_ctrl_c_keeps_the_schedule_so_far():
    seen = []

    def stop(progress):
        seen.append(progress)
        if progress.iteration == 2:
            raise KeyboardInterrupt

    schedule = learn_router(tiny_dit(), steps=4, settings=replace(SETTINGS, iterations=50), on_progress=stop)
    assert schedule.provenance["interrupted"] is True
    assert schedule.provenance["iterations"] == 2
    assert [p.iteration for p in seen] == [1, 2]
    assert 0 < seen[-1].fraction <= 1


def test_broken_weights_are_reported():
    model = tiny_dit()
    model.blocks[0].attn.proj.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="loss is nan at iteration 1; check the weights"):
        learn_router(model, steps=4, settings=SETTINGS)
    with pytest.raises(l2c.errors.CacheStateError, match="no cache is enabled"):
        l2c.disable_cache(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"threshold": 2.0}, "threshold must be at most 1, got 2"),
        ({"learning_rate": 0.0}, "learning_rate must be more than 0, got 0"),
        ({"reduction": "max"}, "reduction must be one of mean, sum, got 'max'"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        RouterSettings(**change)


def test_a_run_without_anything_to_reuse_is_refused():
    with pytest.raises(ConfigError, match="take more steps"):
        learn_router(tiny_dit(), steps=1, settings=SETTINGS)


def test_router_loss_is_squared_error_and_price():
    mixed, full = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    scores = torch.tensor([0.5, 1.0])
    error, price = router_loss(mixed, full, scores, 0.1, "mean")
    assert (error.item(), price.item()) == (1.0, pytest.approx(0.15))
    assert router_loss(mixed, full, scores, 0.1, "sum")[0].item() == 48.0


def test_router_clamps_its_logits():
    router = Router((1, 3), 4, initial_logit=9.0)
    router.clamp_()
    assert router.scores(1).tolist() == pytest.approx([torch.tensor(5.0).sigmoid().item()] * 4)
    table = router.score_table(5)
    assert table.isnan().all(1).tolist() == [True, False, True, False, True]


def test_real_images_need_no_null_class_and_promise_no_guidance(tmp_path):
    from PIL import Image

    from l2c.learning.data import load_images

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (200, 30, 90)).save(tmp_path / name / "0.png")
    model = tiny_uvit(has_null_class=False)
    always = replace(SETTINGS, label_dropout=1.0)
    schedule = learn_router(model, steps=4, guidance=1.0, data=load_images(tmp_path, 8), settings=always)
    assert schedule.contract.run.guidance is None
    with pytest.raises(ConfigError, match="without a null class"):
        learn_router(model, steps=4, guidance=1.0, data=load_images(tmp_path / "a", 8), settings=always)


def mixed_output(model, x, timestep, labels, shares, stored):
    """The model's output with every layer's own mixed with what was stored, in a loop of its own."""
    layers = [model.get_submodule(layer.module_path) for layer in l2c.layers.find_layers(model).layers]
    for module, share, old in zip(layers, shares, stored, strict=True):

        def mixing(*arguments, _own=module.forward, _share=share, _old=old):
            return _share * _own(*arguments) + (1 - _share) * _old

        module.forward = mixing
    try:
        return model(x, timestep, labels)
    finally:
        for module in layers:
            del module.forward


def full_output(model, x, timestep, labels):
    """The model's output, and those of its layers."""
    found = []
    layers = [model.get_submodule(layer.module_path) for layer in l2c.layers.find_layers(model).layers]
    handles = [layer.register_forward_hook(lambda *call: found.append(call[2])) for layer in layers]
    output = model(x, timestep, labels)
    for handle in handles:
        handle.remove()
    return output, found


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@torch.no_grad()
def test_the_loss_is_that_of_an_independent_computation(reduction):
    """DDIM over both halves of guidance, and at odd evaluations both terms of equation 7, with equation 6 by hand."""
    model, steps, guidance = tiny_dit(), 4, 2.0
    settings = replace(SETTINGS, iterations=1, lambda_=0.01, learning_rate=0.5, reduction=reduction)
    run = {"steps": steps, "guidance": guidance}
    learned = learn_router(model, settings=settings, **run).scores  # after one iteration, those of the second
    seen = []
    learn_router(model, settings=replace(settings, iterations=2), on_progress=seen.append, **run)

    host = l2c.host_of(model, **run)
    examples = host.examples(settings.batch_size, settings.seed, 1)
    labels = torch.cat([examples.labels, torch.full_like(examples.labels, 10)])
    x, losses, errors, stored = examples.noise, [], [], None
    levels = [*host.run.log_snrs]
    alphas = [torch.tensor(2 * level, dtype=torch.float64).sigmoid().sqrt().float() for level in levels]
    for evaluation, timestep in enumerate(host.run.timesteps):
        twice, at = torch.cat([x, x]), torch.full((len(labels),), timestep)
        output, fresh = full_output(model, twice, at, labels)
        if evaluation % 2:
            shares = learned[evaluation]
            mixed = mixed_output(model, twice, at, labels, shares, stored)
            squares = (mixed - output).square().flatten(1)
            error = (squares.mean(1) if reduction == "mean" else squares.sum(1)).mean()
            errors.append(error)
            losses.append(error + 0.01 * shares.sum())
        stored = fresh
        conditional, null = output.chunk(2)
        noise = null + guidance * (conditional - null)
        if evaluation + 1 < steps:
            alpha, later = alphas[evaluation], alphas[evaluation + 1]
            clean = (x - (1 - alpha**2).sqrt() * noise) / alpha
            x = later * clean + (1 - later**2).sqrt() * noise
    assert not torch.equal(learned[1], torch.full_like(learned[1], 0.5))
    assert seen[-1].iteration == 2
    assert seen[-1].error == pytest.approx(torch.stack(errors).mean().item(), rel=1e-3)
    assert seen[-1].loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-3)


def test_other_kinds_of_guidance_learn_the_same_scores():
    """In two calls instead of one batch, the halves have a loss each, whose mean is that of the batch."""
    settings = replace(SETTINGS, iterations=1)
    batch, split = (
        learn_router(tiny_dit(), steps=4, guidance_mode=mode, settings=settings)
        for mode in ("batch", "split")
    )
    decided = batch.scores.isfinite()
    assert torch.equal(split.scores.isfinite(), decided)
    torch.testing.assert_close(split.scores[decided], batch.scores[decided], atol=1e-3, rtol=0.0)
