"""`Engine`: runs of one model as compiled pieces, on CUDA devices captured as graphs."""

from __future__ import annotations

import logging
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from l2c.engine.job import Job
from l2c.engine.pieces import MAX_PENDING, Pieces
from l2c.engine.programs import make_program
from l2c.engine.run import PreparedJob
from l2c.errors import ConfigError

logger = logging.getLogger(__name__)

MODES = ("graph", "compile", "eager")
MEMORY_SHARE = 0.25
"""Share of a CUDA device's memory that captured runs may keep, by default."""
MEMORY_BYTES = 2**30
"""What runs may keep on other devices, by default."""


class Engine:
    """Runs of one model without anything that a static schedule makes superfluous.

    Args:
        model: `DiT` or `UViT`.
        mode: `graph` captures evaluations as CUDA graphs, `compile` launches compiled pieces one by one.
        memory_limit: Bytes that runs may keep between calls; those used least recently are dropped. By default
            `MEMORY_SHARE` of a CUDA device's memory, else `MEMORY_BYTES`.
        compiled: Whether pieces are compiled; without, they run as they are, which needs no compiler.

    Raises:
        ConfigError: If the mode does not fit the model or its device.
    """

    def __init__(
        self, model: nn.Module, mode: str, memory_limit: int | None = None, *, compiled: bool = True
    ) -> None:
        self.mode = mode
        device = next(model.parameters()).device
        self.pieces = Pieces(compiled, MAX_PENDING.get(device.type, 4))
        self.program = make_program(model, self.pieces)
        self._model = weakref.ref(model)
        self._runs: OrderedDict[Hashable, PreparedJob] = OrderedDict()
        if mode == "graph" and device.type != "cuda":
            raise ConfigError(
                f"CUDA graphs need a CUDA device, and the model is on {device}; use engine='compile'"
            )
        if memory_limit is None:
            memory_limit = MEMORY_BYTES
            if device.type == "cuda":
                memory_limit = int(MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory)
        self.memory_limit: int | None = memory_limit

    @torch.no_grad()
    def run(self, job: Job, noise: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
        """Samples one batch.

        The first run of a job at a batch size compiles and captures, which takes seconds; all others replay.

        Args:
            job: What to do.
            noise: Unit normal (B, C, H, W), float32, on the model's device.
            labels: Class labels (B,), int64, on the model's device.
            scale: Guidance scale, for guided jobs.

        Returns:
            Samples (B, C, H, W), float32, unclamped.
        """
        with _device(noise.device), attention_kernels():
            return self._run(job, noise)(noise, labels, scale)

    @torch.no_grad()
    def warm_up(self, job: Job, noise: Tensor) -> None:
        """Compiles every piece that any schedule with forecasts of the same history can need at a batch size.

        Args:
            job: A run; how many stored values its forecasts read is what counts.
            noise: Any noise (B, C, H, W) of the shape to come.
        """
        with _device(noise.device), attention_kernels():
            PreparedJob(self.program, job, noise).dry_run(self.pieces.max_pending)

    def _run(self, job: Job, noise: Tensor) -> PreparedJob:
        model = self._model()
        assert model is not None, "whoever samples holds the model"
        parameter = next(model.parameters())
        weights = tuple(p.data_ptr() for p in model.parameters())
        key = (job.key, tuple(noise.shape), noise.device, parameter.dtype, hash(weights))
        run = self._runs.get(key)
        if run is None:
            run = PreparedJob(self.program, job, noise)
            if self.mode == "graph":
                self._capture(run)
            self._runs[key] = run
            self._trim()
        self._runs.move_to_end(key)
        return run

    def _capture(self, run: PreparedJob) -> None:
        """Captures a run; where memory is short, without the others, and in the end not at all."""
        if not _captured(run):
            self._runs.clear()
            run.release()
            if not _captured(run):
                run.release()
                warnings.warn(
                    "there is not enough memory to capture this run as CUDA graphs, so it is launched piece by piece, "
                    "which is slower; use a smaller batch size or another schedule",
                    stacklevel=2,
                )

    def _trim(self) -> None:
        """Drops the runs used least recently until the others are within the memory limit."""
        while self.memory_limit is not None and len(self._runs) > 1 and self.nbytes > self.memory_limit:
            _, dropped = self._runs.popitem(last=False)
            logger.info("dropped a captured run of %.0f MB", dropped.nbytes / 1e6)

    @property
    def runs(self) -> tuple[PreparedJob, ...]:
        """Runs that are ready, the one used last at the end."""
        return tuple(self._runs.values())

    @property
    def nbytes(self) -> int:
        """Bytes that all runs keep."""
        return sum(run.nbytes for run in self._runs.values())


def _captured(run: PreparedJob) -> bool:
    """Captures a run; False where memory is too short.

    Whoever frees memory after that does it outside: while an exception is handled, its frames keep tensors alive.
    """
    try:
        run.capture()
    except torch.OutOfMemoryError:
        return False
    return True


def _device(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def attention_kernels() -> Iterator[None]:
    """Prefers cuDNN's attention, the fastest at these sizes where it runs; PyTorch takes wishes from 2.7 on."""
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    options = {"set_priority": True} if "set_priority" in signature(sdpa_kernel).parameters else {}
    with sdpa_kernel(order, **options):
        yield
