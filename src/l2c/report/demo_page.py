"""The page that shows a demo: one HTML file with its pictures inside, which needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from l2c.report.html import facts_table, html_page, machine_facts


def demo_page(record: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The page as HTML.

    Args:
        record: What `Record.to_json` returns for a demo.
        images: PNG files by name, as listed in the record.
    """
    config, results = record["config"], record["results"]
    variants = results["variants"]
    full, cached = variants[0], variants[1:]
    headline = f"nearly the same pictures for {cached[0]['fraction']:.0%} of the work"
    sections = "\n".join(_section(config, results, full, variant, images) for variant in cached)
    body = f"""<header>
<h1>{escape(headline[:1].upper() + headline[1:])}</h1>
<p class="lead">{escape(_lead(config, results))}</p>
</header>
{_table(variants)}
{sections}
{_details(record)}"""
    return html_page("demo_page", f"l2c demo: {headline}", body)


def _lead(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    learning = results["learning"]
    return (
        f"The diffusion transformer {config['model']} made {len(config['labels'])} pictures from the same "
        f"noise, each time in {config['steps']} evaluations with {config['solver']} and guidance "
        f"{config['guidance']:g}. Once every layer was computed at every evaluation; then layers reused "
        "earlier outputs where a schedule says so. "
        f"One schedule was learned for this page in {learning['seconds']:.0f} seconds."
    )


def _table(variants: list[Mapping[str, Any]]) -> str:
    rows = []
    for variant in variants:
        spread = f"{_seconds(variant['min_s'])}-{_seconds(variant['max_s'])}"
        quality = "" if variant["key"] == "full" else _decibels(variant["psnr_db"])
        rows.append(
            f'<tr><th scope="row">{escape(variant["title"].capitalize())}</th>'
            f"<td>{_seconds(variant['median_s'])} s<small>{spread}</small></td>"
            f"<td>{variant['speedup']:.2f} x</td>"
            f'<td class="extra">{variant["macs"] / 1e9:.1f} G</td>'
            f'<td><span class="share" style="--share:{variant["fraction"]:.3f}"></span>'
            f"{variant['fraction']:.0%}</td>"
            f"<td>{quality}</td><td>{variant['error']:.4f}</td></tr>"
        )
    repetitions = variants[0]["repetitions"]
    how = "one run each" if repetitions == 1 else f"the median of {repetitions} runs in turn, and their range"
    return f"""<section aria-labelledby="figures">
<h2 id="figures">In figures</h2>
<div class="scroll">
<table>
<thead><tr><th scope="col">Sampling</th><th scope="col">Time</th><th scope="col">Speed-up</th>
<th scope="col" class="extra">MACs</th><th scope="col">Computed</th><th scope="col">PSNR</th>
<th scope="col">Error</th></tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody>
</table>
</div>
<p class="note">Time: all pictures, {how}. MACs: multiply-accumulates per picture, without the second half
that guidance adds. PSNR: closeness to the pictures with everything computed, mean over the pictures; more is
closer, and beyond about 30 dB differences are hard to see. Error: root mean square distance to a solution
in much finer steps, mean over the pictures, which go from -1 to 1; here a schedule can come closer than what it
speeds up, if it was learned for that.</p>
</section>"""


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _decibels(value: float | None) -> str:
    return "identical" if value is None else f"{value:.1f} dB"


def _section(
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    full: Mapping[str, Any],
    variant: Mapping[str, Any],
    images: Mapping[str, bytes],
) -> str:
    key, title = variant["key"], variant["title"]
    suffix = "" if key == "cached" else f"-{key}"
    classes = ", ".join(config["class_names"])
    gain = results["difference_gain"]
    described = f"{len(config['labels'])} pictures: {classes}"
    cached_alt = f"With the {title}. {described}, nearly the same as with everything computed."
    difference_alt = f"Differences of the {described}, mostly near black."
    return f"""<section aria-labelledby="{key}">
<h2 id="{key}">{escape(title[:1].upper() + title[1:])}</h2>
<div class="compare">
<figure>{_image(images["full.png"], f"Everything computed. {described}.")}
<figcaption>everything computed, {_seconds(full["median_s"])}&nbsp;s</figcaption></figure>
<figure>{_image(images[f"{key}.png"], cached_alt)}
<figcaption>with the schedule, {_seconds(variant["median_s"])}&nbsp;s</figcaption></figure>
<label class="slider">drag to compare
<input type="range" min="0" max="100" value="50" aria-label="Where the cut between the two is, in percent">
</label>
</div>
<p class="note">From the left, row by row: {escape(classes)}.</p>
<figure class="difference">{_image(images[f"difference{suffix}.png"], difference_alt)}
<figcaption>what differs, amplified {gain} times; black is equal</figcaption></figure>
<figure class="map"><div class="scroll">{_image(images[f"heatmap{suffix}.png"], _describe_map(variant))}</div>
<figcaption>what is computed when, evaluations from left to right, blocks from bottom to top</figcaption>
</figure>
</section>"""


def _describe_map(variant: Mapping[str, Any]) -> str:
    return (
        f"Heat map, {variant['title']}: which attention and MLP layers are computed at which evaluation. "
        f"{variant['fraction']:.0%} of the multiply-accumulates are left."
    )


def _image(data: bytes, text: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:image/png;base64,{encoded}" alt="{escape(text, quote=True)}">'


def _details(record: Mapping[str, Any]) -> str:
    config, learning = record["config"], record["results"]["learning"]
    facts = {
        "Model": f"{config['model']}, class-conditional, pictures of 32 x 32 pixels, trained on CIFAR-10",
        "Learning": f"{learning['seconds']:.0f} s, budget {learning['budget']:g} of the MACs, iterations: "
        f"{learning['iterations']}, pictures in each: {learning['settings']['batch_size']}",
        **machine_facts(record["device"], record["versions"]),
        "Made": record["created"],
    }
    again = f"l2c sample {config['model']} --schedule schedule.safetensors --labels 0-9"
    return f"""<section aria-labelledby="how">
<h2 id="how">How it was made</h2>
{facts_table(facts)}
<p>Beside this page are the schedule, every picture, and <code>record.json</code> with all settings and
timings. To use the schedule again: <code>{escape(again)}</code></p>
</section>"""
