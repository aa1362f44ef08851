"""The page of a comparison: one HTML file with everything inside, made from its records alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from l2c.report.compare_table import short_title, way_table
from l2c.report.comparison import FEWER, FULL, ComparisonResults, WayResult
from l2c.report.svg import Point, heat_map, lines, mark, scatter

_GROUPS = {
    "steps": "everything computed, fewer steps",
    "cache": "published caches",
    "peer": "caches of other libraries",
    "ours": "this library",
}


def compare_page(data: ComparisonResults) -> str:
    """The page as HTML, from what `read_comparison` returns."""
    style = (resources.files("l2c.report") / "compare_page.css").read_text(encoding="utf-8")
    script = (resources.files("l2c.report") / "compare_page.js").read_text(encoding="utf-8")
    model = str(data.config["model"])
    sections = "\n".join(_base_section(data, base) for base in data.bases)
    problems = "".join(f'<p class="problem">{escape(text)}</p>' for text in data.problems)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(model)}: ways to be faster</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{escape(model)}: ways to be faster</h1>
<p class="lead">{escape(_lead(data))}</p>
{problems}
</header>
{sections}
{_reproduce(data)}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _lead(data: ComparisonResults) -> str:
    config = data.config
    fine = config["reference"]
    verdicts = [data.verdict(way).word for way in data.ways if way.method not in (FULL, FEWER, "diffusers")]
    better, tied = verdicts.count("closer"), verdicts.count("within noise")
    timed = "no slower" if any(way.seconds for way in data.ways) else "no dearer in MACs"
    return (
        f"{len(data.ways)} ways of sampling the same {config['images']} pictures from the same noise, with guidance "
        f"{config['guidance']:g}. The error of a picture is its root mean square distance to a solution in "
        f"{fine['steps']} fine steps, for values from -1 to 1. The bar for every cache is the best run with fewer "
        f"steps that is {timed}: of {len(verdicts)} settings of caches, {better} come closer than that, {tied} differ "
        "within noise."
    )


def _base_section(data: ComparisonResults, base: str) -> str:
    ways = data.of_base(base)
    run = ways[0].record.config["way"]["base"]
    title = f"{run['solver']}, {run['steps']} evaluations, {run['spacing']} spacing"
    return f"""<section aria-labelledby="{escape(base)}">
<h2 id="{escape(base)}">{escape(title)}</h2>
{_plots(data, ways)}
{way_table(data, base, ways)}
{_pictures(data, base, ways)}
{_step_errors(ways)}
{_heat_maps(ways)}
</section>"""


def _plots(data: ComparisonResults, ways: list[WayResult]) -> str:
    ids = {way.id for way in ways}
    shown = [*ways, *(w for w in data.ways if w.method in (FULL, FEWER) and w.id not in ids)]
    figures = []
    for kind, axis in (("time", "seconds per picture"), ("macs", "GMACs per picture")):
        if any(data.cost(way, kind) is None for way in shown):
            continue
        front = {way.id for way in data.front(shown, kind)}
        points = {way.id: _point(data, way, kind, way.id in front) for way in shown}
        on_front = [points[way.id] for way in data.front(shown, kind)]
        names = "; ".join(p.title for p in on_front)
        plot = scatter(
            list(points.values()),
            on_front,
            axis,
            "error",
            f"Error against {axis} of {len(points)} ways. On the front, from cheap to dear: {names}.",
        )
        figures.append(
            f"<figure>{plot}<figcaption>error against {axis}, both logarithmic</figcaption></figure>"
        )
    legend = "".join(
        f'<li class="{group}"><svg viewBox="-9 -9 18 18" aria-hidden="true"><g class="mark {group}">'
        f"{mark(group, 0, 0)}</g></svg>{escape(text)}</li>"
        for group, text in _GROUPS.items()
    )
    return f"""<div class="plots">{"".join(figures)}</div>
<ul class="legend">{legend}<li class="frontline"><svg viewBox="-9 -9 18 18" aria-hidden="true">
<path class="front" d="M-9 0H9"/></svg>the front: nothing is both cheaper and closer</li></ul>
<p class="note">Bars are 95 % intervals over the pictures. Runs with fewer steps of other bases are shown, too.</p>"""


def _point(data: ComparisonResults, way: WayResult, kind: str, on_front: bool) -> Point:
    cost, error = data.cost(way, kind), way.metrics["rmse"]
    assert cost is not None
    assert error is not None
    x = cost if kind == "time" else cost / 1e9
    label = way.setting if way.method in (FULL, FEWER) else short_title(way)
    title = f"{way.title} ({way.setting}): {x:.3g}, error {error.value:.4f}"
    tiny = 1e-6
    return Point(
        x, max(error.value, tiny), way.group, title, max(error.low, tiny), max(error.high, tiny),
        label if on_front else "",
    )  # fmt: skip


def _pictures(data: ComparisonResults, base: str, ways: list[WayResult]) -> str:
    sources = {way.id: found for way in ways if (found := _picture(data.folder, way)) is not None}
    if len(sources) < 2:
        return ""
    shown = [way for way in ways if way.id in sources]
    first = shown[0]
    second = next((way for way in shown if way.group in ("ours", "cache")), shown[1])
    texts = {way.id: f"{way.title}, {way.setting}" for way in shown}
    options = "".join(
        f'<option value="{escape(way.id)}"{" selected" if way is second else ""}>{escape(texts[way.id])}</option>'
        for way in shown[1:]
    )
    stored = json.dumps({key: {"src": sources[key], "text": texts[key]} for key in sources}).replace(
        "<", "\\u003c"
    )
    name = escape(base)
    return f"""<h3>The same pictures</h3>
<div class="sliding" data-base="{name}">
<div class="stack"><img class="below" src="{sources[first.id]}" alt="Pictures with everything computed">
<img class="above" src="{sources[second.id]}" alt="The same pictures: {escape(texts[second.id], quote=True)}"></div>
<label class="choose">right: <select>{options}</select></label>
<label class="cut">left: everything computed; drag or use the arrow keys
<input type="range" min="0" max="100" value="50" aria-label="Where the cut between the two is, in percent"></label>
<script type="application/json">{stored}</script>
</div>"""


def _picture(folder: Path, way: WayResult) -> str | None:
    name = way.results["pictures"]
    path = folder / str(name)
    if name is None or not path.is_file():
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _step_errors(ways: list[WayResult]) -> str:
    """One curve per method: its way that is closest to half of the work."""
    chosen: dict[str, WayResult] = {}
    for way in ways:
        if way.results["step_errors"] is None or way.method in (FULL, FEWER, "diffusers"):
            continue
        other = chosen.get(way.method)
        if other is None or abs(way.fraction - 0.5) < abs(other.fraction - 0.5):
            chosen[way.method] = way
    if not chosen:
        return ""
    series = {
        f"{short_title(way)}, {way.fraction:.0%}": way.results["step_errors"] for way in chosen.values()
    }
    last = "; ".join(f"{name}: {values[-1]:.3f}" for name, values in series.items())
    plot = lines(
        series,
        "model evaluation, from noise to picture",
        "distance to the base",
        f"Distance of the sample to that with everything computed, over evaluations. At the end: {last}.",
    )
    return f"""<h3>Error on the way</h3>
<figure class="single">{plot}<figcaption>root mean square distance of what the network is given to what it is given with
everything computed; of each method the setting closest to half of the work</figcaption></figure>"""


def _heat_maps(ways: list[WayResult]) -> str:
    cards = []
    for way in ways:
        summary: Mapping[str, Any] | None = way.results["summary"]
        if summary is None:
            continue
        described = f"{way.title}, {way.setting}: {way.fraction:.0%} of the MACs are computed"
        cards.append(
            f"<figure>{heat_map(summary, f'Schedule of {described}.')}"
            f"<figcaption>{escape(described)}</figcaption></figure>"
        )
    if not cards:
        return ""
    return f"""<h3>Schedules</h3>
<p class="note">Evaluations from left to right, blocks from bottom to top; attention above, MLPs below. Coloured is
computed, grey is forecast. Caches of other libraries decide anew in every run and have none.</p>
<div class="maps">{"".join(cards)}</div>"""


def _reproduce(data: ComparisonResults) -> str:
    record = data.ways[0].record
    device = record.device
    machine = f"{device['name']}, {device['threads']} threads" if "threads" in device else str(device["name"])
    versions = {name: version for way in data.ways for name, version in way.record.versions.items()}
    rounds = max((len(way.seconds) for way in data.ways), default=0)
    decoding = ", ".join(f"{seconds:.3g} s" for seconds in data.decode_s)
    facts = {
        "Command": "l2c compare comparison.toml --out FOLDER, with the settings below; then l2c report FOLDER",
        "Machine": machine,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Commit": record.commit or "installed package",
        "Seeds": f"{record.seeds[0]} to {record.seeds[-1]}; the class is the seed modulo the number of classes",
        "Timing": f"{rounds} rounds of {data.timing_images} pictures, all ways in turn; solver without decoding",
        "Decoding": decoding or "none: the model makes pictures",
        "Made": f"{min(w.record.created for w in data.ways)} to {max(w.record.created for w in data.ways)}",
    }
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    sources = "".join(
        f"<li>{escape(title)}: {escape(source)}</li>"
        for title, source in dict.fromkeys((w.title, str(w.results["source"])) for w in data.ways)
        if source
    )
    stored = data.folder / "config.json"
    config = (
        stored.read_text(encoding="utf-8") if stored.is_file() else json.dumps(dict(data.config), indent=2)
    )
    return f"""<section aria-labelledby="reproduce">
<h2 id="reproduce">How to make it again</h2>
<div class="scroll"><table class="facts"><tbody>
{rows}
</tbody></table></div>
<h3>Sources</h3>
<ul>{sources}</ul>
<details><summary>All settings</summary><pre>{escape(config)}</pre></details>
</section>"""
