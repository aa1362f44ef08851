"""The parts of a comparison's configuration: what is compared, runs to make faster, methods, and the fine run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from l2c.documents import MOST_EVALUATIONS, Count, check_value
from l2c.errors import ConfigError, known
from l2c.hosts.pipeline.conditions import read_prompts
from l2c.methods.learned import find_schedule
from l2c.scenes.pipeline import EMBEDDED, scene_prompts
from l2c.schedule.sizes import size_name

NUM_PROMPTS = 64
"""Prompts for a pipeline that comes with the package where none are given."""
TINY = "tiny:"
"""What the name of a pipeline of `l2c.testing` begins with."""


LOADED = ("lora", "scheduler", "quantization", "device_map")
"""What may be loaded with a pipeline."""
Budget = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class PipelineChoice:
    """A diffusers pipeline and what it is called with.

    Attributes:
        pipeline: Folder or name on the hub, `l2c:NAME` for one that comes with the package, or `tiny:sd3` for one of
            `l2c.testing`.
        prompts: Prompts, which take turns; from a file, by its name, if that has one in each line. One that comes with
            the package has some of its own.
        learning_prompts: What methods learn and calibrate on instead; likewise.
        conditions: Instead of prompts what tells runs apart, by the pipeline's names: `{ class_labels = 3 }`.
        call: What it is called with besides, by name: `guidance_scale`, `height`, `width`. A base adds the steps.
        load: What is loaded with it, as `load_pipeline` takes it: `lora`, `scheduler`, `quantization`, `device_map`.
    """

    pipeline: str
    prompts: str | tuple[str, ...] = ()
    learning_prompts: str | tuple[str, ...] = ()
    conditions: tuple[Mapping[str, Any], ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.load:
            known("part to load with a pipeline", name, LOADED)
        if self.load and self.pipeline.startswith(TINY):
            raise ConfigError(f"{self.pipeline} is not loaded; leave out load")
        if self.pipeline in EMBEDDED:
            usual = {k: v for k, v in EMBEDDED[self.pipeline].items() if k != "num_inference_steps"}
            object.__setattr__(self, "call", {**usual, **self.call})
            if not (self.prompts or self.conditions):
                object.__setattr__(self, "prompts", tuple(scene_prompts(NUM_PROMPTS, held_out=True)))
            if not (self.learning_prompts or self.conditions):
                object.__setattr__(self, "learning_prompts", tuple(scene_prompts(NUM_PROMPTS)))
        for name in ("prompts", "learning_prompts"):
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, tuple(read_prompts(find_schedule(given))))
        if self.conditions and (self.prompts or self.learning_prompts):
            raise ConfigError(
                "a pipeline is called with either prompts or conditions, and methods learn on the latter where there "
                "are some; leave prompts and learning_prompts out, or the conditions"
            )
        if len({size_name(condition) for condition in self.conditions}) > 1:
            raise ConfigError(
                "pictures of one size are compared, and these conditions are of several; give height and width in "
                "call, and make a comparison for each"
            )
        if not (self.prompts or self.conditions or self.pipeline.startswith(TINY)):
            raise ConfigError(
                f"what is {self.pipeline} to make? give prompts, a list or a text file with one in each line"
            )
        if "num_inference_steps" in self.call:
            raise ConfigError(
                "the number of steps is that of each base; leave num_inference_steps out of the call"
            )


@dataclass(frozen=True)
class Base:
    """A run that is to become faster.

    Attributes:
        solver: Of a model: solver name.
        steps: Number of steps; of a model, its evaluations.
        spacing: Of a model: their spacing.
        budgets: Shares of its MACs that methods aim at.
        scheduler: Of a pipeline: instead of its own scheduler one of `Host.fewer_steps` by its name there, or a class
            of diffusers.
    """

    solver: str = ""
    steps: Annotated[int, Field(ge=0, le=MOST_EVALUATIONS)] = 0
    spacing: str = "linspace"
    budgets: tuple[Budget, ...] = (0.5, 0.35, 0.25)
    scheduler: str = ""

    def __post_init__(self) -> None:
        check_value("the number of steps of a base", self.steps, Count)

    @property
    def name(self) -> str:
        """For files: `ddim-50`, with the spacing where it is not linspace; of a pipeline's own scheduler `steps-28`."""
        driver = "".join(c if c.isalnum() else "-" for c in (self.solver or self.scheduler).replace("+", "p"))
        short = f"{driver.replace('--', '-') or 'steps'}-{self.steps}"
        return short if self.spacing == "linspace" else f"{short}-{self.spacing}"

    def to_plain(self) -> dict[str, Any]:
        """What decides its figures, in the types of JSON."""
        if self.solver:
            return {"solver": self.solver, "steps": self.steps, "spacing": self.spacing}
        return {"scheduler": self.scheduler, "steps": self.steps}


@dataclass(frozen=True)
class MethodChoice:
    """A method with the settings to try.

    Attributes:
        name: From the registry of methods, or a baseline.
        settings: One or several sets of settings; none takes the published ones, or those of the baseline.
        budgets: Instead of the base's; an empty list takes the settings as they are.
        bases: Names of the bases it runs on; all by default.
        optional: Leave it out, and say so, where what it needs is not installed.
    """

    name: str
    settings: tuple[Mapping[str, Any], ...] = ({},)
    budgets: tuple[Budget, ...] | None = None
    bases: tuple[str, ...] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Reference:
    """The fine run whose pictures errors are measured against.

    Attributes:
        solver: Of a model: solver name. A pipeline takes that of `Host.reference`.
        steps: Number of steps.
        spacing: Of a model: their spacing.
    """

    solver: str = "dpmsolver++3"
    steps: Annotated[int, Field(ge=1, le=MOST_EVALUATIONS)] = 100
    spacing: str = "logsnr"
