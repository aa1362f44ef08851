"""Damaged and forged files of every kind: a result or a sentence, within seconds, and nothing of other files.

`python benchmarks/fuzz.py --mutations N` does the same for as long as is wanted.
"""

import contextlib
import inspect

import pytest
import torch

import l2c
from l2c.errors import ConfigError, L2CError
from l2c.evaluation import registry as metric_registry
from l2c.layers import registry as layer_registry
from l2c.methods import registry as method_registry
from l2c.sampling import solvers
from l2c.schedule import forecast
from l2c.testing import tiny_dit


def test_damaged_and_forged_files_are_read_or_refused(load_benchmark):
    found = load_benchmark("fuzz").fuzz(36, seed=1, limit_s=60.0)
    assert found["faults"] == []
    assert found["read"] + found["refused"] == 36
    assert len(found["by_kind"]) == 12


def test_the_same_seed_makes_the_same_mutations(load_benchmark):
    fuzz = load_benchmark("fuzz")
    first, again = (fuzz.fuzz(6, seed=3, only=("prompts",), limit_s=60.0)["by_kind"] for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": None}, "labels must be a list of whole numbers"),
        ({"labels": ["cat"]}, "labels must be a list of whole numbers"),
        ({"labels": [10**30]}, "labels must be a list of whole numbers"),
        ({"labels": [1.5]}, "labels must be a list of whole numbers"),
        ({"steps": "4"}, "steps must be a whole number, got '4'"),
        ({"steps": 10**9}, "steps must be at most 4000"),
        ({"seeds": [1.7]}, "seeds.0 must be a whole number, got 1.7"),
        ({"seeds": [2**64]}, "seeds.0 must be less than"),
        ({"guidance": "much"}, "guidance scale must be a number, got 'much'"),
        ({"guidance": float("nan")}, "guidance scale must be a finite number"),
        ({"guidance_channels": 100}, "guidance_channels must be at most 3, got 100"),
        ({"guidance_mode": 3}, "guidance mode must be text, got 3"),
        ({"batch_size": 0.5}, "batch_size must be a whole number, got 0.5"),
        ({"batch_size": torch.ones(2)}, "batch_size must be a whole number, got tensor"),
        ({"guidance": torch.ones(2)}, "guidance scale must be a number, got tensor"),
        ({"seeds": 1}, "seeds must be a list, got 1"),
    ],
)
def test_arguments_of_another_type_are_sentences(arguments, message):
    with pytest.raises(ConfigError, match=message):
        l2c.sample(tiny_dit(), **{"labels": [1], "steps": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 1e30}, "learning_rate must be at most 100, got 1e[+]30"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"iterations": 1.5}, "iterations must be a whole number, got 1.5"),
        ({"iterations": 10**12}, "iterations must be at most"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"recompute": "yes"}, "recompute must be False, True, 'evaluations' or 'offload', got 'yes'"),
        ({"reference_steps": 0}, "reference_steps must be at least 1, got 0"),
    ],
)
def test_settings_of_another_type_are_sentences(arguments, message):
    with pytest.raises(ConfigError, match=message):
        l2c.LearnSettings(**arguments)


def public_functions():
    """All that is not a class, but for plain arithmetic on tensors."""
    named = {name: getattr(l2c, name) for name in l2c.__all__ if name != "data_prediction"}
    named |= {f"methods.{name}": method.make for name, method in l2c.methods.all_methods().items()}
    return [pytest.param(one, id=name) for name, one in named.items() if inspect.isfunction(one)]


@pytest.fixture
def registries(monkeypatch):
    """What is registered here is forgotten."""
    for module, name in (
        (layer_registry, "_ADAPTERS"),
        (method_registry, "_REGISTERED"),
        (metric_registry, "_METRICS"),
        (forecast, "_PREDICTORS"),
        (solvers, "_SOLVERS"),
    ):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


@pytest.mark.parametrize("function", public_functions())
def test_what_a_public_function_needs_is_a_sentence_if_it_is_of_another_type(function, registries, tmp_path):
    model = tiny_dit()
    right = {"model": model, "target": model, "schedule": l2c.methods.interval(model, steps=4)}
    right |= {"labels": [1], "seeds": [1], "folder": tmp_path / "made"}
    needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    needed = [one for one in needed if one.kind is not one.VAR_KEYWORD]
    for wrong in (None, 3, 0.5, [], {}, object(), torch.zeros(2)):
        for tried in needed:
            given = {one.name: right.get(one.name, 1) for one in needed} | {tried.name: wrong}
            first = [given.pop(one.name) for one in needed if one.kind is one.POSITIONAL_ONLY]
            with contextlib.suppress(L2CError):
                function(*first, **given)


def test_numbers_of_other_libraries_are_numbers():
    import numpy as np

    settings = l2c.LearnSettings(iterations=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint8(1))
    assert settings.iterations == 3


def test_a_device_that_holds_no_numbers_is_none():
    from l2c.devices import resolve_device

    with pytest.raises(ConfigError, match="there is no device 'meta' here"):
        resolve_device("meta")
