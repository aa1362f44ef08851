"""The page of a comparison: one HTML file with everything inside, made from its records alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from l2c.bootstrap import Interval
from l2c.report.comparison import FEWER, FULL, ComparisonResults, WayResult
from l2c.report.svg import Point, heat_map, lines, scatter

_GROUPS = {
    "steps": "everything computed, fewer steps",
    "cache": "published caches",
    "peer": "caches of other libraries",
    "ours": "this library",
}
_METRICS = {
    "rmse": ("error", "{:.4f}"),
    "psnr": ("PSNR, dB", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "fd": ("FD", "{:.1f}"),
    "kd": ("kernel distance", "{:.4f}"),
    "is": ("Inception score", "{:.1f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
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


def _title(way: WayResult) -> str:
    return str(way.results["title"])


def _name(way: WayResult) -> str:
    """Its title without what follows a comma or a bracket."""
    return _title(way).partition(",")[0].partition(" (")[0]


def _base_section(data: ComparisonResults, base: str) -> str:
    ways = data.of_base(base)
    run = ways[0].record.config["way"]["base"]
    title = f"{run['solver']}, {run['steps']} evaluations, {run['spacing']} spacing"
    return f"""<section aria-labelledby="{escape(base)}">
<h2 id="{escape(base)}">{escape(title)}</h2>
{_plots(data, ways)}
{_table(data, base, ways)}
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
        f"{_legend_mark(group)}</g></svg>{escape(text)}</li>"
        for group, text in _GROUPS.items()
    )
    return f"""<div class="plots">{"".join(figures)}</div>
<ul class="legend">{legend}<li class="frontline"><svg viewBox="-9 -9 18 18" aria-hidden="true">
<path class="front" d="M-9 0H9"/></svg>the front: nothing is both cheaper and closer</li></ul>
<p class="note">Bars are 95 % intervals over the pictures. Runs with fewer steps of other bases are shown, too.</p>"""


def _legend_mark(group: str) -> str:
    from l2c.report.svg import _mark

    return _mark(group, 0, 0)


def _point(data: ComparisonResults, way: WayResult, kind: str, on_front: bool) -> Point:
    cost, error = data.cost(way, kind), way.metrics["rmse"]
    assert cost is not None
    assert error is not None
    x = cost if kind == "time" else cost / 1e9
    label = way.setting if way.method in (FULL, FEWER) else _name(way)
    title = f"{_title(way)} ({way.setting}): {x:.3g}, error {error.value:.4f}"
    tiny = 1e-6
    return Point(
        x, max(error.value, tiny), way.group, title, max(error.low, tiny), max(error.high, tiny),
        label if on_front else "",
    )  # fmt: skip


def _table(data: ComparisonResults, base: str, ways: list[WayResult]) -> str:
    full = ways[0]
    best = data.best(ways)
    names = list(full.metrics)
    heads = "".join(f'<th scope="col">{escape(_METRICS[name][0])}</th>' for name in names)
    rows = "\n".join(_row(data, way, full, names, way.id in best) for way in ways)
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Figures of {escape(base)}"><table>
<caption><span>All ways on {escape(base)}. Times are medians per picture with their range over rounds in which all
ways took turns; metrics are means over the pictures with 95&nbsp;% intervals, PSNR and SSIM to the pictures with everything
computed. The verdict is on the error, picture by picture, against the best run with fewer steps that is no slower.
A method's best trade (smallest product of error and time) is bold.</span></caption>
<thead><tr><th scope="col">method</th><th scope="col">MACs</th><th scope="col">time</th><th scope="col">speed-up</th>
{heads}<th scope="col">verdict</th><th scope="col">store</th><th scope="col">to prepare</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _row(data: ComparisonResults, way: WayResult, full: WayResult, names: list[str], is_best: bool) -> str:
    taken, base_s = way.median_s, full.median_s
    time, gain = "-", "-"
    if taken is not None:
        time = f"{_seconds(taken)}<small>{_seconds(min(way.seconds))} - {_seconds(max(way.seconds))}</small>"
        gain = "" if base_s is None else f"{base_s / taken:.2f}&nbsp;x"
    cells = "".join(f"<td>{_figure(way.metrics.get(name), _METRICS[name][1])}</td>" for name in names)
    store = way.results["store_bytes"]
    prepare = way.record.timings["prepare_s"][0]
    macs = float(way.results["macs"])
    return (
        f'<tr class="{way.group}{" best" if is_best else ""}"><th scope="row">{escape(_title(way))}'
        f"<small>{escape(way.setting)}</small></th>"
        f"<td>{way.fraction:.0%}<small>{macs / 1e9:.1f}&nbsp;G</small></td><td>{time}</td><td>{gain}</td>{cells}"
        f"<td>{_verdict(data, way)}</td>"
        f"<td>{'not told' if store is None else f'{store / 1e6:.1f}&nbsp;MB'}</td>"
        f"<td>{f'{prepare:.0f}&nbsp;s' if prepare >= 0.5 else '-'}</td></tr>"
    )


def _verdict(data: ComparisonResults, way: WayResult) -> str:
    if way.method == FULL:
        return "<small>the base</small>"
    if way.method == FEWER:
        return "<small>part of the bar</small>"
    verdict = data.verdict(way)
    if verdict.rival is None or verdict.difference is None:
        return f"<small>{verdict.word}</small>"
    against = verdict.rival.setting
    d = verdict.difference
    return (
        f'<span class="{verdict.word.replace(" ", "-")}">{verdict.word}</span>'
        f"<small>{d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f}) against {escape(against)}</small>"
    )


def _figure(interval: Interval | None, form: str) -> str:
    if interval is None:
        return "identical"
    return f"{form.format(interval.value)}<small>{form.format(interval.low)} - {form.format(interval.high)}</small>"


def _seconds(value: float) -> str:
    return f"{value:.3g}&nbsp;s"


def _pictures(data: ComparisonResults, base: str, ways: list[WayResult]) -> str:
    sources = {way.id: found for way in ways if (found := _picture(data.folder, way)) is not None}
    if len(sources) < 2:
        return ""
    shown = [way for way in ways if way.id in sources]
    first = shown[0]
    second = next((way for way in shown if way.group in ("ours", "cache")), shown[1])
    texts = {way.id: f"{_title(way)}, {way.setting}" for way in shown}
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
    series = {f"{_name(way)}, {way.fraction:.0%}": way.results["step_errors"] for way in chosen.values()}
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
        described = f"{_title(way)}, {way.setting}: {way.fraction:.0%} of the MACs are computed"
        cards.append(
            f"<figure>{heat_map(summary, f'Schedule of {described}.')}"
            f"<figcaption>{escape(described)}</figcaption></figure>"
        )
    if not cards:
        return ""
    return f"""<h3>Schedules</h3>
<p class="note">Evaluations from left to right, blocks from bottom to top; attention above, MLPs below. Coloured is
computed, grey is stood in for. Caches of other libraries decide anew in every run and have none.</p>
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
        for title, source in dict.fromkeys((_title(w), str(w.results["source"])) for w in data.ways)
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
