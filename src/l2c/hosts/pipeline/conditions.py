"""What runs are learned and judged on: prompts, labels, and which of them nothing is learned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2c.errors import ConfigError
from l2c.hosts.pipeline.settings import FitSettings

Condition = Mapping[str, Any]
"""What tells a run from others, by the pipeline's names: `{"prompt": "a cat"}`."""


def conditions_of(
    conditions: Sequence[Condition] | None, prompts: Sequence[str] | str | Path | None
) -> Sequence[Condition]:
    """Conditions, from prompts or a text file with one in each line if those are given instead.

    Raises:
        ConfigError: If there is neither, there are both, there are none, or the file cannot be read.
    """
    if (conditions is None) == (prompts is None):
        raise ConfigError("learning on a pipeline takes either prompts or conditions")
    if prompts is not None:
        texts = read_prompts(prompts) if isinstance(prompts, (str, Path)) else prompts
        conditions = [{"prompt": text} for text in texts]
    if not conditions:
        raise ConfigError("learning takes at least one prompt or label")
    return conditions


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a text file, one in each line; empty lines are none.

    Raises:
        ConfigError: If it cannot be read or has none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"'{path}' is no text file with prompts; give a file with one in each line, or a list of prompts"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"'{path}' has no prompts; write one in each line")
    return prompts


@dataclass(frozen=True)
class Draw:
    """The runs of learning.

    Attributes:
        runs: Condition and seed of each, those that are held out first.
        unseen: Conditions that nothing is learned on; 0 if there is only one, so that held-out runs have other noise.
    """

    runs: list[tuple[Condition, int]]
    unseen: int

    @classmethod
    def of(cls, conditions: Sequence[Condition], settings: FitSettings) -> Draw:
        """Held-out runs with the first conditions, the others with the rest of them in turn.

        >>> settings = FitSettings(num_runs=3, num_held_out=2)
        >>> [condition["prompt"] for condition, _ in Draw.of([{"prompt": p} for p in "abcd"], settings).runs]
        ['a', 'b', 'c', 'd', 'c']
        """
        unseen = min(settings.num_held_out, len(conditions) // 2)
        judged, learned = conditions[: unseen or None], conditions[unseen:]
        chosen = [judged[i % len(judged)] for i in range(settings.num_held_out)]
        chosen += [learned[i % len(learned)] for i in range(settings.num_runs)]
        return cls([(condition, settings.seed + i) for i, condition in enumerate(chosen)], unseen)
