"""A comparison in short, as plain text: of every method the setting that trades best."""

from __future__ import annotations

from l2c.report.comparison import ComparisonResults, WayResult

_WIDTHS = (41, 40)


def comparison_text(data: ComparisonResults) -> str:
    """Per base, of every method the way with the smallest product of error and time, the closest picture first.

    The verdict on a cache is that of the page: against the best run with fewer steps that is no slower.
    """
    lines = [f"{'':{_WIDTHS[0]}}{'setting':{_WIDTHS[1]}}{'MACs':>6}{'s/picture':>11}{'error':>8}  verdict"]
    for base in data.bases:
        ways = data.of_base(base)
        chosen = data.best(ways)
        lines.append(base)
        best = sorted((way for way in ways if way.id in chosen), key=data.error)
        lines += [_line(data, way) for way in best]
    return "\n".join(lines)


def _line(data: ComparisonResults, way: WayResult) -> str:
    seconds = "" if way.median_s is None else f"{way.median_s:.3f}"
    verdict = "" if way.group == "steps" else data.verdict(way).word
    title, setting = (
        text if len(text) < width else f"{text[: width - 4]}... "
        for text, width in zip((way.title, way.setting), _WIDTHS, strict=True)
    )
    return (
        f"  {title:{_WIDTHS[0] - 2}}{setting:{_WIDTHS[1]}}{way.fraction:6.0%}{seconds:>11}{data.error(way):8.4f}  "
        f"{verdict}"
    ).rstrip()
