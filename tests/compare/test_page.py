"""The page of a comparison: complete, alone, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from l2c.bootstrap import ConfidenceInterval
from l2c.errors import DataError
from l2c.report.compare_page import compare_page
from l2c.report.compare_text import comparison_text
from l2c.report.comparison import read_comparison

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(compared) -> str:
    return compare_page(read_comparison(compared))


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_asks_nothing_of_the_network(page):
    reader = Reader(page)
    for _, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), attributes
    assert "http" not in re.sub(r"data:[^\"]*", "", page).replace("http-equiv", "")
    assert not reader.all("link")
    assert "@import" not in page
    assert "url(" not in page


def test_page_can_be_read_without_seeing_it(page):
    reader = Reader(page)
    assert all(image.get("alt") for image in reader.all("img"))
    drawings = [svg for svg in reader.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) >= 6
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in drawings)
    assert all(head.get("scope") in ("col", "row") for head in reader.all("th"))
    ids = [attributes["id"] for _, attributes in reader.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert reader.all("html")[0]["lang"] == "en"
    assert all("aria-label" in slider for slider in reader.all("input"))


def test_every_way_and_its_figures_are_in_the_tables(page, compared):
    data = read_comparison(compared)
    assert page.count("<tr class=") == len(data.ways)
    for way in data.ways:
        assert f"{way.metrics['rmse'].value:.4f}" in page
        assert len(way.seconds) == 2
    assert "FORA" in page
    assert "arXiv 2407.01425" in page
    assert "First Block Cache (diffusers)" in page
    stored = json.loads((compared / "config.json").read_text())
    assert stored["methods"][0]["name"] in page


def test_front_and_verdict_follow_from_the_figures(compared):
    data = read_comparison(compared)
    for kind in ("macs", "time"):
        front = data.front(list(data.ways), kind)
        for way in data.ways:
            beaten = [
                other
                for other in data.ways
                if data.cost(other, kind) < data.cost(way, kind) and data.error(other) <= data.error(way)
            ]
            assert (way not in front) if beaten else True
        errors = [data.error(way) for way in front]
        assert errors == sorted(errors, reverse=True)
    way = next(w for w in data.ways if w.method == "fora")
    verdict = data.verdict(way)
    if verdict.rival is not None:
        assert verdict.rival.method in ("full", "fewer-steps")
        assert verdict.rival.median_s <= way.median_s * 1.03
        expected = sum(way.per_picture("rmse")) / 4 - sum(verdict.rival.per_picture("rmse")) / 4
        assert verdict.difference.value == pytest.approx(expected)
        within = verdict.difference.low <= 0 <= verdict.difference.high
        assert (verdict.word == "within noise") == within


def test_difference_within_noise_is_called_so():
    from l2c.report.comparison import Verdict

    rival = object()
    assert Verdict(rival, ConfidenceInterval(-0.1, -0.2, 0.05)).word == "within noise"
    assert Verdict(rival, ConfidenceInterval(-0.1, -0.2, -0.05)).word == "closer"
    assert Verdict(rival, ConfidenceInterval(0.1, 0.05, 0.2)).word == "farther"


def test_report_command(compared, invoke, tmp_path):
    finished = invoke("report", compared, "--out", tmp_path / "page.html", "--json")
    assert finished.code == 0
    printed = json.loads(finished.out)
    assert printed["ways"]["ddim-6--full"]["fraction"] == pytest.approx(1)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    wrong = invoke("report", compared, "--out", tmp_path / "page.txt")
    assert wrong.code == 2
    empty = invoke("report", tmp_path / "nothing")
    assert empty.code == 1
    assert "has no records of a comparison; make them with l2c compare --out" in empty.err


def test_folder_with_a_broken_record_only(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text('{"format"')
    with pytest.raises(DataError, match="has no records of a comparison"):
        read_comparison(tmp_path)


PROBE = """
<script>
const wrong = [];
window.addEventListener("error", (event) => wrong.push(event.message));
window.addEventListener("load", () => {
  const part = document.querySelector(".sliding");
  const slider = part.querySelector("input");
  const clip = () => getComputedStyle(part.querySelector(".above")).clipPath;
  const before = clip();
  const decoded = [...document.images].every((image) => image.complete && image.naturalWidth > 0);
  slider.value = 20;
  slider.dispatchEvent(new Event("input"));
  const after = clip();
  const select = part.querySelector("select");
  const source = part.querySelector(".above").src;
  select.selectedIndex = select.options.length - 1;
  select.dispatchEvent(new Event("change"));
  const found = {
    before, after, wrong,
    swapped: part.querySelector(".above").src !== source,
    alt: part.querySelector(".above").alt,
    width: document.documentElement.scrollWidth,
    window: window.innerWidth,
    decoded,
    plot: document.querySelector(".plot").getBoundingClientRect().height,
    focusable: slider.tabIndex,
  };
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("size", ["500,900", "1920,1080"])
def test_page_lives_in_a_browser(page, tmp_path, size):
    path = tmp_path / "page.html"
    path.write_text(page.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["wrong"] == []
    assert "CONSOLE" not in done.stderr
    assert "50%" in found["before"]
    assert "20%" in found["after"]
    assert found["swapped"]
    assert found["alt"].startswith("The same pictures: ")
    assert found["decoded"]
    assert found["width"] <= found["window"]  # nothing but tables scrolls sideways
    assert found["plot"] > 150
    assert found["focusable"] == 0


def test_the_short_table_has_the_best_of_every_method(compared):
    data = read_comparison(compared)
    text = comparison_text(data)
    for base in data.bases:
        assert f"\n{base}\n" in text
    best = {way_id for base in data.bases for way_id in data.best(data.of_base(base))}
    assert len(text.splitlines()) == 1 + len(data.bases) + len(best)
    errors = [f"{data.error(way):.4f}" for way in data.ways if way.id in best]
    assert all(error in text for error in errors)


def test_document_and_page_show_the_recorded_comparison():
    root = Path(__file__).resolve().parents[2]
    data = read_comparison(root / "results/compare-embedded-dit")
    assert not data.problems
    assert comparison_text(data) in (root / "docs/compare.md").read_text(encoding="utf-8")
    page = (root / "results/compare-embedded-dit.html").read_text(encoding="utf-8")
    assert page.count("<tr class=") == len(data.ways)
