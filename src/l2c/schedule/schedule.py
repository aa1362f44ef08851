"""`CacheSchedule`: what to compute at which evaluation, how to forecast the rest, and what it was made for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.documents import MOST_CELLS, Share, check_value, parse
from l2c.errors import ConfigError, ContractError, ScheduleError, Told
from l2c.layers import LayerTable
from l2c.schedule import hub
from l2c.schedule.branches import check_branches, has_branches, without_derived
from l2c.schedule.cache_dit import cache_dit_settings, calibrator_config, sums_of
from l2c.schedule.contract import Contract, Run
from l2c.schedule.cost import Cost, CostTable
from l2c.schedule.file import ANEW, read_tensors, write_tensors
from l2c.schedule.forecast import Predictor, ReusePlan, plan_reuse, without_zeros
from l2c.schedule.header import Header
from l2c.schedule.interchange import interchange
from l2c.schedule.summary import summarize

FORMAT = "l2c.cache-schedule"
VERSION = 4
"""Of what is read; 2 is written where passes of guidance have rows of their own, or for a range of it, 3 where a solver
weighs coarse and fine detail apart, 4 where its weights follow the guidance scale."""


@dataclass(frozen=True, eq=False)
class CacheSchedule:
    """Which layers compute at which evaluation, how the others are forecast, and the contract.

    Attributes:
        compute: Bool (evaluations, layers); True where a layer is computed. Bool (evaluations, 2 * layers + 1) where
            conditional and unconditional pass have rows of their own, see `l2c.schedule.branches`.
        layers: The layers of the architecture it is for.
        contract: What it was made for.
        predictor: How reused layers are forecast.
        scores: Router scores (evaluations, layers) in [0, 1] it was thresholded from, if it was; NaN where
            there is none.
        provenance: How it came to be: method, settings, figures. Plain data.

    Raises:
        ScheduleError: If the parts do not fit each other.
    """

    compute: Tensor
    layers: LayerTable
    contract: Contract
    predictor: Predictor = field(default_factory=Predictor)
    scores: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (len(self.contract.run.timesteps), len(self.layers))
        if min(expected) < 1 or expected[0] * expected[1] > MOST_CELLS:
            raise ScheduleError(
                f"a schedule has at least one evaluation and layer and at most {MOST_CELLS} in all, got {expected}"
            )
        found, apart = tuple(self.compute.shape), (expected[0], 2 * expected[1] + 1)
        if self.compute.dtype != torch.bool or found not in (expected, apart):
            raise ScheduleError(
                f"the mask must be bool of shape {expected} (evaluations, layers), or {apart} with rows for each pass "
                f"of guidance, got {self.compute.dtype} {found}"
            )
        if self.has_branches:
            check_branches(self.compute, len(self.layers))
        scores = self.scores
        if scores is not None and (
            scores.shape != self.compute.shape or not ((scores < 0) | (scores > 1)).sum() == 0
        ):
            raise ScheduleError(f"scores must be from 0 to 1 and of shape {found}, got {tuple(scores.shape)}")
        if len(self.contract.fingerprint) % expected[1]:
            raise ScheduleError(
                f"a fingerprint has a number for each of {expected[1]} layers, got {len(self.contract.fingerprint)}"
            )
        for (evaluation, layer), terms in self.plan.items():  # what was never computed is refused here
            if not all(math.isfinite(weight) for _, weight in terms):
                raise ScheduleError(
                    f"layer {layer} has a forecast that is not finite at evaluation {evaluation}"
                )

    @property
    def num_evaluations(self) -> int:
        """Number of model evaluations of the run."""
        return int(self.compute.shape[0])

    @property
    def has_branches(self) -> bool:
        """Whether conditional and unconditional pass have rows of their own."""
        return self.compute.ndim == 2 and has_branches(self.compute.shape[1], len(self.layers))

    @property
    def version(self) -> int:
        """Of the file format that it needs; older programs read what has no axis of branches and no range."""
        return max(self.contract.run.version, 2 if self.has_branches else 1)

    def guidance_note(self, run: Run) -> str | None:
        """See `Contract.guidance_note`; with the errors that were measured at several scales, where they were."""
        note, measured = self.contract.guidance_note(run), self.provenance.get("held_out_error_by_guidance")
        if note is None or not measured:
            return note
        return f"{note}; measured were " + ", ".join(
            f"{error:.4f} at {scale}" for scale, error in measured.items()
        )

    @cached_property
    def plan(self) -> ReusePlan:
        """For every reused (evaluation, column): which computed values are read, with which weights."""
        plan = plan_reuse(self.compute, self.predictor, self.contract.run.log_snrs)
        return without_zeros(without_derived(plan, self.compute, len(self.layers)))

    def plan_from(self, first: int) -> ReusePlan:
        """The plan of a run that begins at a later evaluation, which computes everything.

        Where a forecast finds as many values as it was made for, its weights are the schedule's; where there are
        fewer, it is the polynomial through them over half log-SNR, of order 2 at most.
        """
        levels, count = self.contract.run.log_snrs, self.num_evaluations
        compute = self.compute[first:].clone()
        compute[:1] = True
        history = max(1, min(3, self.predictor.history))
        repeats = len(set(levels)) < len(levels) or history == 1
        begun = plan_reuse(
            compute, Predictor() if repeats else Predictor("taylor", history - 1), levels[first:count]
        )
        plan: ReusePlan = {}
        for (evaluation, layer), terms in begun.items():
            own = self.plan.get((first + evaluation, layer), ())
            known = own and min(source for source, _ in own) >= first
            plan[first + evaluation, layer] = (
                own if known else tuple((first + source, weight) for source, weight in terms)
            )
        return plan

    @cached_property
    def cost(self) -> Cost:
        """Multiply-accumulates with and without the schedule."""
        table, rows = self.layers, self.num_evaluations
        macs = CostTable.macs(table)
        linear = replace(macs, layers=tuple(float(layer.linear_macs) for layer in table.layers))
        return Cost(
            macs=round(macs.of(self.compute)),
            full_macs=rows * table.full_macs,
            linear_macs=round(linear.of(self.compute)),
            full_linear_macs=rows * round(linear.full),
        )

    def with_any_weights(self) -> CacheSchedule:
        """The schedule without the fingerprint of the weights that it was learned on."""
        return replace(self, contract=replace(self.contract, fingerprint=()))

    def at_threshold(self, threshold: float) -> CacheSchedule:
        """The schedule that its router's scores give at another threshold; see `mask_of_scores`.

        Raises:
            ConfigError: If the threshold is out of range, there are no scores, or forecasts were learned for the mask.
        """
        if self.scores is None:
            raise ConfigError(
                "the schedule has no router scores, so that a threshold has nothing to decide on; learn one with "
                "l2c learn MODEL --pattern alternate"
            )
        if self.predictor.kind == "linear":
            raise ConfigError("the forecasts were learned for this mask, so that no threshold can change it")
        compute = mask_of_scores(self.scores, threshold)
        return replace(self, compute=compute, provenance={**self.provenance, "threshold": threshold})

    def check_layers(self, table: LayerTable) -> None:
        """Compares a model's layers with those that the schedule was made for.

        Raises:
            ContractError: If architecture, layers or sizes differ.
        """
        mine = self.layers
        if (mine.architecture, mine.names) != (table.architecture, table.names):
            raise ContractError(
                f"schedule was made for a {mine.architecture} with {len(mine)} layers "
                f"({self.contract.model or 'unnamed model'}), but the model is a {table.architecture} with "
                f"{len(table)} layers; learn one for this model with l2c learn"
            )
        if [layer.macs for layer in mine.layers] != [layer.macs for layer in table.layers]:
            raise ContractError(
                f"schedule was made for a {mine.architecture} with {mine.full_macs / 1e9:.3g} GMACs per evaluation at "
                f"{'x'.join(map(str, mine.sample_shape))}, but the model has {table.full_macs / 1e9:.3g} GMACs at "
                f"{'x'.join(map(str, table.sample_shape))}; learn one for this model with l2c learn"
            )

    def save(self, path: str | Path) -> None:
        """Writes the schedule as one `.safetensors` file; an interrupted write leaves the old file.

        Raises:
            OutputError: If the file cannot be written.
        """
        tensors, header = self.pack()
        write_tensors(path, FORMAT, tensors, {"version": self.version, **header})

    @classmethod
    def load(cls, path: str | Path) -> CacheSchedule:
        """Reads a schedule file, or one that comes with l2c by its name; nothing in it is ever executed.

        Raises:
            ScheduleError: If the file is missing, truncated, of another kind, or malformed.
        """
        tensors, header = read_tensors(path, FORMAT, VERSION)
        return cls.unpack(tensors, header, path)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything in the schedule, as tensors and plain data."""
        tensors = {"compute": self.compute.to(torch.uint8).contiguous()}
        if self.scores is not None:
            tensors["scores"] = self.scores.float().contiguous()
        if self.predictor.coefficients is not None:
            tensors["coefficients"] = self.predictor.coefficients.detach().float().contiguous()
        contract = asdict(self.contract)
        for name in ("guidance_range", "guidance_degree"):  # which older programs do not know
            if not contract["run"][name]:
                del contract["run"][name]
        header = {
            "layers": self.layers.to_json(),
            "contract": contract,
            "predictor": {"kind": self.predictor.kind, "order": self.predictor.order},
            "provenance": dict(self.provenance),
        }
        return tensors, header

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: str | Path
    ) -> CacheSchedule:
        """The schedule that `pack` took apart.

        Args:
            tensors: Tensors by name.
            header: The plain data.
            path: Where it was read, for the error.

        Raises:
            ScheduleError: If something is missing or malformed, or the predictor is not registered.
        """
        found = parse(Header, header, f"{path} is malformed", ScheduleError, ANEW)
        with Told(
            ScheduleError, f"{path} is malformed: {{said}}; {ANEW}", KeyError, ConfigError, ScheduleError
        ):
            return cls(
                compute=tensors["compute"].bool(),
                layers=found.layers,
                contract=found.contract,
                predictor=Predictor(**asdict(found.predictor), coefficients=tensors.get("coefficients")),
                scores=tensors.get("scores"),
                provenance=found.provenance,
            )

    def to_json(self) -> dict[str, Any]:
        """The schedule as plain data for other programs, as docs/interchange.md describes it field by field.

        >>> import l2c
        >>> schedule = l2c.methods.interval(l2c.testing.tiny_dit(), every=2, steps=4)
        >>> schedule.to_json()["compute"], schedule.to_json()["reused"][0]
        (['111111', '000000', '111111', '000000'], {'evaluation': 1, 'layer': 0, 'sources': [0], 'weights': [1.0]})
        """
        return interchange(self)

    def to_cache_dit(self) -> dict[str, Any]:
        """The schedule as settings of cache-dit, for evaluations that compute all layers, or none but first blocks.

        `cache_dit.DBCacheConfig(**schedule.to_cache_dit())` computes at the same evaluations. Elsewhere it computes at
        least the first block, and repeats what the others added, or continues it by `to_cache_dit_calibrator`.

        Raises:
            ScheduleError: If cache-dit has nothing that corresponds.
        """
        brings, names = self.contract.run.weights is not None, [layer.name for layer in self.layers.layers]
        return cache_dit_settings(self.compute, names, brings_solver=brings, has_branches=self.has_branches)

    def to_cache_dit_calibrator(self) -> Any:
        """The forecasts as `calibrator_config` of `cache_dit.enable_cache`; errors as for `to_cache_dit`.

        One combination continues all blocks: the mean of those of the layers where they differ, which a warning tells.
        """
        self.to_cache_dit()
        return calibrator_config(sums_of(self.plan))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the schedule into a folder, with its heat map and a card that says what it is for.

        Raises:
            OutputError: If a file cannot be written.
        """
        return hub.save_folder(self.summary(), self.save, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload cache schedule",
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> str:
        """Uploads what `save_pretrained` writes to a repository on the Hugging Face hub; returns its address.

        Raises:
            OutputError: If the hub refuses or cannot be reached.
        """
        return hub.push(self.summary(), self.save, repo_id, commit_message, private, token, create_pr)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> CacheSchedule:
        """Reads a schedule from a folder, or from a repository on the Hugging Face hub (`user/name`).

        Only the schedule file is read, and nothing in it is ever executed.

        Raises:
            ScheduleError: If there is none, the hub cannot be reached, or the file is malformed.
        """
        return cls.load(hub.fetch(name, revision, token, local_files_only))

    def summary(self) -> dict[str, Any]:
        """The schedule in figures, as plain data; see `l2c.schedule.summary.summarize`."""
        return summarize(self)


def mask_of_scores(scores: Tensor, threshold: float) -> Tensor:
    """What a router computes: every layer whose score is above a threshold, and where there is no score (NaN) all.

    Args:
        scores: Of any shape, in [0, 1].
        threshold: In [0, 1].

    Raises:
        ConfigError: If the threshold is out of range.
    """
    check_value("the threshold", threshold, Share)
    return scores.isnan() | (scores > threshold)
