"""What is compared: read from a TOML file or a preset, and checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from l2c.compare.baselines import BASELINES
from l2c.compare.choices import Base, MethodChoice, PipelineChoice, Reference
from l2c.documents import Cost, Count, check_value, existing, parse, read_file
from l2c.errors import ConfigError, Told, known
from l2c.evaluation.registry import all_metrics
from l2c.methods.registry import all_methods
from l2c.sampling.solvers import make_solver

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DISTRIBUTIONAL = ("fd", "kd", "is", "precision-recall")
Amount = Annotated[int, Field(ge=1, le=1_000_000)]
PIPELINE_REFERENCE = {"solver": "", "steps": 150, "spacing": ""}

_AnyTable = dict[str, Any]


@dataclass(frozen=True)
class CompareConfig:
    """A comparison.

    Attributes:
        model: Name or path of the model, or a pipeline.
        bases: Runs that are to become faster.
        methods: What makes them so.
        guidance: Guidance scale of a model; that of a pipeline is in its call.
        images: How many pictures each variant makes.
        batch_size: Pictures at a time; a pipeline makes them one by one.
        seed: Seed of the first picture; the next ones count up.
        timing_images: Pictures of a timed repetition.
        repetitions: Timed repetitions, in each of which all variants take turns.
        metrics: Registered ones (`register_metric`), `lpips`, and of `DISTRIBUTIONAL`.
        reference: The fine run.
        features: Feature extractor of the distributional metrics, see `make_extractor`.
        real_images: Folder or Parquet file of real images for them.
        num_real_images: How many of those; all by default.
        lpips: Paths of the weights of LPIPS, `network` and `heads`.
        vae: Folder of the autoencoder of a latent model.
        dtype: Number format of the weights.
        shown_images: Pictures that are kept of each variant, for the report.
    """

    model: str | PipelineChoice
    bases: tuple[Base, ...]
    methods: tuple[MethodChoice, ...]
    guidance: Cost | None = 1.5
    images: Amount = 16
    batch_size: Count = 8
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 2_000_000
    timing_images: Amount = 4
    repetitions: Amount = 3
    metrics: tuple[str, ...] = ("rmse", "psnr", "ssim")
    reference: Reference = field(default_factory=Reference)
    features: str = "efficientnet-lite0"
    real_images: str | None = None
    num_real_images: Count | None = None
    lpips: Mapping[str, str] = field(default_factory=dict)
    vae: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shown_images: Amount = 8

    def __post_init__(self) -> None:
        for metric in self.metrics:
            known("metric", metric, (*all_metrics(), "lpips", *DISTRIBUTIONAL))
        if "lpips" in self.metrics and set(self.lpips) != {"network", "heads"}:
            raise ConfigError(
                "the metric lpips needs the weights of its network and of its heads; give their paths as "
                'lpips = {network = "vgg16.pth", heads = "vgg.pth"}, or leave it out of the metrics'
            )
        for name, path in self.lpips.items():
            existing(Path(path), f"file of weights for the {name} of lpips", "give its path", ConfigError)
        if self.distributional and not self.real_images:
            raise ConfigError(
                f"the metric {self.distributional[0]} compares with real images; name a folder or a Parquet file "
                "of them as real_images, or leave it out of the metrics"
            )
        if self.distributional:
            check_value("images for metrics of a set", self.images, Annotated[int, Field(ge=10)])
        names = [base.name for base in self.bases]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"a comparison needs at least one base, each named once, got {names}")
        for base in self.bases:
            self._check_base(base)
        for method in self.methods:
            _check_method(method, names)

    def _check_base(self, base: Base) -> None:
        if isinstance(self.model, str):
            if base.scheduler:
                raise ConfigError("a base of a model has a solver; schedulers are for pipelines")
            make_solver(base.solver, base.steps, base.spacing)
        elif base.solver or base.spacing != "linspace":
            raise ConfigError(
                "a base of a pipeline has steps and perhaps a scheduler; leave solver and spacing out"
            )

    @property
    def pipeline(self) -> PipelineChoice | None:
        """The pipeline, if it is one that is compared."""
        return None if isinstance(self.model, str) else self.model

    @property
    def model_name(self) -> str:
        """Name of the model or pipeline."""
        return self.model if isinstance(self.model, str) else self.model.pipeline

    @property
    def distributional(self) -> tuple[str, ...]:
        """The metrics that compare sets."""
        return tuple(metric for metric in self.metrics if metric in DISTRIBUTIONAL)

    def identity(self) -> dict[str, Any]:
        """What decides the figures of a variant, in plain data; the list of methods and bases does not."""
        left_out = ("bases", "methods", "timing_images", "repetitions", "shown_images")
        found = {key: value for key, value in to_plain(self).items() if key not in left_out}
        if (
            isinstance(found["model"], dict) and not found["model"]["load"]
        ):  # as before there was such a thing
            del found["model"]["load"]
        return found

    @classmethod
    def load(cls, path: str | Path) -> CompareConfig:
        """Reads a TOML file.

        Raises:
            ConfigError: If it is missing, malformed, or names what does not exist.
        """
        path = Path(path)
        with Told(ConfigError, f"cannot read {path}: {{said}}", OSError):
            content = read_file(path)
        with Told(ConfigError, f"{path} is not TOML: {{said}}", ValueError, RecursionError):
            data = tomllib.loads(content.decode())
        return cls.from_plain(data, str(path))

    @classmethod
    def preset(cls, name: str) -> CompareConfig:
        """A comparison that comes with l2c.

        Raises:
            ConfigError: If there is none of that name.
        """
        known("preset", name, preset_names())
        return cls.load(Path(str(resources.files("l2c.compare") / "presets" / f"{name}.toml")))

    @classmethod
    def from_plain(cls, data: Mapping[str, Any], source: str = "the configuration") -> CompareConfig:
        """From plain data, as in a TOML file, where the lists are called `base` and `method`.

        Raises:
            ConfigError: If something is missing, unknown or out of range.
        """
        options = dict(parse(_AnyTable, data, source, ConfigError))
        for name in ("base", "method"):
            if found := options.pop(name, None):
                options[f"{name}s"] = found
        if "model" not in options:
            raise ConfigError(f"{source} names no model; add a line such as model = 'dit-mini-cifar10'")
        _check_names(cls, options, source)
        for name, kind in (("bases", Base), ("methods", MethodChoice)):
            listed = options.setdefault(name, [])
            for part in listed if isinstance(listed, list) else ():
                _check_names(kind, part, source)
        if isinstance(options["model"], dict):
            _check_names(PipelineChoice, options["model"], source)
            reference = options.get("reference", {})
            options["reference"] = (
                {**PIPELINE_REFERENCE, **reference} if isinstance(reference, dict) else reference
            )
            if options.setdefault("guidance", None) is not None or options.get("vae") is not None:
                raise ConfigError(
                    f"{source}: a pipeline has its own autoencoder, and its guidance is guidance_scale in its call; "
                    "leave guidance and vae out"
                )
        _check_names(Reference, options.get("reference", {}), source)
        return parse(cls, options, source, ConfigError)


def preset_names() -> tuple[str, ...]:
    """Names of the comparisons that come with l2c."""
    folder = resources.files("l2c.compare") / "presets"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def to_plain(config: CompareConfig) -> dict[str, Any]:
    """The configuration in the types of JSON; `CompareConfig.from_plain` reads it back."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    converted: dict[str, Any] = plain(asdict(config))
    return converted


def _check_names(cls: type, table: Any, source: str) -> None:
    """Refuses settings that a table must not have, with the nearest of those that it may."""
    names = [item.name for item in fields(cls)]
    with Told(ConfigError, f"{source}: {{said}}", ConfigError):
        for name in table if isinstance(table, dict) else ():
            known("setting", name, names)


def _check_method(method: MethodChoice, bases: list[str]) -> None:
    known("method", method.name, {**all_methods(), **BASELINES})
    with Told(ConfigError, f"method '{method.name}': {{said}}", ConfigError):
        for base in method.bases or ():
            known("base", base, bases)
    if method.name in BASELINES and method.budgets:
        raise ConfigError(f"'{method.name}' decides while it samples and takes settings, not budgets")
