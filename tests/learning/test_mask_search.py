"""The search of a mask: one with more trials goes on where one with fewer ended."""

from __future__ import annotations

import pytest
import torch

from l2c.hosts.native import ModelHost
from l2c.learning.mask_search import FINALISTS, search_mask
from l2c.learning.settings import LearnSettings
from l2c.learning.trainer import Trainer
from l2c.schedule.cost import CostTable
from l2c.testing import tiny_dit

SETTINGS = LearnSettings(iterations=1, batch_size=2, num_examples=8, reference_steps=20)
WANTED = torch.tensor([1, 0, 0, 1, 0, 0, 1, 1, 0, 0], dtype=torch.bool)


@pytest.fixture
def host() -> ModelHost:
    return ModelHost.of(tiny_dit(), "ddim", 10)


def run(host: ModelHost, trainer: Trainer, trials: int, judged: list[torch.Tensor], error_of_more=None):
    """A search for evaluations that are known, by how many are others."""
    costs = CostTable.macs(host.table)

    def error_of(mask: torch.Tensor, order: int) -> float:
        judged.append(mask)
        return 0.1 + float((mask.double().mean(1) - WANTED.double()).abs().sum()) + 0.01 * order

    return search_mask(
        trainer, error_of, 10, 4 * costs.full, costs, trials, history=3, error_of_more=error_of_more
    )


def test_a_search_goes_on_where_one_with_fewer_trials_ended(host):
    at_once, judged = [], []
    whole = run(host, Trainer("masks", host, SETTINGS), 24, at_once)
    trainer = Trainer("masks", host, SETTINGS)
    first = run(host, trainer, 8, judged)
    assert (first.trials, len(judged)) == (8, 8)
    second = run(host, trainer, 24, judged)
    assert (second.trials, len(judged)) == (24, 24)
    assert all(torch.equal(a, b) for a, b in zip(judged, at_once, strict=True))
    assert torch.equal(second.compute, whole.compute)
    assert second.error == whole.error < first.error
    assert torch.equal(
        run(host, trainer, 8, judged).compute, first.compute
    )  # what is known is not judged again
    assert len(judged) == 24


def test_time_that_is_up_does_not_cut_a_search_shorter_than_it_was(host, monkeypatch):
    trainer = Trainer("masks", host, SETTINGS)
    first = run(host, trainer, 8, [])
    monkeypatch.setattr(trainer, "used_up", lambda share: True)
    judged: list[torch.Tensor] = []
    again = run(host, trainer, 24, judged)
    assert again.trials >= 8
    assert again.error <= first.error
    assert len(judged) <= 1


def test_more_pictures_decide_between_the_best_few(host, monkeypatch):
    judged: list[torch.Tensor] = []
    by_few = run(host, Trainer("masks", host, SETTINGS), 12, judged)
    errors = [float((mask.double().mean(1) - WANTED.double()).abs().sum()) for mask in judged]
    asked: list[torch.Tensor] = []

    def last(mask: torch.Tensor, order: int) -> float:
        asked.append(mask)
        return -len(asked)

    trainer = Trainer("masks", host, SETTINGS)
    found = run(host, trainer, 12, [], last)
    assert len(asked) == FINALISTS
    assert torch.equal(asked[0], by_few.compute)
    assert torch.equal(found.compute, asked[-1])
    best = sorted(errors)[:FINALISTS]
    assert all(
        any(torch.equal(mask, one) for one, error in zip(judged, errors, strict=True) if error <= best[-1])
        for mask in asked
    )
    assert torch.equal(run(host, trainer, 12, [], last).compute, found.compute)
    assert len(asked) == FINALISTS  # what is known is not judged again
    monkeypatch.setattr(trainer, "used_up", lambda share: True)
    assert torch.equal(run(host, trainer, 24, [], last).compute, run(host, trainer, 24, []).compute)
    assert len(asked) == FINALISTS
