"""The table of a comparison: one row per way, with intervals and a verdict."""

from __future__ import annotations

from html import escape

from l2c.bootstrap import ConfidenceInterval
from l2c.report.comparison import FEWER, FULL, ComparisonResults, WayResult

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


def short_title(way: WayResult) -> str:
    """Its title without what follows a comma or a bracket."""
    return way.title.partition(",")[0].partition(" (")[0]


def way_table(data: ComparisonResults, base: str, ways: list[WayResult]) -> str:
    """All ways of a base with every figure, the base itself first."""
    full = ways[0]
    best = data.best(ways)
    names = list(full.metrics)
    heads = "".join(f'<th scope="col">{escape(_METRICS[name][0])}</th>' for name in names)
    rows = "\n".join(_row(data, way, full, names, way.id in best) for way in ways)
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Figures of {escape(base)}"><table>
<caption><span>All ways on {escape(base)}. Times are medians per picture with their range over rounds in which all
ways took turns; metrics are means over the pictures with 95&nbsp;% intervals, PSNR and SSIM to the pictures with
everything computed. The verdict is on the error, picture by picture, against the best run with fewer steps that is no
slower. A method's best trade (smallest product of error and time) is bold.</span></caption>
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
        f'<tr class="{way.group}{" best" if is_best else ""}"><th scope="row">{escape(way.title)}'
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


def _figure(interval: ConfidenceInterval | None, form: str) -> str:
    if interval is None:
        return "identical"
    return f"{form.format(interval.value)}<small>{form.format(interval.low)} - {form.format(interval.high)}</small>"


def _seconds(value: float) -> str:
    return f"{value:.3g}&nbsp;s"
