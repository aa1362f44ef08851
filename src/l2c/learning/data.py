"""Real images to learn on: a folder of image files, or a Parquet file.

data = load_images("cifar10-train.parquet", image_size=32)
images, labels = data.batch(torch.Generator().manual_seed(0), size=64)
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from l2c.documents import Count, check_value
from l2c.errors import ConfigError, DataError, Told

if TYPE_CHECKING:
    import pyarrow

    from l2c.sampling.denoiser import Denoiser

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

_PIL_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageData:
    """Images of one size, decoded when asked for.

    Attributes:
        source: The folder or file they come from.
        items: One entry per image: the path of its file, or its encoded bytes.
        labels: Class of each image, int64 of shape (N,), or None where the source has none.
        class_names: What the labels mean, in order, where the source says so.
        image_size: Height and width of every image, in pixels.
        channels: 3 for colour, 1 for grey.
    """

    source: Path
    items: Sequence[Path | bytes]
    labels: torch.Tensor | None
    class_names: tuple[str, ...] | None
    image_size: int
    channels: int = 3

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> torch.Tensor:
        """Decode one image.

        Args:
            index: Position in the source's order.

        Returns:
            Tensor of shape (channels, image_size, image_size), float32, in [-1, 1].

        Raises:
            DataError: It is damaged, or not of the right size; the message names it.
        """
        item = self.items[index]
        name = f"image {index} of {self.source}" if isinstance(item, bytes) else str(item)
        kinds = (UnidentifiedImageError, OSError, SyntaxError, ValueError)
        content = io.BytesIO(item) if isinstance(item, bytes) else item
        wrong = f"{name} cannot be decoded as an image: {{said}}"
        with Told(DataError, wrong, *kinds), Image.open(content) as file:
            picture = file.convert(_PIL_MODES[self.channels])
        if picture.size != (self.image_size, self.image_size):
            width, height = picture.size
            raise DataError(
                f"{name} is {width}x{height} pixels, but {self.image_size}x{self.image_size} are needed; "
                "resize the images first"
            )
        pixels = torch.from_numpy(np.array(picture)).reshape(self.image_size, self.image_size, self.channels)
        return pixels.permute(2, 0, 1).float() / 127.5 - 1

    def batch(
        self, generator: torch.Generator, size: int, rows: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw images at random, independently and with replacement.

        Args:
            generator: On the CPU; the same state draws the same batch.
            size: Number of images B.
            rows: Those of the batch to decode and return; all draw the same.

        Returns:
            Images of shape (B, channels, image_size, image_size), float32 in [-1, 1], and their labels of
            shape (B,), int64, or None; both on the CPU.

        Raises:
            ConfigError: `size` is not positive.
            DataError: One of the images is damaged, or not of the right size.
        """
        check_value("size", size, Count)
        indices = torch.randint(len(self), (size,), generator=generator)[rows]
        images = torch.stack([self.image(index) for index in indices.tolist()])
        return images, None if self.labels is None else self.labels[indices]


def images_for(denoiser: Denoiser, data: ImageData | str | Path) -> ImageData:
    """Images of a model's size, from a folder or file unless they have been found already.

    Raises:
        ConfigError: If the model works on latents.
        DataError: See `load_images`.
    """
    if denoiser.latent:
        raise ConfigError(
            "images are data for a model that makes pictures, and this works on latents; leave data out"
        )
    if isinstance(data, ImageData):
        return data
    channels, height, _ = denoiser.sample_shape
    return load_images(data, height, channels, num_classes=denoiser.num_classes)


def load_images(
    path: str | PathLike[str],
    image_size: int,
    channels: int = 3,
    *,
    num_classes: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageData:
    """Find the images of a folder or a Parquet file; they are decoded later, one by one.

    A folder holds image files, or one subfolder of image files per class, labelled in alphabetical order. A
    Parquet file has a column of encoded images, binary or as the `datasets` library writes them, and may have
    a column of integer labels.

    Args:
        path: The folder or file.
        image_size: Height and width that the model needs, in pixels.
        channels: 3 for colour, 1 for grey; images are converted.
        num_classes: If given, labels must be below it.
        image_column: Of a Parquet file; by default the first that can hold images.
        label_column: Of a Parquet file; by default `label`, if there is one.

    Returns:
        The images, the first of which has been decoded as a check.

    Raises:
        DataError: There are no images, they are not of that size, labels are out of range, or Parquet cannot
            be read here.
        ConfigError: `channels` is neither 1 nor 3.
    """
    path = Path(path)
    if channels not in _PIL_MODES:
        raise ConfigError(f"images have 1 or 3 channels, got {channels}; a latent model needs encoded images")
    if path.is_dir():
        items, labels, class_names = _scan_folder(path)
    elif not path.exists():
        raise DataError(f"{path} does not exist; give a folder of images or a Parquet file")
    elif path.suffix != ".parquet":
        raise DataError(f"{path} is neither a folder of images nor a file ending in .parquet")
    else:
        items, labels, class_names = _read_parquet(path, image_column, label_column)
    if labels is not None:
        _check_labels(path, labels, num_classes)
    data = ImageData(path, items, labels, class_names, image_size, channels)
    data.image(0)
    return data


_Found = tuple[Sequence[Path | bytes], torch.Tensor | None, tuple[str, ...] | None]


def _scan_folder(folder: Path) -> _Found:
    loose = _image_files(folder)
    children = sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    classes = {child.name: files for child in children if (files := _image_files(child))}
    if loose and classes:
        raise DataError(
            f"{folder} holds both images ({loose[0].name}...) and class folders ({next(iter(classes))}...); "
            "keep one of the two"
        )
    if classes:
        labels = [label for label, files in enumerate(classes.values()) for _ in files]
        return [file for files in classes.values() for file in files], torch.tensor(labels), tuple(classes)
    if loose:
        return loose, None, None
    raise DataError(f"{folder} holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not file.name.startswith(".")
    )


def _read_parquet(path: Path, image_column: str | None, label_column: str | None) -> _Found:
    needed = f"reading {path} needs pyarrow; install it with: pip install 'l2c[data]'"
    with Told(DataError, needed, ImportError):
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    wrong = f"{path} is not a readable Parquet file: {{said}}"
    kinds = (pyarrow.ArrowException, OSError)
    with Told(DataError, wrong, *kinds), pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        if image_column is None:
            image_column = next((field.name for field in schema if _holds_images(field.type)), None)
        _check_column(path, schema, image_column, "images as bytes", _holds_images)
        if label_column is None and "label" in schema.names:
            label_column = "label"
        if label_column is not None:
            _check_column(path, schema, label_column, "integer labels", pyarrow.types.is_integer)
        table = file.read(columns=[name for name in (image_column, label_column) if name is not None])
    images = table.column(image_column)
    if pyarrow.types.is_struct(images.type):
        images = pyarrow.compute.struct_field(images, "bytes")
    if len(images) == 0 or images.null_count:
        raise DataError(
            f"{path} has {images.null_count} empty among {len(images)} images; expected every row to have one"
        )
    if label_column is None:
        return images.to_pylist(), None, None
    labels = table.column(label_column)
    if labels.null_count:
        raise DataError(
            f"{path} lacks {labels.null_count} of {len(labels)} labels in column {label_column!r}"
        )
    return images.to_pylist(), torch.tensor(labels.to_pylist()), _class_names(schema, label_column)


def _holds_images(kind: pyarrow.DataType) -> bool:
    """Whether a column's type is encoded bytes, bare or in a struct as the `datasets` library has them."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _check_column(path: Path, schema: Any, name: str | None, content: str, accepts: Any) -> None:
    if name is None or name not in schema.names or not accepts(schema.field(name).type):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        wanted = "no column" if name is None else f"no column {name!r}"
        raise DataError(f"{path} has {wanted} with {content}; it has {columns}")


def _class_names(schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Class names as the `datasets` library stores them, if it wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _check_labels(path: Path, labels: torch.Tensor, num_classes: int | None) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        expected = "from 0 upwards" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise DataError(f"{path} has labels from {lowest} to {highest}; expected {expected}")
