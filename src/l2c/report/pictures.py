"""Grids of images, pictures of how they differ, and files of many pictures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from l2c.errors import ConfigError, DataError, Told
from l2c.files import atomic_open

GRID_BACKGROUND = 255
GAP = 2
_SMALLEST_CELL = 96
_GAINS = (1, 2, 3, 4, 5, 8, 10, 15, 20, 30, 40, 50, 80, 100)

Pixels = NDArray[np.uint8]
"""Images (B, H, W, 3)."""


def to_pixels(images: Tensor) -> Pixels:
    """Images (B, 1 or 3, H, W) in [-1, 1] as 8-bit colours.

    Raises:
        ConfigError: If they are not pictures, such as latents with four channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"pictures have shape (B, 1 or 3, H, W), got {tuple(images.shape)}")
    levels = ((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    pixels: Pixels = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def enlargement(side: int) -> int:
    """Whole factor at which small images become comfortable to look at; 1 from 96 pixels up.

    >>> enlargement(32), enlargement(256)
    (3, 1)
    """
    return max(1, -(-_SMALLEST_CELL // side))


def picture_grid(pixels: Pixels, columns: int | None = None, scale: int = 1) -> Image.Image:
    """Images side by side with thin gaps, in rows.

    Args:
        pixels: (B, H, W, 3).
        columns: Images in a row; by default about a square.
        scale: Whole factor by which each pixel is repeated.
    """
    count, height, width, _ = pixels.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    columns = min(columns, count)
    rows = -(-count // columns)
    enlarged = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    cell_height, cell_width = height * scale + GAP, width * scale + GAP
    canvas = np.full((rows * cell_height - GAP, columns * cell_width - GAP, 3), GRID_BACKGROUND, np.uint8)
    for index, image in enumerate(enlarged):
        top, left = index // columns * cell_height, index % columns * cell_width
        canvas[top : top + height * scale, left : left + width * scale] = image
    return Image.fromarray(canvas)


def difference_gain(pixels: Pixels, others: Pixels) -> int:
    """Whole factor that brings the largest differences near full brightness, from a short list."""
    largest = float(np.quantile(np.abs(pixels.astype(int) - others.astype(int)), 0.995))
    return max(gain for gain in _GAINS if gain == 1 or gain * largest <= 255)


def difference_pixels(pixels: Pixels, others: Pixels, gain: int) -> Pixels:
    """Absolute difference per colour times `gain`, on black: black is equal.

    Raises:
        ConfigError: If the shapes differ.
    """
    if pixels.shape != others.shape:
        raise ConfigError(f"cannot compare images {pixels.shape} with images {others.shape}")
    difference = np.abs(pixels.astype(int) - others.astype(int)) * gain
    clipped: Pixels = np.clip(difference, 0, 255).astype(np.uint8)
    return clipped


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def read_pixels(path: Path) -> Pixels:
    """The picture in a file (H, W, 3).

    Raises:
        DataError: If it cannot be read.
    """
    wrong = f"{path} cannot be read as a picture ({{said}}); delete it and go on with --resume"
    with Told(DataError, wrong, OSError), Image.open(path) as file:
        return np.asarray(file.convert("RGB"), dtype=np.uint8)


def write_npz(path: Path, pictures: Sequence[Path], advice: str) -> None:
    """Writes pictures as one array `arr_0` (N, H, W, 3), uint8, one after another without holding them all.

    Args:
        path: Where to.
        pictures: Files of pictures.
        advice: What to do if it cannot be written, for the message.

    Raises:
        OutputError: If the file cannot be written.
        DataError: If a picture cannot be read or has another size than the first.
    """
    shape = read_pixels(pictures[0]).shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), *shape)}
    with (
        atomic_open(path, advice) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as array,
    ):
        npy.write_array_header_1_0(array, header)
        for picture in pictures:
            pixels = read_pixels(picture)
            if pixels.shape != shape:
                raise DataError(
                    f"{picture} is {pixels.shape[1]}x{pixels.shape[0]} pixels but the first picture of the set is "
                    f"{shape[1]}x{shape[0]}; delete it and go on with --resume"
                )
            array.write(pixels.tobytes())
