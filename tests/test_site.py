"""The site builds without a warning, and none of its links is dead."""

import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import l2c

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """What a page of the site links to and loads, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.headings: set[str] = set()
        self._in_heading = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.ids.add(value)
            if value and (name == "src" or (tag == "link" and name == "href")):
                self.loads.append(value)
        self._in_heading = tag == "h2" or (self._in_heading and tag in ("code", "span"))

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.add(data.strip())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    missing = [name for name in ("mkdocs", "material", "mkdocstrings") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; the extra `docs` has what builds the site")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_site_has_no_dead_links(site):
    pages = {
        path: Page(path) for path in site.rglob("*.html") if "results" not in path.relative_to(site).parts
    }
    dead = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if (
                url.scheme or url.netloc or path.name == "404.html"
            ):  # elsewhere; this one knows the site's address only
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            fragment = unquote(url.fragment)
            places = pages[target].ids if target in pages else set()
            if not target.is_file() or (fragment and target in pages and fragment not in places):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 15
    assert dead == []


@pytest.mark.slow
def test_site_shows_every_public_name(site):
    page = Page(site / "reference" / "l2c.html")
    pages = {path.stem for path in (site / "reference").glob("*.html")}
    assert [name for name in l2c.__all__ if f"l2c.{name}" not in page.headings and name not in pages] == []


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    assert [link for path in site.rglob("*.html") for link in Page(path).loads if urlsplit(link).netloc] == []
