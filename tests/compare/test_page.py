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
from l2c.report.compare_table import comparison_text
from l2c.report.comparison import UNITS
from l2c.report.comparison_folder import read_comparison

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


def test_every_variant_and_its_figures_are_in_the_tables(page, compared):
    data = read_comparison(compared)
    assert page.count("<tr class=") == len(data.variants)
    for variant in data.variants:
        errors = sorted(variant.per_picture("rmse"))
        assert variant.error == pytest.approx(sum(errors) / 4)
        assert variant.errors.worst == errors[-1]
        assert errors[-2] < variant.errors.p95 < errors[-1]
        for figure in (variant.error, variant.errors.p95, variant.errors.worst):
            assert f"{figure:.4f}" in page
        assert len(variant.seconds) == 2
    assert "FORA" in page
    assert "arXiv 2407.01425" in page
    assert "First Block Cache (diffusers)" in page
    stored = json.loads((compared / "config.json").read_text())
    assert stored["methods"][0]["name"] in page


def test_unit_of_the_errors_is_said_and_may_not_be_mixed(page, compared, tmp_path):
    assert '<p class="unit">Errors are absolute, for pictures with values from -1 to 1.</p>' in page
    assert "error (absolute)" in page
    copy = tmp_path / "copy"
    shutil.copytree(compared, copy)
    paths = sorted(copy.glob("records/*.json"))
    for path in paths:
        path.write_text(path.read_text().replace('"unit": "absolute"', '"unit": "relative"'))
    data = read_comparison(copy)
    assert "Errors are relative to the root mean square of the reference." in compare_page(data)
    assert comparison_text(data).startswith("error: root mean square distance to the reference, relative to")
    paths[0].write_text(paths[0].read_text().replace('"unit": "relative"', '"unit": "absolute"'))
    with pytest.raises(DataError, match="several units, absolute and relative; make them anew"):
        read_comparison(copy)


def test_front_and_verdict_follow_from_the_figures(compared):
    data = read_comparison(compared)
    for kind in ("macs", "time"):
        front = data.front(list(data.variants), kind)
        for variant in data.variants:
            beaten = [
                other
                for other in data.variants
                if other.cost(kind) < variant.cost(kind) and other.error <= variant.error
            ]
            assert (variant not in front) if beaten else True
        errors = [variant.error for variant in front]
        assert errors == sorted(errors, reverse=True)
    variant = next(w for w in data.variants if w.method == "fora")
    verdict = data.verdict(variant)
    if verdict.rival is not None:
        assert verdict.rival.method in ("full", "fewer-steps")
        assert verdict.rival.median_s <= variant.median_s * 1.03
        expected = sum(variant.per_picture("rmse")) / 4 - sum(verdict.rival.per_picture("rmse")) / 4
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
    assert printed["variants"]["ddim-6--full"]["fraction"] == pytest.approx(1)
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
    covered: [...document.querySelectorAll(".plots svg")].flatMap((plot) => {
      const boxes = [...plot.querySelectorAll(":scope > .label")].map((label) => label.getBoundingClientRect());
      return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) =>
        a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom));
    }).length,
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
    assert found["covered"] == 0  # labels of the front


def test_the_short_table_has_the_best_of_every_method(compared):
    data = read_comparison(compared)
    text = comparison_text(data)
    for base in data.bases:
        assert f"\n{base}\n" in text
    best = {name for base in data.bases for name in data.best(data.of_base(base))}
    assert len(text.splitlines()) == 2 + len(data.bases) + len(best)
    errors = [f"{variant.error:.4f}" for variant in data.variants if variant.id in best]
    assert all(error in text for error in errors)


def test_document_and_page_show_the_recorded_comparison():
    root = Path(__file__).resolve().parents[2]
    data = read_comparison(root / "results/compare-embedded-dit")
    assert not data.problems
    assert comparison_text(data) in (root / "docs/compare.md").read_text(encoding="utf-8")
    page = (root / "results/compare-embedded-dit.html").read_text(encoding="utf-8")
    assert page.count("<tr class=") == len(data.variants)
    assert UNITS[data.unit] in page
    assert all("unit" not in json.loads(p.read_text())["results"] for p in data.folder.glob("records/*"))
    assert data.unit == "absolute"  # what older records do not say
