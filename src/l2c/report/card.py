"""The model card of a schedule on a hub, from its summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from l2c.report.facts import schedule_facts


def schedule_card(
    summary: Mapping[str, Any], files: Mapping[str, str], repo_id: str = "user/schedule"
) -> str:
    """A card in Markdown, with the fields that hubs read at its top.

    Args:
        summary: What `CacheSchedule.summary` returns.
        files: Names of the files beside it: `schedule` and `heat_map`.
        repo_id: Where it will be, for the lines that load it.
    """
    cost, cached = summary["cost"], summary["cached"]
    facts = {
        **schedule_facts(summary),
        "cost": f"{cost['fraction']:.0%} of the multiply-accumulates "
        f"({cost['macs'] / 1e9:.4g} of {cost['full_macs'] / 1e9:.4g} G per image, without guidance), with "
        f"{cached['removed']:.0%} of the layers in {cached['evaluations']} evaluations reused",
        **_quality(summary["provenance"]),
    }
    rows = "\n".join(f"| {key[:1].upper()}{key[1:]} | {_escaped(value)} |" for key, value in facts.items())
    made = json.dumps(summary["provenance"], indent=2, sort_keys=True)
    return f"""---
{_front_matter(summary)}---

# Cache schedule for {_escaped(str(summary["model"] or summary["architecture"]))}

Which layers of a diffusion transformer compute at which evaluation; the others reuse what they put out before. Use it
with `l2c`:

```python
import l2c

schedule = l2c.CacheSchedule.from_pretrained("{repo_id}")
l2c.enable_cache(pipe, schedule)  # then call the pipeline as before
```

| | |
|---|---|
{rows}

![Which layers are computed at which evaluation]({files["heat_map"]})

`{files["schedule"]}` holds tables of numbers and text, and loading it executes nothing. How it was made:

```json
{made}
```
"""


def _front_matter(summary: Mapping[str, Any]) -> str:
    lines = ["library_name: l2c", "tags:", "- diffusion", "- cache-schedule", f"- {summary['architecture']}"]
    model = str(summary["model"])
    owner, _, name = model.partition("/")
    if owner and name and "/" not in name and " " not in model:
        lines.append(f"base_model: {model}")
    return "\n".join(lines) + "\n"


def _quality(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Errors that were recorded when it was made, if any."""
    drift = provenance.get("drift")
    found = {}
    if isinstance(drift, Mapping) and "error" in drift:
        found["Error"] = (
            f"{drift['error']:.4f}, root mean square distance to everything computed, relative, over "
            f"{drift.get('runs', '?')} runs"
        )
    found.update(
        {
            f"Recorded {key.replace('_', ' ')}": f"{value:.4g}"
            for key, value in provenance.items()
            if "error" in key and isinstance(value, (int, float))
        }
    )
    return found


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
