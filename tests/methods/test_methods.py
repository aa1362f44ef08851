"""Each method against its publication's description, on cases small enough to write down."""

import numpy as np
import pytest
import torch

import l2c
from l2c.errors import ConfigError
from l2c.learning.paper import RouterSettings
from l2c.methods import (
    all_methods,
    deepcache,
    delta_dit,
    faster_diffusion,
    fewer_steps,
    find_method,
    fora,
    l2c_paper,
    learned,
    schedule_for,
    smoothcache,
    taylorseer,
)
from l2c.methods.l2c_paper import COMMON, PUBLISHED
from l2c.methods.smoothcache import CALIBRATION_SEED, calibrate, scan
from l2c.methods.taylorseer import forecast_weights
from l2c.schedule.schedule import CacheSchedule


def rows(schedule: CacheSchedule) -> list[str]:
    return ["".join("1" if c else "0" for c in row) for row in schedule.compute.tolist()]


def test_fora_computes_everything_at_every_nth_evaluation(tiny_dit):
    schedule = fora(tiny_dit, solver="ddim", steps=7, every=3)
    assert rows(schedule) == ["111111", "000000", "000000", "111111", "000000", "000000", "111111"]
    assert schedule.predictor.name == "copy"


def test_deepcache_computes_the_outer_blocks_always(tiny_dit, tiny_uvit):
    assert rows(deepcache(tiny_dit, solver="ddim", steps=4, every=3, shallow=1)) == [
        "111111",
        "110011",
        "110011",
        "111111",
    ]
    schedule = deepcache(tiny_uvit, solver="ddim", steps=3, every=2, shallow=1)
    assert schedule.layers.names[2:4] == ("mid_block.attn", "mid_block.mlp")
    assert rows(schedule) == ["111111", "110011", "111111"]
    with pytest.raises(
        ConfigError, match="shallow, which counts blocks on either end of 3, must be at most 1, got 2"
    ):
        deepcache(tiny_dit, solver="ddim", steps=4, shallow=2)


def test_faster_diffusion_computes_the_decoder_always(tiny_uvit, tiny_dit):
    assert rows(faster_diffusion(tiny_uvit, solver="ddim", steps=3, every=2)) == [
        "111111",
        "000011",
        "111111",
    ]
    schedule = faster_diffusion(tiny_uvit, solver="ddim", steps=50)
    keys = [i for i, row in enumerate(rows(schedule)) if row == "111111"]
    assert keys == [0, 1, 2, 3, 5, 10, 15, 25, 35]
    assert set(rows(schedule)) == {"111111", "000011"}
    with pytest.raises(ConfigError, match="a U-ViT; got a dit"):
        faster_diffusion(tiny_dit, solver="ddim", steps=4)


def test_delta_dit_reuses_rear_blocks_early_and_front_blocks_late(tiny_dit):
    schedule = delta_dit(tiny_dit, solver="ddim", steps=8, every=2, share=2 / 3, boundary=0.5)
    early, late = ["111111", "110000"], ["111111", "000011"]
    assert rows(schedule) == early + early + late + late


def test_delta_dit_default_is_the_published_speed_up(dit):
    assert 1 / delta_dit(dit, steps=20).cost.fraction == pytest.approx(1.6, abs=0.05)


def test_fewer_steps_is_another_run_with_everything_computed(tiny_dit):
    schedule = fewer_steps(
        tiny_dit, solver="ddim", steps=50, budget=0.3, to_solver="unipc", to_spacing="logsnr"
    )
    run = schedule.contract.run
    assert (run.solver, run.steps, run.spacing) == ("unipc", 15, "logsnr")
    assert bool(schedule.compute.all())


def test_taylorseer_is_full_at_first_and_then_at_every_nth(tiny_dit):
    schedule = taylorseer(tiny_dit, solver="ddim", steps=9, every=3, order=1, first=2)
    assert [row == "111111" for row in rows(schedule)] == [
        True,
        True,
        False,
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_taylorseer_weights_by_hand():
    # values v0 at evaluation 0, v2 at 2: slope (v2 - v0) / 2; one ahead: v2 + (v2 - v0) / 2
    assert forecast_weights(3, [2, 0], order=3).tolist() == [1.5, -0.5]
    # v0, v2, v4: slopes a = (v2 - v0) / 2, b = (v4 - v2) / 2, curvature (b - a) / 2; v4 + b + (b - a) / 4
    assert forecast_weights(5, [4, 2, 0], order=2).tolist() == [1 + 0.5 + 0.125, -0.5 - 0.25, 0.125]


def test_taylorseer_agrees_with_the_series_computed_on_features(tiny_dit):
    """The whole run again, with derivatives kept per layer as the publication does."""
    steps, every, order, first = 9, 3, 2, 2
    schedule = taylorseer(tiny_dit, solver="ddim", steps=steps, every=every, order=order, first=first)
    ours = l2c.sample(tiny_dit, [1, 2], steps=steps, schedule=schedule)
    modules = [tiny_dit.get_submodule(layer.module_path) for layer in schedule.layers.layers]
    state = {"evaluation": -1, "last": None}
    factors: dict[int, list[torch.Tensor]] = {}

    def forward(index, original):
        def call(*arguments):
            now = state["evaluation"]
            if now < first or (now - first + 1) % every == 0:
                derivatives = [original(*arguments)]
                for i, previous in enumerate(factors.get(index, [])[:order]):
                    derivatives.append((derivatives[i] - previous) / (now - state["last"]))
                factors[index] = derivatives
                return derivatives[0]
            ahead = now - state["last"]
            terms = zip(factors[index], (1, ahead, ahead**2 / 2), strict=False)
            return sum(value * weight for value, weight in terms)

        return call

    def before(module, arguments):
        state["evaluation"] += 1

    def after(module, arguments, output):
        now = state["evaluation"]
        if now < first or (now - first + 1) % every == 0:
            state["last"] = now

    handles = [tiny_dit.register_forward_pre_hook(before), tiny_dit.register_forward_hook(after)]
    for index, module in enumerate(modules):
        module.forward = forward(index, module.forward)
    theirs = l2c.sample(tiny_dit, [1, 2], steps=steps)
    for module in modules:
        del module.forward
    for handle in handles:
        handle.remove()
    assert (ours - l2c.sample(tiny_dit, [1, 2], steps=steps)).abs().max() > 1e-3  # it is not all computed
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_smoothcache_errors_agree_with_an_independent_computation(tiny_dit):
    steps, count = 5, 3
    found = calibrate(tiny_dit, solver="ddim", steps=steps, num_images=count, lookahead=2, guidance=1.5)
    outputs: dict[str, list[np.ndarray]] = {}
    handles = [
        tiny_dit.get_submodule(layer.module_path).register_forward_hook(
            lambda module, arguments, output, name=layer.name: outputs.setdefault(name, []).append(
                output.detach().double().numpy()
            )
        )
        for layer in l2c.methods.fora(tiny_dit).layers.layers
    ]
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + count)
    l2c.sample(tiny_dit, list(range(count)), list(seeds), steps=steps, guidance=1.5)
    for handle in handles:
        handle.remove()
    for kind, part in (("attention", "attn"), ("mlp", "mlp")):
        layers = [values for name, values in outputs.items() if name.endswith(part)]
        assert len(layers) == 3
        for j in range(2):
            for i in range(steps - j - 1):
                expected = np.mean(
                    [np.abs(v[i] - v[i + j + 1]).sum() / np.abs(v[i + j + 1]).sum() for v in layers]
                )
                assert found[kind][j, i] == pytest.approx(expected, rel=1e-4)
            assert found[kind][j, steps - j - 1 :].isinf().all()


def test_smoothcache_takes_the_longest_stretch_within_the_threshold():
    infinite = torch.inf
    errors = torch.tensor(
        [
            [0.9, 0.1, 0.1, 0.1, 0.1, 0.1, infinite],
            [0.9, 0.3, 0.2, 0.1, 0.2, infinite, infinite],
            [0.9, 0.9, 0.9, 0.2, infinite, infinite, infinite],
        ]
    )
    # 0: nothing within; 1: one; 3: three, up to 6, but the last evaluation computes
    assert scan(errors, 0.2).int().tolist() == [1, 1, 0, 1, 0, 0, 1]


def test_smoothcache_threshold_and_budget(tiny_dit):
    run = {"solver": "ddim", "steps": 12, "num_images": 2}
    assert bool(smoothcache(tiny_dit, **run, threshold=0.0).compute.all())
    half = smoothcache(tiny_dit, **run, budget=0.6)
    assert half.cost.fraction == pytest.approx(0.6, abs=0.12)
    kinds = [layer.kind for layer in half.layers.layers]
    assert len({tuple(half.compute[:, i].tolist()) for i, kind in enumerate(kinds) if kind == "mlp"}) == 1
    with pytest.raises(ConfigError, match="must be at most 1, got 1.5"):
        smoothcache(tiny_dit, **run, budget=1.5)


def test_l2c_thresholds_one_router_for_every_budget(tiny_dit):
    method = find_method("l2c")
    router = method.prepare(tiny_dit, solver="ddim", steps=6, iterations=2, batch_size=1)
    assert router.provenance["iterations"] == 2
    for budget in (0.9, 0.7):
        schedule = l2c_paper(tiny_dit, solver="ddim", steps=6, prepared=router, budget=budget)
        assert schedule.cost.fraction == pytest.approx(budget, abs=0.1)
        assert all(row == "111111" for row in rows(schedule)[::2])
    threshold = schedule.provenance["threshold"]
    scores = router.scores[1::2]
    assert torch.equal(schedule.compute[1::2], scores > threshold)


def test_l2c_takes_released_settings(tiny_uvit):
    small = {"iterations": 1, "batch_size": 1, "learning_rate": 0.5}
    schedule = l2c_paper(tiny_uvit, solver="dpmsolver-singlestep", steps=6, release="uvit", **small)
    assert (schedule.provenance["lambda"], schedule.provenance["reduction"]) == (0.1, "sum")
    assert schedule.provenance["threshold"] == 0.9
    with pytest.raises(ConfigError, match="unknown release of L2C 'dit'; did you mean 'dit-50'"):
        l2c_paper(tiny_uvit, release="dit")
    for prepared in (None, schedule):
        with pytest.raises(ConfigError, match="no argument 'lamda'; did you mean lambda_?"):
            l2c_paper(tiny_uvit, prepared=prepared, lamda=1)
    for settings in PUBLISHED.values():
        RouterSettings(**COMMON, **settings)


def test_learned_reads_a_schedule_of_the_package(dit):
    schedule = learned(dit, path="l2c:dit-mini-cifar10-ddim-20.safetensors", budget=0.5)
    assert schedule.contract.run.steps == 20
    assert schedule.cost.fraction == pytest.approx(0.5, rel=0.01)
    with pytest.raises(ConfigError, match="needs the path of a schedule file"):
        learned(dit)


@pytest.mark.parametrize("name", sorted(set(all_methods()) - {"learned"}))
def test_every_method_meets_a_budget_and_samples(name, tiny_dit, tiny_uvit):
    method = find_method(name)
    model = tiny_dit if "dit" in method.architectures else tiny_uvit
    settings = {"num_images": 1} if name == "smoothcache" else {}
    settings = {"annealing": 2, "climbing": 1} if name == "budcache" else settings
    learned_here = ("l2c", "bespoke", "neuralsolver")
    settings = {"iterations": 1, "batch_size": 1} if name in learned_here else settings
    settings |= {"num_examples": 4, "reference_steps": 4} if name in learned_here[1:] else {}
    guidance = 1.5 if name == "adaptive-guidance" else 1.0
    run = {"solver": "dpmsolver++", "steps": 6, "guidance": guidance}
    schedule = schedule_for(method, model, budget=0.75, settings={**settings, **run})
    assert 0.3 < schedule.cost.fraction < 1.01
    run = schedule.contract.run
    asked = {} if run.weights else {"solver": run.solver, "steps": run.steps}
    images = l2c.sample(model, [3], guidance=guidance, schedule=schedule, **asked)
    assert bool(images.isfinite().all())
    assert schedule.provenance["method"] == name


def test_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown method 'smothcache'; did you mean 'smoothcache'"):
        find_method("smothcache")


def test_unknown_setting_is_a_sentence(tiny_dit):
    host = l2c.host_of(tiny_dit, steps=4)
    for method, settings, near in (
        ("fora", {"evry": 2}, "every"),
        ("smoothcache", {"num_image": 2}, "num_images"),
    ):
        for target, options in ((tiny_dit, {"steps": 4, **settings}), (host, settings)):
            with pytest.raises(
                ConfigError, match=f"takes no argument '{next(iter(settings))}'; did you mean {near}"
            ):
                schedule_for(find_method(method), target, settings=options)
