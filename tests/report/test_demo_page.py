from __future__ import annotations

from html.parser import HTMLParser

import pytest

from l2c.records import Record
from l2c.report.demo_page import demo_page

VOID = {"meta", "img", "input", "br"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects what a page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.alternatives: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.references += [named[key] for key in ("src", "href") if key in named]
        if tag == "img":
            self.alternatives.append(named["alt"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def variant(key: str, **changes: object) -> dict[str, object]:
    figures = {
        "title": f"schedule <{key}>",
        "median_s": 2.0,
        "min_s": 1.5,
        "max_s": 2.5,
        "repetitions": 3,
        "speedup": 1.5,
        "macs": 2e9,
        "fraction": 0.66,
        "psnr_db": 31.25,
        "error": 0.0213,
        "psnr_min_db": 28.0,
    }
    return {"key": key, **figures, **changes}


@pytest.fixture
def record():
    learning = {"seconds": 70.4, "iterations": 9, "budget": 0.5, "settings": {"batch_size": 2}}
    return Record(
        command="demo",
        config={
            "model": "dit-mini-cifar10",
            "labels": [3, 5],
            "class_names": ["cat", "dog"],
            "steps": 20,
            "solver": "ddim",
            "guidance": 1.5,
        },
        results={
            "variants": [variant("full", title="everything computed"), variant("cached"), variant("shipped")],
            "difference_gain": 8,
            "learning": learning,
        },
        device={"name": "a processor", "threads": 2},
    ).to_json()


@pytest.fixture
def images():
    names = ("full", "cached", "shipped", "difference", "difference-shipped", "heatmap", "heatmap-shipped")
    return {f"{name}.png": name.encode() for name in names}


def test_page_is_whole_and_needs_nothing_else(record, images):
    page = demo_page(record, images)
    outline = Outline(page)
    assert len(outline.alternatives) == 8
    assert all(outline.alternatives)
    assert all(reference.startswith("data:image/png;base64,") for reference in outline.references)
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_page_has_the_figures(record, images):
    text = Outline(demo_page(record, images)).text
    for expected in ("2.00 s", "1.50-2.50", "1.50 x", "66%", "31.2 dB", "amplified 8 times", "cat, dog"):
        assert expected in text


def test_text_is_escaped(record, images):
    page = demo_page(record, images)
    assert "<cached>" not in page
    assert "&lt;cached&gt;" in page


def test_identical_pictures_are_called_identical(record, images):
    record["results"]["variants"][1]["psnr_db"] = None
    assert "identical" in Outline(demo_page(record, images)).text
