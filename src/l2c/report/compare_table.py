"""The tables of a comparison: on the page every variant with intervals, in the terminal the best of each method."""

from __future__ import annotations

from html import escape

from l2c.bootstrap import ConfidenceInterval, ErrorSummary
from l2c.report.comparison import FEWER, FULL, UNITS, ComparisonResults, VariantResult

_METRICS = {  # heading and format
    "latent-rmse": ("error of latents, relative", "{:.4f}"),
    "psnr": ("PSNR, dB", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "adherence": ("objects as told", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "fd": ("FD", "{:.1f}"),
    "kd": ("kernel distance", "{:.4f}"),
    "is": ("Inception score", "{:.1f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
}
_BETTER_HIGH = ("psnr", "ssim", "adherence")
"""Metrics whose worst picture has the least of them."""
_WIDTHS = (41, 40)


def comparison_text(data: ComparisonResults) -> str:
    """Per base, of every method the variant with the smallest product of error and time, the closest first.

    The verdict on a cache is that of the page: against the best run with fewer steps that is no slower.
    """
    lines = [
        f"error: root mean square distance to the reference, {UNITS[data.unit]}",
        f"{'':{_WIDTHS[0]}}{'setting':{_WIDTHS[1]}}{'MACs':>6}{'s/picture':>11}"
        f"{'error':>8}{'p95':>8}{'worst':>8}  verdict",
    ]
    for base in data.bases:
        variants = data.of_base(base)
        chosen = data.best(variants)
        lines.append(base)
        best = sorted((v for v in variants if v.id in chosen), key=lambda variant: variant.error)
        lines += [_line(data, variant) for variant in best]
    if data.unable:
        lines += ["cannot be run here", *(f"  {name}: {why}" for name, why in data.unable.items())]
    return "\n".join(lines)


def _line(data: ComparisonResults, variant: VariantResult) -> str:
    seconds = "" if variant.median_s is None else f"{variant.median_s:.3f}"
    verdict = "" if variant.group == "steps" else data.verdict(variant).word
    errors = variant.errors
    title, setting = (
        text if len(text) < width else f"{text[: width - 4]}... "
        for text, width in zip((variant.title, variant.setting), _WIDTHS, strict=True)
    )
    return (
        f"  {title:{_WIDTHS[0] - 2}}{setting:{_WIDTHS[1]}}{variant.fraction:6.0%}{seconds:>11}"
        f"{errors.mean.value:8.4f}{errors.p95:8.4f}{errors.worst:8.4f}  {verdict}"
    ).rstrip()


def variant_table(data: ComparisonResults, base: str) -> str:
    """All variants of a base with every figure, the base itself first."""
    variants = data.of_base(base)
    full, best = variants[0], data.best(variants)
    names = [name for name in full.metrics if name != "rmse"]
    heads = "".join(f'<th scope="col">{escape(_metric(name)[0])}</th>' for name in names)
    rows = "\n".join(_row(data, variant, full, names, variant.id in best) for variant in variants)
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Figures of {escape(base)}"><table>
<caption><span>All variants on {escape(base)}. Errors are {escape(UNITS[data.unit])}: the mean over the pictures
with its 95&nbsp;% confidence interval, the 95th percentile and the worst picture. Other metrics are means with
intervals and, where each picture has one, that at the worst twentieth of pictures and that of the worst,
PSNR and SSIM to the pictures with everything computed. Times are medians per picture with their range over
rounds in which all variants took turns. The verdict is on the mean error, picture by picture, against the best run
with fewer steps that is no slower. A method's best trade (smallest product of error and time) is bold.</span></caption>
<thead><tr><th scope="col">method</th><th scope="col">MACs</th><th scope="col">time</th><th scope="col">speed-up</th>
<th scope="col">error</th><th scope="col">95th percentile</th><th scope="col">worst</th>
{heads}<th scope="col">verdict</th><th scope="col">store</th><th scope="col">to prepare</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _row(
    data: ComparisonResults, variant: VariantResult, full: VariantResult, names: list[str], is_best: bool
) -> str:
    taken, base_s = variant.median_s, full.median_s
    time, gain = "-", "-"
    if taken is not None:
        ends = f"{_seconds(min(variant.seconds))} - {_seconds(max(variant.seconds))}"
        time = f"{_seconds(taken)}<small>{ends}</small>"
        gain = "" if base_s is None else f"{base_s / taken:.2f}&nbsp;x"
    errors = variant.errors
    cells = "".join(
        f"<td>{_figure(variant.metrics.get(name), _metric(name)[1])}{_tail(variant, name)}</td>"
        for name in names
    )
    store = variant.results["store_bytes"]
    prepare = variant.record.timings["prepare_s"][0]
    return (
        f'<tr class="{variant.group}{" best" if is_best else ""}"><th scope="row">{escape(variant.title)}'
        f"<small>{escape(variant.setting)}</small></th>"
        f"<td>{variant.fraction:.0%}<small>{variant.macs / 1e9:.1f}&nbsp;G</small></td><td>{time}</td><td>{gain}</td>"
        f"<td>{_figure(errors.mean, '{:.4f}')}</td><td>{errors.p95:.4f}</td><td>{errors.worst:.4f}</td>{cells}"
        f'<td class="verdict">{_verdict(data, variant)}</td>'
        f"<td>{'not told' if store is None else f'{store / 1e6:.1f}&nbsp;MB'}</td>"
        f"<td>{f'{prepare:.0f}&nbsp;s' if prepare >= 0.5 else '-'}</td></tr>"
    )


def _verdict(data: ComparisonResults, variant: VariantResult) -> str:
    if variant.method == FULL:
        return "<small>the base</small>"
    if variant.method == FEWER:
        return "<small>part of the bar</small>"
    verdict = data.verdict(variant)
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


def _tail(variant: VariantResult, name: str) -> str:
    """The worst twentieth of the pictures and the worst, by a metric of single pictures."""
    values = variant.results["metrics"].get(name)
    if not isinstance(values, list) or None in values:
        return ""
    sign = -1 if name in _BETTER_HIGH else 1
    errors, form = ErrorSummary.of([sign * value for value in values]), _metric(name)[1]
    return f"<small>{form.format(sign * errors.p95)}, {form.format(sign * errors.worst)}</small>"


def _seconds(value: float) -> str:
    return f"{value:.3g}&nbsp;s"


def _metric(name: str) -> tuple[str, str]:
    """Heading and format of a metric; one that was registered is shown by its name."""
    return _METRICS.get(name, (name, "{:.4g}"))
