"""Which evaluations share a CUDA graph, and where stored values stay meanwhile. Needs no GPU."""

from __future__ import annotations

import torch

from l2c.cache.store import last_reads
from l2c.engine.graphs import Slots, assign_slots, held_elements, share_graphs
from l2c.layers import Layer, LayerTable
from l2c.schedule.forecast import Predictor, plan_reuse

TABLE = LayerTable("dit", tuple(Layer(f"blocks.{i}.mlp", "", "mlp", out_elements=4) for i in range(3)))


def plan(mask: list[list[int]], depth: int = 1):
    compute = torch.tensor(mask, dtype=torch.bool)
    predictor = Predictor() if depth == 1 else Predictor("taylor", depth - 1)
    return plan_reuse(compute, predictor, [float(i) for i in range(len(mask))])


def test_a_run_that_computes_everything_is_one_graph():
    assert share_graphs({}, 50).graphs == (0,) * 50


def test_an_interval_that_copies_is_two_graphs():
    assert share_graphs(plan([[1, 1], [0, 0]] * 4), 8).graphs == (0, 1) * 4


def test_a_value_that_is_still_needed_is_not_written_over():
    # full, reuse, full, reuse: with three values per forecast, the first is read until two more have been stored
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
    forecasts = plan_reuse(mask, predictor, [float(i) for i in range(len(mask))])
    sharing = share_graphs(forecasts, len(mask))
    reads = last_reads(forecasts)
    memory: dict[tuple[int, int], int] = {}  # (graph, layer) -> evaluation whose value is there
    captured_reads: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for evaluation in range(len(mask)):
        graph = sharing.graphs[evaluation]
        row = [
            (layer, tuple(sharing.graphs[source] for source, _ in terms))
            for (at, layer), terms in sorted(forecasts.items())
            if at == evaluation
        ]
        assert (
            captured_reads.setdefault(graph, row) == row
        )  # it reads the same places as when it was captured
        for layer in range(mask.shape[1]):
            for source, _ in forecasts.get((evaluation, layer), ()):
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


def test_slots_are_as_many_as_values_are_held_at_once_and_never_shared_in_time():
    generator = torch.Generator().manual_seed(5)
    for _ in range(40):
        mask = torch.rand(12, 3, generator=generator) > 0.5
        mask[0] = True
        forecasts = plan_reuse(mask, Predictor("taylor", 2), [float(i) for i in range(12)])
        sharing = share_graphs(forecasts, 12)
        slots = assign_slots(sharing)
        assert 4 * len(set(slots.values())) == held_elements(sharing, TABLE)
        content: dict[int, tuple[int, int]] = {}  # slot -> (evaluation, layer) whose value is there
        for evaluation in range(12):
            for layer in range(3):
                for source, _ in forecasts.get((evaluation, layer), ()):
                    assert content[slots[sharing.graphs[source], layer]] == (source, layer)
                if mask[evaluation, layer] and (sharing.graphs[evaluation], layer) in slots:
                    content[slots[sharing.graphs[evaluation], layer]] = (evaluation, layer)


def test_slots_stay_where_they_are():
    sharing = share_graphs(plan([[1], [0], [1], [0], [1]]), 5)
    slots = Slots(sharing, torch.zeros(2, 4), ("cond", "uncond"))
    place = slots.place("cond", 0, 0)
    assert slots.place("cond", 1, 0) is None
    assert (
        slots.read("cond", 0, 0, 1).data_ptr() == slots.read("cond", 2, 0, 3).data_ptr() == place.data_ptr()
    )
    assert slots.read("uncond", 0, 0, 1).data_ptr() != place.data_ptr()
    assert slots.nbytes == 2 * 2 * 4 * 4
