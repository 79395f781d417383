from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hwnas.errors import DataError
from hwnas.train.data import ImageData, load_data
from hwnas.train.sources.splits import Labelled, check_memory, split_off


def _data(**changes: object) -> ImageData:
    torch.manual_seed(0)
    parts: dict[str, object] = {
        f"{axis}_{split}": torch.randint(0, 256, (n, 2, 4, 4), dtype=torch.uint8)
        if axis == "x"
        else torch.arange(n) % 3
        for split, n in (("train", 12), ("valid", 6), ("test", 3))
        for axis in "xy"
    }
    return ImageData(**{"name": "toy", "class_names": ("a", "b", "c"), **parts, **changes})  # type: ignore[arg-type]


def test_statistics_are_those_of_the_training_images_in_0_to_1() -> None:
    data = _data()
    pixels = data.x_train.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert (data.num_classes, data.channels) == (3, 2)


def test_a_constant_channel_has_a_deviation_to_divide_by() -> None:
    x = _data().x_train.clone()
    x[:, 1] = 7
    assert _data(x_train=x).std[1] == 1 / 255


def test_repr_does_not_print_images() -> None:
    assert "tensor" not in repr(_data())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a",)}, "at least 2"),
        ({"class_names": ("a", "b")}, "expected 0 to 1"),
        ({"class_names": ("a", "b", "c", "d")}, "'d' has no training image"),
        ({"x_train": torch.zeros(12, 2, 4, 4)}, "train has images torch.float32"),
        ({"x_valid": torch.zeros(6, 4, 4, dtype=torch.uint8)}, r"valid .* expected uint8 \(n, channels"),
        ({"x_test": torch.zeros(3, 2, 4, 5, dtype=torch.uint8)}, r"where the training images are \(2, 4, 4\)"),
        ({"x_test": torch.zeros(3, 1, 4, 4, dtype=torch.uint8)}, r"where the training images are \(2, 4, 4\)"),
        ({"x_test": torch.zeros(0, 2, 4, 4, dtype=torch.uint8), "y_test": torch.zeros(0).long()}, "test has images"),
        ({"y_test": torch.tensor([0, 1])}, "one label per image"),
        ({"y_test": torch.tensor([0, 1, 3])}, "from 0 to 3"),
        ({"y_test": torch.tensor([-1, 1, 2])}, "from -1 to 2"),
        ({"y_test": torch.tensor([0.0, 1, 2])}, "labels torch.float32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _data(**changes)


def test_digits_are_split_by_class_without_overlap() -> None:
    data = load_data("digits")
    assert data.x_train.shape[1:] == (1, 8, 8)
    assert len(data.x_train) + len(data.x_valid) + len(data.x_test) == 1797
    assert int(data.x_train.max()) == 255
    assert data.class_names == tuple("0123456789")
    for labels, share in ((data.y_test, 0.2), (data.y_valid, 0.8 * 0.1)):
        assert torch.allclose(labels.bincount() / 179.7, torch.tensor(share), atol=0.01)
    images = [{x.numpy().tobytes() for x in part} for part in (data.x_train, data.x_valid, data.x_test)]
    assert len(images[0] | images[1] | images[2]) == 1797


def test_the_seed_moves_valid_images_and_never_test_images() -> None:
    first, again, other = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    assert torch.equal(first.x_valid, again.x_valid)
    assert not torch.equal(first.x_valid, other.x_valid)
    assert torch.equal(first.x_test, other.x_test)


def test_valid_fraction_and_image_size_are_kept() -> None:
    data = load_data("digits", valid_fraction=0.5, image_size=12)
    assert data.x_train.shape[1:] == data.x_test.shape[1:] == (1, 12, 12)
    assert abs(len(data.x_valid) - len(data.x_train)) <= 10


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("digits", {"valid_fraction": 0.0}, "valid_fraction must be between 0 and 1, got 0"),
        ("digits", {"valid_fraction": 1.0}, "valid_fraction"),
        ("digits", {"valid_fraction": float("nan")}, "valid_fraction"),
        ("digits", {"image_size": 0}, "image_size must be at least 1"),
        ("digits", {"image_size": 4096}, r"GiB of memory.*lower image_size"),
        ("digits", {"seed": -1}, "seed"),
        ("cifar", {}, "'cifar' is neither a folder nor a .npz file nor one of: digits, torchvision:NAME"),
        ("", {}, "neither a folder"),
        ("folder:nowhere", {}, "no such file or folder"),
        ("npz:nowhere.npz", {}, "no such file or folder"),
        ("nowhere.npz", {}, "no such file or folder"),
    ],
)
def test_what_cannot_be_loaded_is_refused(source: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source, **options)  # type: ignore[arg-type]


def test_a_split_takes_its_share_of_every_class_and_leaves_one() -> None:
    y = np.repeat([0, 1, 2], [2, 40, 100])
    source = Labelled(np.arange(142, dtype=np.uint8).reshape(-1, 1, 1, 1), y)
    for fraction, expected in ((0.1, [1, 4, 10]), (0.999, [1, 39, 99])):
        rest, part = split_off(source, fraction, 0, "abc")
        assert np.bincount(part.y).tolist() == expected
        assert sorted([*rest.x.ravel(), *part.x.ravel()]) == list(range(142))


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="class 'b' has 1 image"):
        split_off(Labelled(np.zeros((3, 1, 1, 1), np.uint8), np.array([0, 0, 1])), 0.5, 0, "ab")


def test_memory_is_estimated_before_it_is_taken() -> None:
    check_memory("set", 8192, 1, 1024, 1024)
    with pytest.raises(DataError, match=r"set: 8193 images of 1 x 1024 x 1024 bytes need 8.0 GiB"):
        check_memory("set", 8193, 1, 1024, 1024)


def test_data_can_be_replaced_in_part() -> None:
    smaller = dataclasses.replace(_data(), x_train=_data().x_train[:3], y_train=torch.arange(3))
    assert len(smaller.x_train) == 3
