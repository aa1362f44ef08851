"""The plain form of a schedule, read by a program that knows nothing but docs/interchange.md."""

import json
from pathlib import Path

import torch

import l2c
from l2c.cache.cached_model import enable_cache
from l2c.layers import find_layers
from l2c.schedule.contract import Contract, Run
from l2c.schedule.forecast import Predictor
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import TINY

STEPS = 5
RUN = Run("euler", STEPS, "none", (900.0, 700.0, 500.0, 300.0, 100.0), (-3.0, -1.5, 0.0, 1.0, 2.0))
DOCUMENT = Path(__file__).parents[2] / "docs" / "interchange.md"


def walk(tiny, model, enter):
    x = torch.randn((1, *tiny.shape), generator=torch.Generator().manual_seed(0))
    for evaluation, timestep in enumerate(RUN.timesteps):
        enter(evaluation)
        x = x - 0.2 * tiny.call(model, x, timestep)[:, : x.shape[1]]
    return x


class Server:
    """Applies the plain form with one rule, through forwards that it puts in place of those of the layers."""

    def __init__(self, model, text):
        plain = json.loads(text)
        assert (plain["format"], plain["version"]) == ("l2c.interchange", 1)
        self.rows, self.now, self.kept = plain["compute"], 0, {}
        self.terms = {
            (entry["evaluation"], entry["layer"]): list(zip(entry["sources"], entry["weights"], strict=True))
            for entry in plain["reused"]
        }
        for index, layer in enumerate(plain["layers"]):
            module = model.get_submodule(layer["name"])
            module.forward = self.forward(index, module.forward)

    def forward(self, layer, original):
        def forward(*args, **kwargs):
            if self.rows[self.now][layer] == "1":
                self.kept[self.now, layer] = original(*args, **kwargs)
                return self.kept[self.now, layer]
            terms = [(self.kept[source, layer], weight) for source, weight in self.terms[self.now, layer]]
            if isinstance(terms[0][0], tuple):
                return tuple(
                    None if part is None else sum(weight * value[place] for value, weight in terms)
                    for place, part in enumerate(terms[0][0])
                )
            return sum(weight * value for value, weight in terms)

        return forward

    def enter(self, evaluation):
        self.now = evaluation


def test_a_program_without_this_package_makes_the_same_from_the_plain_form():
    tiny = TINY["SD3Transformer2DModel"]
    model = tiny.build()
    table = find_layers(model)
    compute = torch.rand(STEPS, len(table), generator=torch.Generator().manual_seed(1)) < 0.5
    compute[:2] = True
    schedule = CacheSchedule(compute, table, Contract(RUN), Predictor.parse("taylor-1"))
    with enable_cache(model, schedule) as cache, cache.run():
        expected = walk(tiny, model, cache.clock.tick)
    server = Server(model, json.dumps(schedule.to_json()))
    torch.testing.assert_close(walk(tiny, model, server.enter), expected, atol=1e-5, rtol=1e-5)


def test_the_plain_form_tells_the_whole_run_and_contract():
    quick = l2c.LearnSettings(iterations=1, batch_size=1, num_examples=4, reference_steps=8, trials=1)
    model = l2c.testing.tiny_dit()
    schedule = l2c.learn(model, solver="auto", evaluations=3, per_computed=2, settings=quick)
    plain = json.loads(json.dumps(schedule.to_json()))
    run = schedule.contract.run
    assert plain["run"]["log_snrs"] == list(run.log_snrs)
    assert plain["run"]["solver_weights"] == [list(row) for row in run.weights]
    assert plain["contract"]["fingerprint"] == list(schedule.contract.fingerprint)
    assert plain["full_evaluations"] == schedule.compute.all(1).nonzero().flatten().tolist()
    entries = {(one["evaluation"], one["layer"]): one["sources"] for one in plain["reused"]}
    assert entries == {place: [source for source, _ in terms] for place, terms in schedule.plan.items()}


def test_every_field_of_the_plain_form_is_documented():
    schedule = l2c.methods.interval(l2c.testing.tiny_dit(), every=2, steps=4)
    text, plain = DOCUMENT.read_text(encoding="utf-8"), schedule.to_json()
    for name, value in plain.items():
        inner = [f"{name}.{key}" for key in value] if name in ("run", "contract") else [name]
        assert all(f"`{field}`" in text for field in inner), inner
