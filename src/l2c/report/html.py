"""What pages share: a frame with style and script inside, and the table of facts at their end."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any


def html_page(name: str, title: str, body: str) -> str:
    """A whole page that needs no other file.

    Args:
        name: Of its style and script, files beside this one.
        title: Of the window.
        body: Its content as HTML.
    """
    style, script = (
        (resources.files("l2c.report") / f"{name}.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js")
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def facts_table(facts: Mapping[str, str]) -> str:
    """Names and texts as rows."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in facts.items()
    )
    return f"""<div class="scroll"><table class="facts"><tbody>
{rows}
</tbody></table></div>"""


def machine_facts(device: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, str]:
    """Where a record was made, and with what."""
    threads = f", {device['threads']} threads" if "threads" in device else ""
    return {
        "Machine": f"{device['name']}{threads}",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
