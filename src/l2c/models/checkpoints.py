"""Reading weights files: from a path to named tensors, or to one sentence that says why not."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from l2c.documents import existing, read_document
from l2c.errors import CheckpointError, Told

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS_SUFFIX = ".safetensors"
WEIGHTS_NAME = "diffusion_pytorch_model"

Tensors = dict[str, torch.Tensor]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
MOST_SHARED = 8
"""How many times the bytes of a file its tensors may have together, where several share what is stored."""

_WRAPPERS = ("ema", "model", "state_dict")
"""Where public training scripts put the weights inside a larger dict; the averaged ones come first."""


class _Index(TypedDict):
    weight_map: dict[str, str]


_ROUTER_KEY = re.compile(r"\d+\.prob")


def read_weights(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Read the named tensors of one weights file, without running any code that it may hold.

    Dicts that wrap the weights (`ema`, `model`, `state_dict`) and the key prefixes that distributed and
    compiled training leave (`module.`, `_orig_mod.`) are taken off.

    Args:
        path: A `.safetensors` file, or a PyTorch file ending in `.pt`, `.pth`, `.bin` or `.ckpt`.

    Returns:
        The tensors on the CPU by name, and the file's text metadata (empty for PyTorch files).

    Raises:
        CheckpointError: The file is missing, unreadable, empty, truncated, of another kind, would run code
            when loaded, or holds routers instead of weights.
    """
    existing(path, "file of weights", "check the path", CheckpointError)
    with Told(CheckpointError, f"{path} cannot be read: {{said}}", OSError), path.open("rb") as file:
        num_bytes = path.stat().st_size
        file.read(1)
    if num_bytes == 0:
        raise CheckpointError(f"{path} is empty; download or copy it again")
    if path.suffix == SAFETENSORS_SUFFIX:
        tensors, metadata = _read_safetensors(path)
    elif path.suffix in PICKLE_SUFFIXES:
        tensors, metadata = _unwrap(read_pickle(path), path), {}
    else:
        expected = ", ".join((SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES))
        raise CheckpointError(f"{path} has the suffix {path.suffix!r}; weights must end in one of {expected}")
    if tensors and all(_ROUTER_KEY.fullmatch(name) for name in tensors):
        raise _router_error(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {name} is of {tensor.dtype}, expected floating-point weights")
    return {_strip_prefixes(name): tensor for name, tensor in tensors.items()}, metadata


def read_folder_weights(folder: Path) -> Tensors:
    """Read the weights of one model folder in diffusers layout: one file, or shards with an index.

    Raises:
        CheckpointError: There are no weights, a shard is missing, or one cannot be read.
    """
    for suffix in (SAFETENSORS_SUFFIX, ".bin"):
        if (folder / f"{WEIGHTS_NAME}{suffix}").exists():
            return read_weights(folder / f"{WEIGHTS_NAME}{suffix}")[0]
        index = folder / f"{WEIGHTS_NAME}{suffix}.index.json"
        if index.exists():
            weight_map = read_document(index, _Index, CheckpointError, "download the folder again")[
                "weight_map"
            ]
            tensors: Tensors = {}
            for shard in sorted({Path(name).name for name in weight_map.values()}):
                tensors.update(read_weights(folder / shard)[0])
            return tensors
    raise CheckpointError(
        f"{folder} has a config.json but no weights; expected {WEIGHTS_NAME}{SAFETENSORS_SUFFIX} or .bin"
    )


def name_some(names: Iterable[str], limit: int = 3) -> str:
    """List names for a message, the first few in full and the rest as a count.

    >>> name_some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    ordered = sorted(names)
    rest = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + rest


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    wrong = f"{path} is truncated or not a safetensors file ({{said}}); download or copy it again"
    with Told(CheckpointError, wrong, SafetensorError), safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_pickle(path: Path) -> object:
    """Read a PyTorch file that holds tensors and plain data, without running any code that it may hold.

    Raises:
        CheckpointError: The file is damaged, of another kind, or would run code when loaded.
    """
    try:
        _check_stored(path)
        # Public training scripts store their arguments beside the weights; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, path.stat().st_size)
        return content
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{path} {_explain_pickle_failure(path, error)}") from error


def _check_stored(path: Path) -> None:
    """Refuses an archive that becomes larger when it is read, before it is."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            sizes = [item.file_size for item in archive.infolist()]
            packed = any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist())
        if packed or sum(sizes) > path.stat().st_size:
            raise _LargerThanFileError(
                f"unpacks to {sum(sizes)} bytes; save it with torch.save, without compression"
            )


def _check_tensors(content: object, file_bytes: int) -> None:
    """Refuses tensors of more numbers than the file can hold, or that are no ordinary ones.

    Of an expanded tensor the file has a single row, and a sparse or meta tensor becomes larger when it is used.
    """
    total, rest, seen = 0, [content], set[int]()
    while rest:
        if id(value := rest.pop()) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, (list, tuple)):
            rest += value
        elif isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_meta or value.is_quantized:
                raise _LargerThanFileError(
                    "holds sparse, quantised or meta tensors; save them as ordinary ones"
                )
            num_bytes = value.numel() * value.element_size()
            total += num_bytes
            if (
                max(num_bytes, value.untyped_storage().nbytes()) > file_bytes
                or total > MOST_SHARED * file_bytes
            ):
                raise _LargerThanFileError(
                    f"has {file_bytes} bytes, but a tensor in it {tuple(value.shape)}; save it with clone()"
                )


class _LargerThanFileError(Exception):
    """What a file holds would take more memory than the file is long."""


def _explain_pickle_failure(path: Path, error: Exception) -> str:
    text = str(error)
    if isinstance(error, _LargerThanFileError):
        return text
    refused = re.search(r"(?:Unsupported|GLOBAL)\s+(?:global: GLOBAL )?([\w.]+\.[\w.]+) ", text)
    if refused:
        return (
            f"holds Python objects ({refused[1]}) that would run code when loaded, so it was not loaded; "
            "get a safetensors file, or one with a plain state_dict"
        )
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if "TorchScript" in text:
        return "is a TorchScript program, not weights; save the model's state_dict instead"
    if is_zip or isinstance(error, EOFError) or "unexpected EOF" in text:
        return "is truncated or damaged; download or copy it again"
    return "is not a PyTorch checkpoint; expected a state_dict saved with torch.save"


def _unwrap(content: object, path: Path, depth: int = 3) -> Tensors:
    """Find the dict of tensors in what a PyTorch file holds."""
    if isinstance(content, dict):
        if "routers" in content:
            raise _router_error(path)
        for wrapper in _WRAPPERS:
            if depth and isinstance(content.get(wrapper), dict):
                return _unwrap(content[wrapper], path, depth - 1)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if tensors:
            return tensors
    raise CheckpointError(
        f"{path} holds a {type(content).__name__} without named tensors; expected a state_dict, bare or "
        "under " + " or ".join(repr(wrapper) for wrapper in _WRAPPERS)
    )


def _router_error(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} holds routers (scores of layers), not a model; pass it where a schedule is expected and "
        "give the weights of the model here"
    )


def _strip_prefixes(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    return name
