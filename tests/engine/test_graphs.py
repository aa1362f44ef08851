"""Which evaluations share a CUDA graph, and where stored values stay meanwhile. Needs no GPU."""

from __future__ import annotations

import torch

from l2c.cache.predictors import Predictor, plan_stand_ins
from l2c.cache.store import last_reads
from l2c.engine.graphs import HeldValues, held_elements, share_graphs
from l2c.layers import Layer, LayerTable

TABLE = LayerTable("dit", (Layer("blocks.0.attn", "blocks.0.attn", "attention", out_elements=4),))


def plan(mask: list[list[int]], depth: int = 1):
    compute = torch.tensor(mask, dtype=torch.bool)
    predictor = Predictor() if depth == 1 else Predictor("taylor", depth - 1)
    return plan_stand_ins(compute, predictor, [float(i) for i in range(len(mask))])


def test_a_run_that_computes_everything_is_one_graph():
    assert share_graphs({}, 50).graphs == (0,) * 50


def test_an_interval_that_copies_is_two_graphs():
    assert share_graphs(plan([[1, 1], [0, 0]] * 4), 8).graphs == (0, 1) * 4


def test_a_value_that_is_still_needed_is_not_written_over():
    # full, reuse, full, reuse: with three values per stand-in, the first is read until two more have been stored
    sharing = share_graphs(plan([[1], [0]] * 6, depth=3), 12)
    full = sharing.graphs[::2]
    assert full[0] != full[1] != full[2] != full[0]
    assert full[3] == full[0]


def test_the_published_pattern_has_one_graph_per_distinct_row():
    torch.manual_seed(0)
    rows = []
    for _ in range(25):
        rows += [[1] * 8, (torch.rand(8) > 0.5).long().tolist()]
    graphs = share_graphs(plan(rows), 50).graphs
    assert set(graphs[::2]) == {0}
    distinct = len({tuple(row) for row in rows})
    assert len(set(graphs)) == distinct


def simulate(mask: torch.Tensor, depth: int) -> None:
    """Replays shared graphs symbolically: every reading must find the value that the plan means."""
    predictor = Predictor() if depth == 1 else Predictor("taylor", depth - 1)
    stand_ins = plan_stand_ins(mask, predictor, [float(i) for i in range(len(mask))])
    sharing = share_graphs(stand_ins, len(mask))
    reads = last_reads(stand_ins)
    memory: dict[tuple[int, int], int] = {}  # (graph, layer) -> evaluation whose value is there
    captured_reads: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for evaluation in range(len(mask)):
        graph = sharing.graphs[evaluation]
        row = [
            (layer, tuple(sharing.graphs[source] for source, _ in terms))
            for (at, layer), terms in sorted(stand_ins.items())
            if at == evaluation
        ]
        assert (
            captured_reads.setdefault(graph, row) == row
        )  # it reads the same places as when it was captured
        for layer in range(mask.shape[1]):
            for source, _ in stand_ins.get((evaluation, layer), ()):
                assert memory[sharing.graphs[source], layer] == source
                assert sharing.held[sharing.graphs[source], layer] >= evaluation
            if (evaluation, layer) in reads:
                memory[graph, layer] = evaluation


def test_every_reading_finds_its_value_for_any_mask():
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        evaluations, layers = 4 + int(torch.randint(9, (), generator=generator)), 3
        mask = torch.rand(evaluations, layers, generator=generator) > 0.5
        mask[0] = True
        for depth in (1, 2, 3):
            simulate(mask, depth)
    for depth in (1, 2, 3):
        simulate(torch.tensor([[True] * 3, [False] * 3] * 8), depth)


def test_memory_is_given_up_after_the_last_reading_only():
    sharing = share_graphs(plan([[1], [0], [1], [0], [1]]), 5)
    held = HeldValues(sharing)
    held.put("all", 0, 0, torch.zeros(4))
    assert held_elements(sharing, TABLE) == 4
    held.release(2)
    assert held.nbytes == 16  # evaluation 2 replays the graph of 0 and 3 reads it again
    held.release(4)
    assert held.nbytes == 0
