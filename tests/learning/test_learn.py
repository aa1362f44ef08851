"""Learning for budgets: what is met, what survives a failure, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import l2c
from l2c import LearnSettings
from l2c.errors import ConfigError, NumericsError
from l2c.layers import find_layers
from l2c.learning.learn import learn
from l2c.learning.masks import near
from l2c.learning.session import Session
from l2c.learning.solver import REUSE_GAINS, first_look
from l2c.schedule.cost import CostTable
from l2c.testing import tiny_dit, tiny_uvit

SETTINGS = LearnSettings(
    iterations=3, batch_size=2, num_examples=8, reference_steps=3, trials=4, trial_examples=2, seed=1
)
ONCE = replace(SETTINGS, iterations=1, trials=1, batch_size=1, num_examples=4)
STEPS = 6
BUDGETS = (0.7, 0.5)


def family_of(session=None, budgets=BUDGETS, settings=SETTINGS, model=None, **options):
    model = model or tiny_dit()
    options = {"budgets": budgets, "guidance": 1.0, "settings": settings, "session": session, **options}
    return learn(model, solver="ddim", steps=STEPS, **options)


def solver_of(session=None, settings=None, **options):
    settings = settings or replace(SETTINGS, trials=8)  # two masks are the fewest of which progress tells
    return learn(
        tiny_dit(), solver="auto", evaluations=3, guidance=1.0, settings=settings, session=session, **options
    )


def file_bytes(schedules, tmp_path):
    schedules.save(tmp_path / "schedules.safetensors")
    return (tmp_path / "schedules.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What learning without any trouble writes, for a family and for a learned solver."""
    folder = tmp_path_factory.mktemp("expected")
    return {"family": file_bytes(family_of(), folder), "solver": file_bytes(solver_of(), folder)}


@pytest.fixture
def session(tmp_path):
    """A session that saves after every iteration."""
    return Session(checkpoint=tmp_path / "c" / "checkpoint", save_every_s=0)


class Stop(Exception):  # noqa: N818
    """Ends learning like an error of the program."""


def stop_at(stage, iteration, error=Stop):
    def stop(progress):
        if progress.stage.startswith(stage) and progress.iteration == iteration:
            raise error

    return stop


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver-singlestep"])
def test_budgets_are_met_within_a_hundredth(solver):
    """With layers that are small enough: the largest is 0.4 % of the run."""
    model, budgets = tiny_dit(depth=8, hidden_size=16), (0.7, 0.3)
    family = learn(model, solver=solver, steps=20, budgets=budgets, guidance=1.0, settings=ONCE)
    for schedule, budget in zip(family, budgets, strict=True):
        assert 0.99 * budget < schedule.cost.fraction <= budget
        assert schedule.provenance["budget_cost"] == pytest.approx(schedule.cost.fraction)
        assert schedule.provenance["budget"] == budget
        l2c.sample(model, [1], schedule=schedule)


@pytest.fixture
def judged(monkeypatch):
    """Masks that searches judge from now on, in their order."""
    from l2c.learning.closed_loop import ClosedLoop

    masks, error = [], ClosedLoop.trial_error

    def noted(loop, student, **how):
        masks.append(student.compute)
        return error(loop, student, **how)

    monkeypatch.setattr(ClosedLoop, "trial_error", noted)
    return masks


def test_the_first_budget_of_a_family_gets_what_it_gets_alone(tmp_path):
    first = next(iter(family_of()))
    alone = learn(tiny_dit(), solver="ddim", steps=STEPS, budget=BUDGETS[0], guidance=1.0, settings=SETTINGS)
    assert file_bytes(first, tmp_path) == file_bytes(alone, tmp_path)


def test_a_search_begins_near_the_mask_of_the_nearest_budget(judged):
    model, budgets = tiny_dit(), (0.9, 0.4, 0.8, 0.5)
    settings = replace(ONCE, trials=5)
    family = learn(model, solver="ddim", steps=12, budgets=budgets, guidance=1.0, settings=settings)
    found = {schedule.provenance["budget"]: schedule for schedule in family}
    costs = CostTable.macs(find_layers(model))
    for index, (budget, nearest) in enumerate(((0.4, 0.9), (0.8, 0.9), (0.5, 0.4)), start=1):
        amount, other = budget * 12 * costs.full, found[nearest]
        order = other.provenance["polynomial_order"]
        (start,) = near(other.compute, amount, costs, order, seed=settings.seed)
        assert judged[5 * index].equal(start.mask(12, amount, costs))
        assert found[budget].provenance["masks_tried"] == 5


def test_another_seed_gives_another_family(expected, tmp_path):
    assert file_bytes(family_of(settings=replace(SETTINGS, seed=2)), tmp_path) != expected["family"]


def test_pictures_are_computed_once_for_all_budgets():
    seen = []
    family_of(on_progress=lambda progress: seen.append((progress.stage, progress.iteration)))
    assert seen == [
        ("fine-step solutions", 4),
        ("fine-step solutions", 8),
        ("fine-step solutions for validation", 1),
        *(
            (stage, iteration)
            for budget in BUDGETS
            for stage, count in (
                (f"judging masks {budget}", 3),
                (f"judging masks by more pictures {budget}", 4),
                (f"learning at {budget}", 3),
            )
            for iteration in range(1, count + 1)
        ),
    ]


def test_learning_leaves_the_model_as_it_was():
    model = tiny_dit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bare = l2c.sample(model, [1], steps=4)
    family_of(model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(l2c.sample(model, [1], steps=4), bare)


@pytest.mark.parametrize(
    ("stage", "iteration"),
    [
        ("fine-step solutions", 4),
        ("judging masks 0.7", 2),
        ("learning at 0.7", 1),
        ("learning at 0.7", 3),
        ("judging masks 0.5", 1),
        ("learning at 0.5", 2),
        ("learning at 0.5", 3),
    ],
)
def test_a_family_that_failed_goes_on_and_ends_with_the_same_bytes(
    stage, iteration, session, tmp_path, expected
):
    with pytest.raises(Stop):
        family_of(session, on_progress=stop_at(stage, iteration))
    seen = []
    resumed = family_of(session, on_progress=lambda p: seen.append((p.stage, p.iteration)))
    assert file_bytes(resumed, tmp_path) == expected["family"]
    assert (stage, iteration) not in seen or stage.startswith("judging")


def test_a_finished_family_is_given_again_at_once(session, tmp_path, expected):
    family_of(session)
    seen = []
    assert file_bytes(family_of(session, on_progress=seen.append), tmp_path) == expected["family"]
    assert seen == []


@pytest.mark.parametrize(
    ("stage", "iteration"),
    [
        ("paths to solutions", 6),
        ("fine-step solutions", 2),
        ("judging masks of", 1),  # of whichever number of evaluations comes first
        ("learning", 1),
        ("learning", 3),
    ],
)
def test_a_solver_that_failed_goes_on_and_ends_with_the_same_bytes(
    stage, iteration, session, tmp_path, expected
):
    with pytest.raises(Stop):
        solver_of(session, on_progress=stop_at(stage, iteration))
    assert file_bytes(solver_of(session), tmp_path) == expected["solver"]


def test_a_run_that_fails_again_and_again_ends_with_the_same_bytes(session, tmp_path, expected):
    """At everything that it does for the first time."""
    seen = set()

    def fail_at_what_is_new(progress):
        place = (progress.stage, progress.iteration)
        if place not in seen:
            seen.add(place)
            raise Stop

    while True:
        attempts = len(seen)
        try:
            family = family_of(session, on_progress=fail_at_what_is_new)
            break
        except Stop:
            assert len(seen) == attempts + 1
    assert len(seen) == 2 + 1 + 2 * (3 + 4 + 3)
    assert file_bytes(family, tmp_path) == expected["family"]


def test_a_search_that_failed_judges_no_mask_twice(session, judged):
    with pytest.raises(Stop):
        family_of(session, budgets=(0.5,), on_progress=stop_at("judging masks", 3))
    assert len(judged) == 3
    family_of(session, budgets=(0.5,))
    assert len(judged) == SETTINGS.trials


def late(session):
    """A session whose time is over from the start, so that what must be done at least is done."""
    return replace(session, time_limit_s=1e-9)


@pytest.fixture
def solved(session):
    """A session whose checkpoint has the fine-step solutions."""
    with pytest.raises(Stop):
        family_of(session, on_progress=stop_at("fine-step solutions", 8))
    return session


def test_the_time_limit_leaves_something_for_every_budget(solved):
    seen = []
    family = family_of(late(solved), on_progress=seen.append)
    assert [schedule.provenance["iterations"] for schedule in family] == [1, 1]
    assert [schedule.provenance["interrupted"] for schedule in family] == [False, False]
    assert [schedule.provenance["time_was_up"] for schedule in family] == [True, True]
    assert [schedule.provenance["masks_tried"] for schedule in family] == [1, 1]
    assert [(p.stage, p.iteration) for p in seen if p.stage.startswith("judging")] == [
        (f"judging masks {budget}", 1) for budget in BUDGETS
    ]


def test_a_run_whose_time_was_up_goes_on_with_every_budget(solved):
    """As the command line says: `the same command goes on from there`."""
    families = [list(family_of(late(solved))) for _ in range(SETTINGS.iterations)]
    done = [[schedule.provenance["iterations"] for schedule in family] for family in families]
    assert done == [[1, 1], [2, 2], [3, 3]]
    ended = [[schedule.provenance["time_was_up"] for schedule in family] for family in families]
    assert ended == [[True, True], [True, True], [False, False]]


def test_time_is_shared_among_the_budgets(solved, monkeypatch):
    """On a clock where every iteration takes a second, and nothing else any time."""
    from l2c.learning import closed_loop, trainer

    now = 0.0
    backward = closed_loop.StudentTask.backward

    def slow(task, iteration):
        nonlocal now
        now += 1.0
        return backward(task, iteration)

    monkeypatch.setattr(trainer.time, "monotonic", lambda: now)
    monkeypatch.setattr(closed_loop.StudentTask, "backward", slow)
    settings = replace(ONCE, iterations=50)
    family = family_of(Session(time_limit_s=9.0), budgets=(0.8, 0.6, 0.4), settings=settings)
    assert [schedule.provenance["iterations"] for schedule in family] == [3, 3, 3]


@pytest.mark.parametrize(
    ("stage", "flags"), [("learning at 0.7", [True]), ("learning at 0.5", [False, True])]
)
def test_ctrl_c_keeps_what_was_finished_and_what_was_being_learned(stage, flags, session, tmp_path, expected):
    family = family_of(session, on_progress=stop_at(stage, 2, KeyboardInterrupt))
    assert [schedule.provenance["interrupted"] for schedule in family] == flags
    assert not any(schedule.provenance["time_was_up"] for schedule in family)
    assert [schedule.provenance["iterations"] for schedule in family] == [3] * (len(flags) - 1) + [2]
    assert file_bytes(family_of(session), tmp_path) == expected["family"]


def test_ctrl_c_between_two_budgets_keeps_what_was_finished(session, tmp_path, expected):
    try:
        family = family_of(session, on_progress=stop_at("judging masks 0.5", 2, KeyboardInterrupt))
    except KeyboardInterrupt:
        pytest.fail("what was finished is lost")
    assert [schedule.provenance["iterations"] for schedule in family] == [3]
    assert file_bytes(family_of(session), tmp_path) == expected["family"]


def test_ctrl_c_before_anything_was_learned_comes_through():
    with pytest.raises(KeyboardInterrupt):
        family_of(on_progress=stop_at("judging masks 0.7", 1, KeyboardInterrupt))


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ((0.5, 0.05), "a budget of .* cannot be met: the first evaluation has to compute every layer"),
        ((0.5, 1.0), "everything; no schedule is needed"),
        ((1.5,), "fractions of the MACs, more than 0 and at most 1, .*got \\[1.5\\]"),
        ((float("nan"),), "fractions of the MACs"),
        ((0.0,), "fractions of the MACs"),
        ((), "at least one budget"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_before_anything_is_done(budgets, message):
    seen = []
    with pytest.raises(ConfigError, match=message):
        family_of(budgets=budgets, on_progress=seen.append)
    assert seen == []


def test_a_budget_in_macs_is_that_fraction():
    model = tiny_dit()
    table = find_layers(model)
    macs = 0.6 * STEPS * table.full_macs
    first = learn(model, solver="ddim", steps=STEPS, budget=0.6, settings=ONCE)
    second = learn(model, solver="ddim", steps=STEPS, budget=macs, costs=CostTable.macs(table), settings=ONCE)
    assert torch.equal(first.predictor.coefficients, second.predictor.coefficients)
    assert second.provenance["budget_unit"] == "MACs"
    assert macs - max(layer.macs for layer in table.layers) < second.cost.macs <= macs
    assert second.provenance["budget_cost"] == second.cost.macs


def test_a_budget_in_milliseconds_follows_what_was_measured():
    """Attention, which has fewer MACs, takes three times as long as an MLP."""
    costs = CostTable("ms", (3.0, 1.0) * 3, 0.25)
    schedule = learn(tiny_dit(), solver="ddim", steps=STEPS, budget=42.0, costs=costs, settings=ONCE)
    assert 41 < costs.of(schedule.compute) <= 42.0
    assert schedule.provenance["budget_cost"] == costs.of(schedule.compute)
    assert (schedule.provenance["budget"], schedule.provenance["budget_unit"]) == (42.0, "ms")
    with pytest.raises(ConfigError, match="a budget of 5 ms cannot be met"):
        learn(tiny_dit(), solver="ddim", steps=STEPS, budget=5.0, costs=costs, settings=ONCE)
    with pytest.raises(ConfigError, match=r"a budget of 105 ms is more than the 73\.5 ms"):
        learn(tiny_dit(), solver="ddim", steps=STEPS, budget=105.0, costs=costs, settings=ONCE)


def test_a_run_goes_on_although_every_layer_is_measured_anew(session, tmp_path):
    """No two measurements agree; what was measured first counts."""

    def go(factor, session=session, **options):
        costs = CostTable("ms", tuple(factor * cost for cost in (3.0, 1.0) * 3), factor * 0.25)
        return family_of(session, budgets=(42.0,), costs=costs, **options)

    expected = file_bytes(go(1.0, session=None), tmp_path)
    with pytest.raises(Stop):
        go(1.0, on_progress=stop_at("learning", 2))
    assert file_bytes(go(1.03), tmp_path) == expected


def test_other_budgets_are_another_run(session):
    with pytest.raises(Stop):
        family_of(session, on_progress=stop_at("learning at 0.7", 1))
    with pytest.raises(ConfigError, match=r"budgets was \[0.7, 0.5\] and is now \[0.7\]"):
        family_of(session, budgets=(0.7,))


def test_more_trials_find_a_better_mask():
    """What is kept is the best that was judged, by the pictures that it makes."""
    found = []

    def note(progress):
        if progress.stage == "judging masks":
            found.append(progress.error)

    settings = replace(ONCE, trials=12)
    learn(tiny_uvit(), solver="dpmsolver++", steps=STEPS, budget=0.5, settings=settings, on_progress=note)
    assert len(found) == 11
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


@pytest.mark.slow
def test_learning_lowers_the_error(dit):
    """On the trained model; a random one has no smooth trajectory to be predicted."""
    settings = replace(ONCE, iterations=6, reference_steps=8, learning_rate=1e-2)
    schedule = learn(dit, solver="dpmsolver++", steps=6, budget=0.6, guidance=1.0, settings=settings)
    provenance = schedule.provenance
    assert provenance["held_out_error"] < 0.95 * provenance["held_out_error_before"]
    assert provenance["held_out_error_of_everything"] < provenance["held_out_error_before"]


def test_broken_weights_are_reported():
    model = tiny_dit()
    model.blocks[0].attn.proj.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="solutions are zeros, or not finite; check the weights"):
        family_of(model=model)


def test_the_structure_of_a_learned_solver_is_the_best_that_was_tried():
    seen, trials = [], 10
    provenance = solver_of(settings=replace(ONCE, trials=trials), on_progress=seen.append).provenance
    tried = provenance["structures_before_learning"]
    assert list(tried) == ["3 evaluations", "6 evaluations", "7 evaluations"]
    searched = {
        name: [progress.error for progress in seen if progress.stage == f"judging masks of {name}"]
        for name in tried
    }
    reused = [name for name in tried if searched[name]]
    assert len(reused) in (1, 2)  # the best two, one of which may reuse nothing and has no masks
    assert "3 evaluations" not in reused
    looks, reuses = first_look(trials), provenance["structure"] in reused
    assert provenance["masks_tried"] == (len(reused) + reuses) * looks  # as many again for the best one
    for name in reused:
        assert len(searched[name]) == (2 * looks if name == provenance["structure"] else looks) - 1
        assert searched[name] == sorted(searched[name], reverse=True)
    assert all(math.isfinite(error) for error in tried.values())
    expected = {name: error * (REUSE_GAINS if name in reused else 1) for name, error in tried.items()}
    ahead = reused if len(reused) == 2 else [*reused, "3 evaluations"]
    found, crossed = min(ahead, key=expected.__getitem__), provenance["finalists_before_learning"]
    assert set(crossed) == ({found, "3 evaluations"} if found in reused else set())
    assert provenance["structure"] == min(crossed or [found], key=crossed.get)
    assert set(provenance["fewer_steps"]) == {
        "dpmsolver++, logsnr", "dpmsolver++3, logsnr", "unipc, logsnr", "unipc, linspace"
    }  # fmt: skip


def test_a_learned_solver_begins_with_evaluations_at_equal_distances(judged):
    solver_of(settings=replace(ONCE, trials=1), per_computed=2)
    whole, partial = judged[0].all(1), judged[0].any(1)
    assert whole.nonzero().flatten().tolist() == [0, 2]
    assert partial.nonzero().flatten().tolist() == [0, 2, 4]


@pytest.mark.parametrize("make", [tiny_dit, tiny_uvit])
@pytest.mark.parametrize(("evaluations", "per_computed"), [(2, 2), (3.5, 2), (8, 3)])
def test_a_learned_solver_keeps_to_its_evaluations(make, evaluations, per_computed):
    model = make()
    schedule = learn(
        model,
        solver="auto",
        evaluations=evaluations,
        per_computed=per_computed,
        guidance=1.0,
        settings=ONCE,
    )
    largest = max(layer.macs for layer in schedule.layers.layers)
    budget = evaluations * schedule.layers.full_macs
    assert budget - largest < schedule.cost.macs <= budget
    assert schedule.num_evaluations == int(evaluations * per_computed)
    assert l2c.sample(model, [1], schedule=schedule).isfinite().all()


def test_a_solver_alone_reuses_nothing():
    model = tiny_dit()
    schedule = learn(model, solver="auto", evaluations=4.9, per_computed=1, settings=SETTINGS)
    assert schedule.compute.all()
    assert schedule.predictor.name == "copy"
    assert schedule.num_evaluations == 4
    assert schedule.contract.run.weights is not None
    assert schedule.provenance["masks_tried"] == 0
    l2c.sample(model, [1], schedule=schedule)


@pytest.mark.parametrize(
    "options", [{"evaluations": 1.5}, {"evaluations": float("inf")}, {"evaluations": 4, "per_computed": -1}]
)
def test_evaluations_that_make_no_sense(options):
    with pytest.raises(ConfigError):
        learn(tiny_dit(), solver="auto", settings=ONCE, **options)


def test_a_family_of_learned_solvers_is_for_whole_evaluations(tmp_path):
    model = tiny_dit()
    family = learn(model, solver="auto", budgets=(2, 4), per_computed=2, guidance=1.0, settings=ONCE)
    assert family.brings_solvers
    assert [schedule.num_evaluations for schedule in family] == [8, 4]
    for schedule, budget in zip(family, (4, 2), strict=True):
        alone = learn(model, solver="auto", evaluations=budget, per_computed=2, guidance=1.0, settings=ONCE)
        assert torch.equal(schedule.compute, alone.compute)
        assert schedule.contract == alone.contract
        assert schedule.provenance["fewer_steps"] == alone.provenance["fewer_steps"]
    family.save(tmp_path / "family.safetensors")
    cheapest = l2c.load_schedule(tmp_path / "family.safetensors", budget=3)
    assert cheapest.num_evaluations == 4
    assert l2c.sample(model, [1], schedule=cheapest).isfinite().all()
    for budget, message in (
        (0.5, "in whole evaluations, must be more than 1, got 0.5"),
        (1.5, "more than the budget of 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            family.at(budget)
