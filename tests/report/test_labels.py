"""The labels of a plot are where nothing else is."""

import itertools
import math

import pytest

from l2c.report.labels import Box, boxes_of_line, place_labels
from l2c.report.svg import Point, scatter

INSIDE = Box(60, 14, 620, 370)


@pytest.mark.parametrize("gap", [8, 20, 60])
def test_labels_cover_nothing_and_stay_inside(gap):
    places = [(100 + gap * index, 60 + gap * index / 2, f"method {index}") for index in range(7)]
    marks = [Box(x - 8, y - 8, x + 8, y + 8) for x, y, _ in places]
    cloud = [Box(x + 40, y - 40, x + 56, y - 24) for x, y, _ in places]
    front = [box for a, b in itertools.pairwise(places) for box in boxes_of_line(a[:2], b[:2])]
    labels = place_labels(places, [*marks, *cloud, *front], INSIDE)
    assert [label.text for label in labels] == [text for *_, text in places]
    for label in labels:
        assert INSIDE.contains(label.box)
        assert not any(label.box.overlaps(other) for other in (*marks, *cloud, *front))
    for one, other in itertools.combinations(labels, 2):
        assert not one.box.overlaps(other.box)
        for label, lead in ((one, other.lead), (other, one.lead)):
            spots = [] if lead is None else boxes_of_line(lead[:2], lead[2:])
            assert not any(label.box.overlaps(spot) for spot in spots)


def test_label_without_room_is_left_out():
    assert place_labels([(100, 100, "name")], [INSIDE], INSIDE) == []


def test_boxes_of_a_line_cover_it():
    boxes = boxes_of_line((0, 0), (30, 40))
    assert all(
        any(math.dist((3 * t, 4 * t), (b.left + 2, b.top + 2)) <= 2.1 for b in boxes) for t in range(11)
    )


def test_scatter_draws_the_tail_and_names_the_front():
    points = [
        Point(1.0, 0.2, "steps", "cheap", 0.18, 0.22, (0.3, 0.5), "first"),
        Point(2.0, 0.1, "ours", "dear", 0.09, 0.11, (0.2, 0.4), "second"),
        Point(3.0, 0.3, "cache", "beaten", 0.2, 0.4),
    ]
    plot = scatter(points, points[:2], "seconds", "error (absolute)", "a plot")
    assert plot.count('class="tail"') == 2
    assert plot.count('class="label"') == 2
    assert "first" in plot
    assert "error (absolute)" in plot
