from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from l2c.errors import ConfigError, DataError
from l2c.learning.data import load_images


def picture(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value if mode == "L" else (value, 0, 255))


def encoded(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    picture(value, size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two images of class `ant`, one of class `bee`, and things to overlook."""
    for name, values in {"bee": [30], "ant": [10, 20]}.items():
        (tmp_path / name).mkdir()
        for value in values:
            picture(value).save(tmp_path / name / f"{value}.png")
    (tmp_path / ".cache").mkdir()
    picture(0).save(tmp_path / ".cache" / "0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    return tmp_path


def refused(*args: object, **kwargs: object) -> str:
    with pytest.raises(DataError) as caught:
        load_images(*args, **kwargs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_load_images_labels_class_folders_by_name(classes: Path) -> None:
    data = load_images(classes, 8)
    assert len(data) == 3
    assert data.class_names == ("ant", "bee")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1]
    reds = [round((data.image(index)[0, 0, 0].item() + 1) * 127.5) for index in range(3)]
    assert reds == [10, 20, 30]


def test_image_is_channels_first_in_minus_one_to_one(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 1] = (255, 0, 51)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_images(tmp_path, 2).image(0)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image[:, 0, 1], torch.tensor([1.0, -1.0, -0.6]))
    assert (image[:, 1] == -1).all()


def test_load_images_flat_folder_has_no_labels(tmp_path: Path, generator: torch.Generator) -> None:
    picture(200, mode="L").save(tmp_path / "a.PNG")
    images, labels = load_images(tmp_path, 8).batch(generator, 2)
    assert labels is None
    assert images.shape == (2, 3, 8, 8)
    assert load_images(tmp_path, 8, channels=1).image(0).shape == (1, 8, 8)


def test_batch_is_decided_by_the_generator(classes: Path) -> None:
    data = load_images(classes, 8)
    first, again, other = (data.batch(torch.Generator().manual_seed(seed), 16) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert first[1] is not None
    assert again[1] is not None
    assert other[1] is not None
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    bees = first[0][:, 0, 0, 0] > 30 / 127.5 - 1 - 0.01
    assert torch.equal(first[1], bees.long())


def test_batch_refuses_an_empty_batch(classes: Path, generator: torch.Generator) -> None:
    with pytest.raises(ConfigError, match="size must be at least 1, got 0"):
        load_images(classes, 8).batch(generator, 0)


@pytest.mark.parametrize("wrapped", [True, False], ids=["struct", "binary"])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "none"])
def test_load_images_reads_parquet(wrapped: bool, labelled: bool, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [encoded(10), encoded(20)]
    columns: dict[str, list[object]] = {
        "id": [7, 8],
        "img": [{"bytes": image, "path": None} for image in images] if wrapped else list(images),
    }
    if labelled:
        columns["label"] = [3, 1]
    parquet.write_table(pyarrow.table(columns), tmp_path / "images.parquet")
    data = load_images(tmp_path / "images.parquet", 8)
    assert data.image(1)[0, 0, 0] == torch.tensor(20.0) / 127.5 - 1
    assert (None if data.labels is None else data.labels.tolist()) == ([3, 1] if labelled else None)
    assert data.class_names is None


def test_load_images_reads_cifar10(shared: Path, generator: torch.Generator) -> None:
    pytest.importorskip("pyarrow")
    path = shared / "data" / "cifar10-test.parquet"
    if not path.exists():
        pytest.skip(f"{path} not found")
    from l2c.models import CIFAR10_CLASSES

    data = load_images(path, 32, num_classes=10)
    assert len(data) == 10_000
    assert data.class_names == CIFAR10_CLASSES
    images, labels = data.batch(generator, 64)
    assert labels is not None
    assert images.shape == (64, 3, 32, 32)
    assert labels.shape == (64,)
    assert images.min() == -1
    assert images.max() == 1


def test_load_images_names_the_image_of_the_wrong_size(classes: Path) -> None:
    assert refused(classes, 32) == (
        f"{classes}/ant/10.png is 8x8 pixels, but 32x32 are needed; resize the images first"
    )
    picture(20, (8, 6)).save(classes / "ant" / "20.png")
    data = load_images(classes, 8)
    with pytest.raises(DataError, match=r"ant/20\.png is 8x6 pixels, but 8x8 are needed"):
        data.image(1)


def test_load_images_names_a_damaged_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(3)[:40])
    assert refused(tmp_path, 8).startswith(f"{tmp_path}/a.png cannot be decoded as an image: ")
    (tmp_path / "a.png").write_bytes(b"text")
    assert refused(tmp_path, 8).startswith(f"{tmp_path}/a.png cannot be decoded as an image: ")


def test_load_images_missing_empty_or_mixed_source(classes: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "absent", 8) == (
        f"{tmp_path}/absent does not exist; give a folder of images or a Parquet file"
    )
    assert refused(classes / "empty", 8).startswith(f"{classes}/empty holds no images; expected files ending")
    assert "is neither a folder of images nor a file ending in .parquet" in refused(
        classes / "ant" / "notes.txt", 8
    )
    picture(1).save(classes / "loose.png")
    assert "holds both images (loose.png...) and class folders (ant...); keep one" in refused(classes, 8)


def test_load_images_refuses_labels_beyond_the_model(classes: Path) -> None:
    assert refused(classes, 8, num_classes=1) == f"{classes} has labels from 0 to 1; expected from 0 to 0"


def test_load_images_refuses_latents(classes: Path) -> None:
    with pytest.raises(ConfigError, match="images have 1 or 3 channels, got 4"):
        load_images(classes, 8, channels=4)


def test_load_images_explains_an_unusable_parquet_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "images.parquet"
    path.write_bytes(b"PAR1 but not really")
    assert refused(path, 8).startswith(f"{path} is not a readable Parquet file: ")
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [0]}), path)
    assert refused(path, 8) == (
        f"{path} has no column with images as bytes; it has text (string), label (int64)"
    )
    parquet.write_table(pyarrow.table({"img": [encoded(1)], "label": ["cat"]}), path)
    assert "has no column 'label' with integer labels; it has img (binary), label (string)" in refused(
        path, 8
    )
    assert "has no column 'picture' with images as bytes" in refused(path, 8, image_column="picture")
    parquet.write_table(pyarrow.table({"img": [encoded(1), None], "label": [0, 1]}), path)
    assert refused(path, 8) == f"{path} has 1 empty among 2 images; expected every row to have one"
    parquet.write_table(pyarrow.table({"img": [encoded(1), encoded(1)], "label": [0, None]}), path)
    assert refused(path, 8) == f"{path} lacks 1 of 2 labels in column 'label'"
    parquet.write_table(pyarrow.table({"img": [encoded(1)], "label": [-1]}), path)
    assert refused(path, 8) == f"{path} has labels from -1 to -1; expected from 0 upwards"


def test_load_images_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "images.parquet"
    path.write_bytes(b"")
    assert refused(path, 8) == f"reading {path} needs pyarrow; install it with: pip install 'l2c[data]'"
