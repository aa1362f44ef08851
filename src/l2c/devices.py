"""Where to compute and in which number format, by the names that people give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2c.errors import ConfigError, Told, known

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
TF32 = "tf32"
_CAPABILITY = 8  # Ampere, the first with TF32


def resolve_device(name: str) -> str:
    """`auto` becomes the best device there is; others must exist.

    Raises:
        ConfigError: If the device is unknown or not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    wrong = f"there is no device '{name}' here; use cpu, cuda, cuda:N or mps, or auto"
    with Told(ConfigError, wrong, RuntimeError, AssertionError, NotImplementedError):
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    return str(device)


def resolve_dtype(name: str, device: str | None = None) -> torch.dtype:
    """The number format of that name; the whole process uses TF32 if the name is `tf32`, and else does not.

    PyTorch itself would use TF32 in float32 convolutions.

    Args:
        name: `float32`, `bfloat16` or `float16`; with a device also `tf32`, which is float32 with products in TF32.
        device: Where to compute, from `resolve_device`.

    Raises:
        ConfigError: If it is unknown, or the device has no TF32.
    """
    import torch

    names = DTYPES if device is None else (*DTYPES, TF32)
    known("number format", name, names)
    if name == TF32:
        _check_tf32(torch.device(str(device)))
    torch.set_float32_matmul_precision("high" if name == TF32 else "highest")
    torch.backends.cudnn.allow_tf32 = name == TF32
    dtype: torch.dtype = torch.float32 if name == TF32 else getattr(torch, name)
    return dtype


def _check_tf32(device: torch.device) -> None:
    import torch

    if device.type != "cuda":
        raise ConfigError(
            f"TF32 is a number format of NVIDIA devices, and the device is {device}; use --dtype float32"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.cuda is None or major < _CAPABILITY:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) has no TF32, which came with "
            f"{_CAPABILITY}.0; use --dtype float32"
        )
