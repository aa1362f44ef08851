"""Every verb refuses what is misspelt or means nothing there, in a sentence, before anything is computed."""

from __future__ import annotations

import pytest
import torch

import l2c
from l2c import LearnSettings, RouterSettings
from l2c.errors import ConfigError, ScheduleError
from l2c.learning.data import ImageData
from l2c.schedule.cost import CostTable
from l2c.testing import tiny_dit, tiny_pipeline

COSTS = CostTable("ms", (3.0, 1.0) * 3, 0.25)
AUTO = {"solver": "auto", "evaluations": 3}
ALTERNATE = {"pattern": "alternate"}


@pytest.fixture(scope="module")
def model():
    return tiny_dit()


@pytest.fixture
def data(tmp_path):
    return ImageData(tmp_path, [b""], torch.tensor([0]), ("a",), 8)


def refused(message, verb, *arguments, **options):
    """Checks the sentence, and that nothing was computed before."""
    seen = []
    if verb in (l2c.learn, l2c.repair):
        options["on_progress"] = seen.append
    with pytest.raises(ConfigError, match=message):
        verb(*arguments, **options)
    assert seen == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sovler": "ddim"}, r"a model takes no argument 'sovler'; did you mean solver\? known are solver, steps,"),
        ({"bugdet": 0.5}, r"a model takes no argument 'bugdet'; did you mean budget\?"),
        ({"num_inference_steps": 8}, "a model takes no argument 'num_inference_steps'; .*known are solver, steps"),
        ({"solver": "dimm"}, "unknown solver 'dimm'"),
        ({"pattern": "every"}, "unknown pattern 'every'; choose one of closed-loop, alternate"),
        ({"steps": 6, "solver": "auto"}, "steps has no meaning with solver='auto', .* a number of evaluations="),
        ({"solver": "auto"}, "for a number of evaluations=, such as evaluations=8"),
        ({**AUTO, "spacing": "karras"}, "spacing has no meaning with solver='auto'"),
        ({**AUTO, "budget": 0.5}, "budget has no meaning with solver='auto'"),
        ({**AUTO, "budgets": (3,)}, "budgets has no meaning with solver='auto'"),
        ({"solver": "auto", "budgets": (3, 0.5)}, "a run costs at least 2 whole evaluations, got 0.5"),
        ({"solver": "auto", "budgets": ()}, "name at least one budget, in whole evaluations"),
        ({**AUTO, "costs": COSTS}, "costs has no meaning with solver='auto'"),
        ({**AUTO, **ALTERNATE}, "solver='auto' learns a run in the closed loop"),
        ({"evaluations": 3}, "evaluations has no meaning without solver='auto'"),
        ({"per_computed": 2}, "per_computed has no meaning without solver='auto'"),
        ({**ALTERNATE, "budget": 0.5}, "budget has no meaning with pattern='alternate'"),
        ({**ALTERNATE, "budgets": "curve"}, "budgets has no meaning with pattern='alternate'"),
        ({**ALTERNATE, "costs": COSTS}, "costs has no meaning with pattern='alternate'"),
        ({"budget": 0.5, "budgets": (0.4,)}, "budget has no meaning where there are budgets="),
        ({"budget": "half"}, "a budget is a number, got 'half'"),
        ({"budget": (0.5, 0.4)}, r"a budget is a number, got \(0.5, 0.4\)"),
        ({"budgets": "curv"}, "budgets are several numbers, or 'curve', got 'curv'"),
        ({"budgets": 0.5}, "budgets are several numbers, or 'curve', got 0.5; for one, take budget="),
        ({"settings": RouterSettings()}, "the closed loop takes settings of the class LearnSettings, got Router"),
        ({**AUTO, "settings": RouterSettings()}, "takes settings of the class LearnSettings, got RouterSettings"),
        (
            {**ALTERNATE, "settings": LearnSettings()},
            "the pattern 'alternate' takes settings of the class RouterSettings, got LearnSettings",
        ),
        ({"settings": {"iterations": 3}}, "takes settings of the class LearnSettings, got dict"),
    ],
)  # fmt: skip
def test_learn_refuses_what_means_nothing(model, options, message):
    refused(message, l2c.learn, model, **options)


def test_learn_refuses_images_that_it_would_not_look_at(model, data):
    refused("data has no meaning with pattern='closed-loop'", l2c.learn, model, data=data)
    refused("data has no meaning with solver='auto'", l2c.learn, model, data=data, **AUTO)


def test_what_is_neither_model_nor_pipeline_is_refused():
    for target in ("dit-mini-cifar10", None, lambda: None):
        refused("needs a model or a diffusers pipeline, got", l2c.learn, target)


def test_a_host_has_its_run_already(model):
    host = l2c.host_of(model, steps=4)
    assert l2c.host_of(host) is host
    refused(
        "a host has its run already and takes no argument 'steps'; leave it out", l2c.learn, host, steps=6
    )
    refused(r"takes no argument 'bugdet'; did you mean budget\?", l2c.learn, host, bugdet=0.5)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("pixart")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 6, "solver": "auto"}, "steps has no meaning with solver='auto'"),
        ({"steps": 6}, "PixArt.*Pipeline takes no argument 'steps'"),
        ({"solver": "ddim"}, "PixArt.*Pipeline takes no argument 'solver'"),
        ({"num_inference_step": 6}, r"no argument 'num_inference_step'; did you mean num_inference_steps\?"),
        ({"promts": ["a cat"]}, r"no argument 'promts'; did you mean prompts\?"),
        ({"bugdet": 0.5}, r"no argument 'bugdet'; did you mean budget\?"),
        ({"prompts": ["a"], "conditions": [{"prompt": "a"}]}, "either prompts or conditions"),
        ({**ALTERNATE, "settings": LearnSettings()}, "takes settings of the class RouterSettings"),
    ],
)
def test_a_pipeline_is_refused_the_same(pipe, options, message):
    refused(message, l2c.learn, pipe, **options)


def test_images_are_for_models(pipe, data):
    refused("needs a model sampled by class labels", l2c.learn, pipe, prompts=["a"], data=data, **ALTERNATE)


def test_repair_and_check_refuse_the_same(model):
    half = l2c.methods.interval(model, steps=4)
    for verb in (l2c.repair, l2c.check):
        refused(r"no argument 'gidance'; did you mean guidance\?", verb, model, half, gidance=2.0)
        with pytest.raises(ScheduleError, match="none.safetensors"):
            verb(model, "none.safetensors")
    refused("no argument 'setings'; did you mean settings", l2c.repair, model, half, setings=LearnSettings())
    refused(
        "repair takes settings of the class LearnSettings", l2c.repair, model, half, settings=RouterSettings()
    )
    refused(r"no argument 'seed'; did you mean seeds\?", l2c.check, model, half, seed=1)
    refused("a list of one seed or more", l2c.check, model, half, seeds=1)


@pytest.mark.parametrize("name", sorted(set(l2c.methods.all_methods()) - {"learned", "l2c", "smoothcache"}))
def test_methods_refuse_the_same(name, model):
    make = l2c.methods.find_method(name).make
    refused(r"a model takes no argument 'step'; did you mean steps\?", make, model, step=4)
    others = {
        "fewer-steps": "budget",
        "dpcache": "budget",
        "budcache": "budget",
        "bespoke": "budget",
        "neuralsolver": "budget",
        "spectrum": "window",
        "adaptive-guidance": "share",
    }
    own = others.get(name, "every")
    refused(rf"no argument '{own[:-1]}'; did you mean {own}\?", make, model, **{own[:-1]: 2})
