from __future__ import annotations

import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from hwnas.errors import DataError, MissingPackageError
from hwnas.train.data import load_data


def _write_idx(path: Path, array: Any) -> None:
    """The format of MNIST's files: type 8 (bytes), number of axes, their lengths, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", refuse)


@pytest.mark.parametrize(("name", "third"), [("MNIST", "3 - three"), ("FashionMNIST", "Dress"), ("KMNIST", "tsu")])
def test_idx_files_are_loaded_without_download(tmp_path: Path, no_network: None, name: str, third: str) -> None:
    rng = np.random.default_rng(0)
    raw, pixels = tmp_path / name / "raw", rng.integers(0, 256, (50, 28, 28))
    for part, n in (("train", 40), ("t10k", 50)):
        _write_idx(raw / f"{part}-images-idx3-ubyte", pixels[:n])
        _write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    data = load_data(f"torchvision:{name}", root=tmp_path)
    assert (len(data.x_train), len(data.x_valid), len(data.x_test)) == (30, 10, 50)
    assert np.array_equal(data.x_test[:, 0].numpy(), pixels)
    assert data.y_test.tolist() == [n % 10 for n in range(50)]
    assert data.class_names[3] == third
    assert load_data(f"torchvision:{name}", root=tmp_path, image_size=14).x_test.shape == (50, 1, 14, 14)


def test_an_option_of_the_constructor_can_be_given(tmp_path: Path, no_network: None) -> None:
    for part, n in (("train", 260), ("test", 52)):
        _write_idx(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-images-idx3-ubyte", np.zeros((n, 28, 28)))
        _write_idx(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-labels-idx1-ubyte", 1 + np.arange(n) % 26)
    data = load_data("torchvision:EMNIST:split=letters", root=tmp_path)
    assert data.class_names == tuple("abcdefghijklmnopqrstuvwxyz")  # EMNIST's class 0 has no image
    assert data.y_test[:3].tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"EMNIST needs a split; write e\.g\. torchvision:EMNIST:split=VALUE"):
        load_data("torchvision:EMNIST", root=tmp_path)


def test_images_that_are_files_are_read_one_by_one(tmp_path: Path) -> None:
    """Imagenette: split= with train and val, no array of images, names that are tuples, images of any size."""
    for split, n in (("train", 4), ("val", 2)):
        for wnid in ("n01440764", "n02102040"):
            folder = tmp_path / "imagenette2-160" / split / wnid
            folder.mkdir(parents=True)
            for index in range(n):
                image = np.full((20 + index, 30, 3), 255 if wnid == "n02102040" else 0, np.uint8)
                Image.fromarray(image).save(folder / f"{index}.JPEG".lower())
    data = load_data("torchvision:Imagenette:size=160px", root=tmp_path, image_size=16)
    assert data.x_test.shape == (4, 3, 16, 16)
    assert data.class_names == ("tench", "English springer")
    assert [bool((x > 127).all()) for x in data.x_test] == data.y_test.bool().tolist()
    with pytest.raises(DataError, match="give image_size"):
        load_data("torchvision:Imagenette:size=160px", root=tmp_path)


@pytest.mark.parametrize("name", ["FashionMNIST", "CIFAR10", "CIFAR100", "SVHN", "STL10", "Imagenette"])
def test_without_files_or_network_the_error_says_what_to_do(tmp_path: Path, no_network: None, name: str) -> None:
    with pytest.raises(DataError, match="was not downloaded") as caught:
        load_data(f"torchvision:{name}", root=tmp_path / "data")
    assert str(tmp_path / "data") in str(caught.value)
    assert f"d.{name}('data', " in str(caught.value)
    assert "download=True" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Fashion", "no data set 'Fashion'; it has .*FashionMNIST"),
        ("", "no data set ''"),
        ("os", "no data set 'os'"),
        ("FashionMNIST:flavour=plain", "unexpected keyword argument 'flavour'"),
        ("CocoDetection", "needs a annFile"),
        ("Imagenette:size=3px", "Unknown value '3px'"),
    ],
)
def test_unknown_names_and_options_are_refused(tmp_path: Path, no_network: None, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(f"torchvision:{text}", root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03\0\0\0\x09\0\0\0\x1c\0\0\0\x1c too few bytes"])
def test_damaged_files_are_refused(tmp_path: Path, no_network: None, content: bytes) -> None:
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            path = tmp_path / "MNIST" / "raw" / f"{part}-{kind}-ubyte"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    with pytest.raises(DataError, match="MNIST"):
        load_data("torchvision:MNIST", root=tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NeedsMore(torchvision.datasets.MNIST):  # type: ignore[misc]
        def __init__(self, root: Path, train: bool = True) -> None:
            import a_package_nobody_has  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setattr(torchvision.datasets, "MNIST", NeedsMore)
    with pytest.raises(MissingPackageError, match="pip install a_package_nobody_has"):
        load_data("torchvision:MNIST", root=tmp_path)


def test_a_set_without_class_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Boxes:
        def __init__(self, root: Path, train: bool = True) -> None: ...

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, int]]:
            return Image.new("RGB", (4, 4)), {"box": index}

    monkeypatch.setattr(torchvision.datasets, "Kitti", Boxes)
    with pytest.raises(DataError, match="use a data set for classification"):
        load_data("torchvision:Kitti", root=tmp_path)
