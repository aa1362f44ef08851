"""Calls that a run before has made are answered from memory: only those, and nothing that is learned changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import l2c
from l2c.learning.recall import Recall
from l2c.testing import tiny_call, tiny_dit, tiny_pipeline

WHOLE = {"solver": "auto", "evaluations": 4, "per_computed": 1}


class Doubler(nn.Module):
    """Doubles what it is given, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, times=None, return_dict=True):
        self.calls += 1
        return {"sample": 2 * x} if return_dict else (2 * x,)


def run(recall, model, values, **options):
    with recall.run():
        return [model(torch.full((2, 3), value), **options) for value in values]


def test_a_run_goes_on_from_where_it_parts():
    model = Doubler()
    recall = Recall([model])
    run(recall, model, [1.0, 2.0, 3.0])
    assert (model.calls, recall.answered) == (3, 0)
    run(recall, model, [1.0, 2.0, 3.0])
    assert model.calls == 6  # nothing was kept
    recall.keep()
    made = run(recall, model, [1.0, 5.0, 3.0])
    assert [one["sample"][0, 0].item() for one in made] == [2.0, 10.0, 6.0]
    assert (model.calls, recall.answered) == (7, 2)  # what comes back to the same input is the same
    run(recall, model, [1.0, 2.0, 3.0, 4.0])  # the run that was kept is still that
    assert (model.calls, recall.answered) == (8, 5)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    "changed",
    [
        {"times": torch.zeros(2)},
        {"return_dict": False},
        {"times": [torch.ones(2)]},
        {"times": {"a": torch.ones(2, dtype=torch.float64)}},
    ],
    ids=["tensor", "flag", "list", "precision"],
)
def test_other_inputs_are_computed(changed):
    model = Doubler()
    recall = Recall([model])
    first = {"times": {"a": torch.ones(2)}} if isinstance(changed.get("times"), dict) else {}
    run(recall, model, [1.0], **first)
    recall.keep()
    made = run(recall, model, [1.0], **changed)
    assert model.calls == 2
    assert isinstance(made[0], tuple) == ("return_dict" in changed)


def test_what_is_done_to_an_answer_does_not_change_the_next():
    model = Doubler()
    recall = Recall([model])
    (first,) = run(recall, model, [1.0])
    recall.keep()
    first["sample"].zero_()
    for _ in range(2):
        (again,) = run(recall, model, [1.0])
        assert again["sample"].eq(2).all()
        again["sample"].zero_()
    assert model.calls == 1


def settings(**changes):
    few = {"num_examples": 6, "fit_examples": 4, "trial_examples": 2, "batch_size": 2}
    return l2c.LearnSettings(iterations=1, reference_steps=12, level_trials=6, **few, **changes)


def few_calls(kind):
    """A target, the part of its network that ends every call, and how it is learned on."""
    if kind == "model":
        model = tiny_dit()
        return model, model.final_layer, {}
    pipe, call = tiny_pipeline("sd3"), tiny_call("sd3")
    del call["generator"], call["output_type"]
    texts = {name: call.pop(name) for name in list(call) if name.endswith("embeds")}
    return pipe, pipe.transformer.proj_out, {"conditions": [texts], **call}


@pytest.mark.parametrize("kind", ["model", "pipeline"])
def test_levels_are_searched_in_fewer_calls_with_the_same_result(kind, monkeypatch):
    calls, schedules = [], []
    for recalls in (False, True):
        target, last, how = few_calls(kind)
        count = 0

        def counted(_module, _given, _made):
            nonlocal count
            count += 1

        last.register_forward_hook(counted)
        with monkeypatch.context() as patched:
            if not recalls:
                patched.setattr(Recall, "keep", lambda _self: None)
            schedules.append(l2c.learn(target, settings=settings(), **WHOLE, **how))
        calls.append(count)
    assert calls[1] < calls[0]
    one, other = schedules
    assert one.contract.run.log_snrs == pytest.approx(other.contract.run.log_snrs, abs=1e-6)
    errors = [schedule.provenance["held_out_error"] for schedule in schedules]
    assert errors[0] == pytest.approx(errors[1], abs=2e-5)
