"""What a pipeline is called with: prompts or labels that tell runs apart, and everything else."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.digest import digest
from l2c.documents import read_file
from l2c.errors import ConfigError, OneByOneError, Told
from l2c.hosts.pipeline.modular import arguments_of
from l2c.schedule.sizes import size_name

Condition = Mapping[str, Any]
"""What tells a run from others, by the pipeline's names: `{"prompt": "a cat"}`."""

_OF_MODELS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "solver": "another scheduler in the pipeline",
    "spacing": "another configuration of its scheduler",
}
"""Arguments of models, and what they are for a pipeline."""


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
    wrong = f"'{path}' is no text file with prompts; give a file with one in each line, or a list of prompts"
    with Told(ConfigError, wrong, OSError, UnicodeDecodeError):
        lines = read_file(path).decode().splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"'{path}' has no prompts; write one in each line")
    return prompts


def read_picture(path: str | Path) -> Any:
    """A picture of a file, in RGB.

    Raises:
        ConfigError: If it cannot be read or is none.
    """
    from PIL import Image

    wrong = f"'{path}' is no picture; give the file of one after @"
    kinds = (OSError, Image.DecompressionBombError)  # the latter of a few bytes that say they are a huge one
    with Told(ConfigError, wrong, *kinds), Image.open(path) as picture:
        return picture.convert("RGB")


def choose(conditions: Sequence[Condition], count: int, held_out: int = 0) -> tuple[Condition, ...]:
    """Conditions of so many runs: those of the held-out ones first, which no other run has, then the rest in turn.

    At most half of the conditions are kept for held-out runs; with a single one, all runs have it. Where they ask for
    several sizes of pictures, sizes take turns, too.

    >>> [condition["prompt"] for condition in choose([{"prompt": p} for p in "abcd"], 5, held_out=2)]
    ['a', 'b', 'c', 'd', 'c']
    """
    groups: dict[str, list[Condition]] = {}
    for condition in conditions:
        groups.setdefault(size_name(condition), []).append(condition)
    judged, learned = [], []
    for group in groups.values():
        unseen = min(-(-held_out // len(groups)), len(group) // 2)
        judged.append(group[: unseen or None])
        learned.append(group[unseen:])

    def in_turn(parts: Sequence[Sequence[Condition]], number: int) -> list[Condition]:
        turns = [divmod(place, len(parts)) for place in range(number)]
        return [parts[size][turn % len(parts[size])] for turn, size in turns]

    return (*in_turn(judged, held_out), *in_turn(learned, count - held_out))


@dataclass(frozen=True)
class SeededConditions:
    """Prompts or labels, by the pipeline's names, and the seed of the noise of each."""

    conditions: tuple[Condition, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, rows: Sequence[int] | slice) -> SeededConditions:
        """See `Examples.rows`."""
        places = range(len(self))[rows] if isinstance(rows, slice) else rows
        return SeededConditions(
            tuple(self.conditions[i] for i in places), tuple(self.seeds[i] for i in places)
        )

    @property
    def identity(self) -> str:
        """See `Examples.identity`."""
        return digest(plain(self.conditions), self.seeds)

    @property
    def sizes(self) -> Sequence[str]:
        """See `Examples.sizes`."""
        return [size_name(condition) for condition in self.conditions]

    def describe(self, row: int) -> str:
        """See `Examples.describe`."""
        said = [
            f"{name} {value!r}"
            for name, value in self.conditions[row].items()
            if isinstance(value, str | int)
        ]
        return ", ".join([*said, f"seed {self.seeds[row]}"])


def of_pictures(call: Mapping[str, Any]) -> Condition:
    """What of a call is for one picture, as a condition is: prompts, labels, and embeddings of prompts.

    >>> of_pictures({"prompt_2": "a cat", "num_images_per_prompt": 1, "height": 64})
    {'prompt_2': 'a cat'}
    """
    kinds = (str, list, Tensor)
    named = {name: value for name, value in call.items() if "prompt" in name or name == "class_labels"}
    return {name: value for name, value in named.items() if isinstance(value, kinds)}


def repeated(condition: Condition, count: int, call: Mapping[str, Any]) -> Condition:
    """A condition for so many pictures in one call, with what the call has for one picture.

    Raises:
        ConfigError: If it has no prompt or label that could be repeated.
    """

    def times(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value] * count)
        return value * count if isinstance(value, list) else [value] * count

    kinds = (str, list, tuple, Tensor)
    own = {**of_pictures(call), **condition}
    made = {name: times(value) if isinstance(value, kinds) else value for name, value in own.items()}
    if count > 1 and not any(isinstance(value, kinds) for value in own.values()):
        raise ConfigError(
            f"a batch of {count} repeats a prompt or label, and none is given by prompt=, prompts= or conditions="
        )
    return made


def joined(conditions: Sequence[Condition], call: Mapping[str, Any]) -> Condition:
    """Conditions of several pictures for one call, with what the call has for one picture.

    >>> joined([{"prompt": "a cat"}, {"prompt": "a dog"}], {"prompt_2": "a photo", "height": 64})
    {'prompt_2': ['a photo', 'a photo'], 'prompt': ['a cat', 'a dog']}

    Raises:
        OneByOneError: If one of their values cannot be given for each picture.
    """
    made: dict[str, Any] = {}
    own = of_pictures(call)
    conditions = [{**own, **condition} for condition in conditions]
    for name in {name: None for condition in conditions for name in condition}:
        values: list[Any] = [condition.get(name) for condition in conditions]
        first = values[0]
        if all(isinstance(value, Tensor) and value.shape[1:] == first.shape[1:] for value in values):
            made[name] = torch.cat(values)
        elif all(isinstance(value, (str, int)) and not isinstance(value, bool) for value in values):
            made[name] = values
        elif all(isinstance(value, list) for value in values):
            made[name] = [part for value in values for part in value]
        elif all(plain(value) == plain(first) and isinstance(value, float | bool | None) for value in values):
            made[name] = first
        else:
            raise OneByOneError(f"pictures with a {name} of their own are not run in one call")
    return made


def takes_steps(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Whether the number of steps of a pipeline that is called like that can be set."""
    given = {"sigmas", "timesteps"} & {key for key, value in call.items() if value is not None}
    return not given and "num_inference_steps" in arguments_of(pipe)


def check_takes_steps(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuses a pipeline whose number of steps cannot be set.

    Raises:
        ConfigError: If it cannot.
    """
    if not takes_steps(pipe, call):
        raise ConfigError(
            f"{type(pipe).__name__} is called without num_inference_steps, so that its number of steps cannot be set; "
            "call it with that instead of timesteps or sigmas"
        )


def check_call(pipe: Any, call: Iterable[str], others: Sequence[str] = ()) -> None:
    """Refuses arguments that a pipeline does not take.

    Args:
        pipe: The pipeline.
        call: Names of the arguments.
        others: What else a misspelt name may be meant for.

    Raises:
        ConfigError: If there is one; the sentence names the nearest that it takes.
    """
    function, parameters = type(pipe).__call__, arguments_of(pipe)
    kinds = (parameter.kind for parameter in inspect.signature(function).parameters.values())
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    if takes_any and not function.__module__.startswith("diffusers."):  # which swallows what it does not know
        return
    for name in call:
        if name not in parameters:
            near = difflib.get_close_matches(name, [*parameters, *others], n=1, cutoff=0.7)
            near = [_OF_MODELS[name]] if name in _OF_MODELS else near
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{type(pipe).__name__} takes no argument '{name}'{hint}")


def plain(value: Any) -> Any:
    """Arguments of a call as JSON types, so that they can be told from others."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, Tensor):
        return digest(value.detach().float().cpu())
    if hasattr(value, "tobytes"):  # pictures and arrays
        return digest(value.tobytes().hex())
    return value if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__
