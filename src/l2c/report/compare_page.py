"""The page of a comparison: one HTML file with everything inside, made from its records alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from l2c.documents import read_document, read_own_file
from l2c.errors import DataError
from l2c.report.compare_table import variant_table
from l2c.report.comparison import GROUPS, UNITS, ComparisonResults, VariantResult
from l2c.report.html import facts_table, html_page, machine_facts
from l2c.report.svg import Point, heat_map, mark, scatter

PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def compare_page(data: ComparisonResults) -> str:
    """The page as HTML, from what `read_comparison` returns."""
    model = data.model
    sections = "\n".join(_base_section(data, base) for base in data.bases)
    problems = "".join(f'<p class="problem">{escape(text)}</p>' for text in data.problems)
    body = f"""<header>
<h1>{escape(model)}: faster variants, compared</h1>
<p class="lead">{escape(_lead(data))}</p>
<p class="unit">Errors are {escape(UNITS[data.unit])}.</p>
{problems}
</header>
{sections}
{_unable(data)}
{_reproduce(data)}"""
    return html_page("compare_page", f"{model}: faster variants", body)


def _lead(data: ComparisonResults) -> str:
    config = data.config
    fine = config["reference"]
    verdicts = [data.verdict(variant).word for variant in data.variants if variant.group != "steps"]
    better, tied = verdicts.count("closer"), verdicts.count("within noise")
    timed = "no slower" if any(variant.seconds for variant in data.variants) else "no dearer in MACs"
    guided = "" if data.guidance is None else f", with guidance {data.guidance:g}"
    return (
        f"{len(data.variants)} variants sample the same {config['images']} pictures from the same noise{guided}. "
        f"The error of a picture is its root mean square distance to the reference, a "
        f"solution in {fine['steps']} fine steps. The bar for every cache is the best run with fewer steps that is "
        f"{timed}: of {len(verdicts)} settings of caches, {better} come closer than that, {tied} differ within noise."
    )


def _base_section(data: ComparisonResults, base: str) -> str:
    variants = data.of_base(base)
    first = variants[0]
    base_run, run = first.record.config["variant"]["base"], first.results["run"]
    if first.of_model:
        title = f"{base_run['solver']}, {base_run['steps']} evaluations, {base_run['spacing']} spacing"
    else:
        title = f"{base_run['scheduler'] or run['solver']}, {base_run['steps']} steps"
    return f"""<section aria-labelledby="{escape(base)}">
<h2 id="{escape(base)}">{escape(title)}</h2>
{_plots(data, variants)}
{variant_table(data, base)}
{_pictures(data, base, variants)}
{_heat_maps(variants)}
</section>"""


def _plots(data: ComparisonResults, variants: list[VariantResult]) -> str:
    ids = {variant.id for variant in variants}
    shown = [*variants, *(v for v in data.variants if v.everything and v.id not in ids)]
    figures, tables = [], []
    for kind, axis in (("time", "seconds per picture"), ("macs", "GMACs per picture")):
        if any(variant.cost(kind) is None for variant in shown):
            continue
        front = data.front(shown, kind)
        points = {variant.id: _point(variant, kind, variant in front) for variant in shown}
        on_front = [points[variant.id] for variant in front]
        names = "; ".join(p.title for p in on_front)
        plot = scatter(
            list(points.values()),
            on_front,
            axis,
            f"error ({data.unit})",
            f"Error against {axis} of {len(points)} variants. On the front, from cheap to dear: {names}.",
        )
        figures.append(f"<figure>{plot}</figure>")
        tables.append(_front_table(front, kind, axis))
    legend = "".join(
        f'<li class="{group}"><svg viewBox="-9 -9 18 18" aria-hidden="true"><g class="mark {group}">'
        f"{mark(group, 0, 0)}</g></svg>{escape(text)}</li>"
        for group, text in GROUPS.items()
    )
    return f"""<div class="plots">{"".join(figures)}</div>
<ul class="legend">{legend}<li class="frontline"><svg viewBox="-9 -9 18 18" aria-hidden="true">
<path class="front" d="M-9 0H9"/></svg>the front: nothing is both cheaper and closer</li></ul>
<p class="note">Marks are mean errors, bars their 95 % confidence intervals over the pictures, both axes logarithmic. On
the front a thin line goes up to the worst picture, with a tick at the 95th percentile. Runs with fewer steps of other
bases are shown, too.</p>
<details><summary>The front in figures</summary><div class="plots">{"".join(tables)}</div></details>"""


def _point(variant: VariantResult, kind: str, on_front: bool) -> Point:
    cost, errors = variant.cost(kind), variant.errors
    assert cost is not None
    x = cost if kind == "time" else cost / 1e9
    run = variant.results["run"]
    label = (
        f"{run['solver']}, {run['steps']} steps"
        if variant.everything
        else f"{variant.method}, {variant.fraction:.0%}"
    )
    title = (
        f"{variant.title} ({variant.setting}): {x:.3g}, error {errors.mean.value:.4f}, 95th percentile "
        f"{errors.p95:.4f}, worst {errors.worst:.4f}"
    )
    tiny = 1e-6
    return Point(
        x, max(errors.mean.value, tiny), variant.group, title, max(errors.mean.low, tiny),
        max(errors.mean.high, tiny), (max(errors.p95, tiny), max(errors.worst, tiny)) if on_front else None,
        label,
    )  # fmt: skip


def _front_table(front: list[VariantResult], kind: str, axis: str) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(v.title)}<small>{escape(v.setting)}</small></th>'
        f"<td>{(v.cost(kind) or 0.0) / (1 if kind == 'time' else 1e9):.3g}</td>"
        f"<td>{v.error:.4f}</td><td>{v.errors.p95:.4f}</td><td>{v.errors.worst:.4f}</td></tr>"
        for v in front
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="The front in {axis}"><table>
<thead><tr><th scope="col">on the front</th><th scope="col">{axis}</th><th scope="col">error</th>
<th scope="col">95th percentile</th><th scope="col">worst</th></tr></thead><tbody>{rows}</tbody></table></div>"""


def _pictures(data: ComparisonResults, base: str, variants: list[VariantResult]) -> str:
    sources = {
        variant.id: found for variant in variants if (found := _picture(data.folder, variant)) is not None
    }
    if len(sources) < 2:
        return ""
    shown = [variant for variant in variants if variant.id in sources]
    first = shown[0]
    second = next((variant for variant in shown if variant.group in ("ours", "cache")), shown[1])
    texts = {variant.id: f"{variant.title}, {variant.setting}" for variant in shown}
    options = "".join(
        f'<option value="{escape(v.id)}"{" selected" if v is second else ""}>{escape(texts[v.id])}</option>'
        for v in shown[1:]
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


def _picture(folder: Path, variant: VariantResult) -> str | None:
    """A picture of the comparison to stand in the page: a PNG file that is really in its folder, and nothing else."""
    if (name := variant.results["pictures"]) is None:
        return None
    try:
        content = read_own_file(folder, name)
    except (OSError, ValueError):  # a name with a zero in it is no path
        return None
    whole = content.startswith(PNG_BEGIN) and content.endswith(PNG_END)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if whole else None


def _heat_maps(variants: list[VariantResult]) -> str:
    cards = []
    for variant in variants:
        summary: Mapping[str, Any] | None = variant.results["summary"]
        if summary is None:
            continue
        described = f"{variant.title}, {variant.setting}: {variant.fraction:.0%} of the MACs are computed"
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


def _unable(data: ComparisonResults) -> str:
    if not data.unable:
        return ""
    items = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in data.unable.items())
    return f"""<section aria-labelledby="unable">
<h2 id="unable">What cannot be run here</h2>
<ul>{items}</ul>
</section>"""


def _reproduce(data: ComparisonResults) -> str:
    record = data.variants[0].record
    versions = {
        name: version for variant in data.variants for name, version in variant.record.versions.items()
    }
    rounds = max((len(variant.seconds) for variant in data.variants), default=0)
    decoding = ", ".join(f"{seconds:.3g} s" for seconds in data.decode_s)
    told = "classes" if data.variants[0].of_model else "prompts"
    facts = {
        "Command": "l2c compare comparison.toml --out FOLDER, with the settings below; then l2c report FOLDER",
        **machine_facts(record.device, versions),
        "Commit": record.commit or "installed package",
        "Seeds": f"{record.seeds[0]} to {record.seeds[-1]}; {told} take turns",
        "Timing": f"{rounds} rounds of {data.timing_images} pictures, all variants in turn; solver without decoding",
        "Decoding": decoding or "none: the model makes pictures",
        "Made": f"{min(w.record.created for w in data.variants)} to {max(w.record.created for w in data.variants)}",
    }
    sources = "".join(
        f"<li>{escape(title)}: {escape(source)}</li>"
        for title, source in dict.fromkeys((w.title, str(w.results["source"])) for w in data.variants)
        if source
    )
    try:
        config: Mapping[str, Any] = read_document("config.json", dict[str, Any], within=data.folder)
    except DataError:
        config = data.config
    return f"""<section aria-labelledby="reproduce">
<h2 id="reproduce">How to make it again</h2>
{facts_table(facts)}
<h3>Sources</h3>
<ul>{sources}</ul>
<details><summary>All settings</summary><pre>{escape(json.dumps(config, indent=2))}</pre></details>
</section>"""
