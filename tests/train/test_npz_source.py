from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.errors import DataError
from hwnas.train.data import load_data

_RNG = np.random.default_rng(0)
_LABELS = np.arange(60) % 3


def _pixels(*shape: int) -> Any:
    return _RNG.integers(0, 256, shape, dtype=np.uint8)


def _arrays(**changes: Any) -> dict[str, Any]:
    arrays = {"x_train": _pixels(60, 6, 5), "y_train": _LABELS, "x_test": _pixels(9, 6, 5), "y_test": _LABELS[:9]}
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def _saved(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path / "set.npz", **arrays)
    return path / "set.npz"


@pytest.mark.parametrize("write", ["npz:{}", "{}"])
def test_a_file_is_loaded_as_it_is(tmp_path: Path, write: str) -> None:
    arrays = _arrays(x_valid=_pixels(6, 6, 5), y_valid=_LABELS[:6])
    data = load_data(write.format(_saved(tmp_path, arrays)))
    for split in ("train", "valid", "test"):
        assert np.array_equal(getattr(data, f"x_{split}").numpy()[:, 0], arrays[f"x_{split}"])
        assert np.array_equal(getattr(data, f"y_{split}").numpy(), arrays[f"y_{split}"])


def test_a_path_is_looked_for_below_the_root(tmp_path: Path) -> None:
    _saved(tmp_path, _arrays())
    assert len(load_data("npz:set.npz", root=tmp_path).x_test) == 9


def test_missing_splits_are_cut_from_the_training_images(tmp_path: Path) -> None:
    data = load_data(str(_saved(tmp_path, _arrays(x_test=None, y_test=None))), valid_fraction=0.25)
    assert (len(data.x_train), len(data.x_valid), len(data.x_test)) == (36, 12, 12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5), (1, 6, 5)),
        ((6, 5, 3), (3, 6, 5)),
        ((3, 6, 5), (3, 6, 5)),
        ((6, 5, 1), (1, 6, 5)),
        ((4, 6, 5), (4, 6, 5)),
    ],
)
def test_layouts_become_channels_first(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = _pixels(60, *shape)
    data = load_data(str(_saved(tmp_path, _arrays(x_train=x, x_test=x[:9]))))
    assert data.x_train.shape[1:] == expected
    pixel = x[0, ..., 2, 4] if shape[0] in (3, 4) or len(shape) == 2 else x[0, 2, 4]  # row 2, column 4, all channels
    assert (data.x_train == torch.tensor(pixel).reshape(-1, 1, 1)).any()
    assert np.array_equal(data.x_test[0, :, 2, 4].numpy(), np.atleast_1d(pixel))


def test_the_middle_square_is_resized(tmp_path: Path) -> None:
    x = np.zeros((60, 4, 8), np.uint8)
    x[:, :, 2:6] = 200  # the middle square, the rest must not leak in
    data = load_data(str(_saved(tmp_path, _arrays(x_train=x, x_test=x[:9]))), image_size=7)
    assert data.x_test.shape == (9, 1, 7, 7)
    assert data.x_test.unique().tolist() == [200]


def test_floats_become_bytes(tmp_path: Path) -> None:
    x = _pixels(60, 6, 5)
    for kind in (np.float32, np.float64):
        data = load_data(
            str(_saved(tmp_path, _arrays(x_train=(x / 255).astype(kind), x_test=(x / 255).astype(kind)[:9])))
        )
        assert np.array_equal(data.x_test[:, 0].numpy(), x[:9])


@pytest.mark.parametrize("labels", [_LABELS[:, None], _LABELS.astype(np.uint8), _LABELS.astype(np.int32)])
def test_labels_of_any_integer_kind(tmp_path: Path, labels: Any) -> None:
    data = load_data(str(_saved(tmp_path, _arrays(y_train=labels, y_test=labels[:9]))))
    assert data.y_test.tolist() == _LABELS[:9].tolist()
    assert data.class_names == ("0", "1", "2")


def test_labels_are_renumbered_and_keep_their_names(tmp_path: Path) -> None:
    labels = np.array([-1, 7, 30])[_LABELS]
    data = load_data(str(_saved(tmp_path, _arrays(y_train=labels, y_test=labels[:9]))))
    assert data.class_names == ("-1", "7", "30")
    assert data.y_test.tolist() == _LABELS[:9].tolist()


_FLOATS = np.full((60, 6, 5), 0.5, np.float32)
_WITH_NAN = _FLOATS.copy()
_WITH_NAN[3, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None, "y_train": None}, r"no arrays x_train and y_train, only \['x_test', 'y_test'\]"),
        ({"x_train": None}, "has 'y_train' but no array 'x_train'"),
        ({"y_test": None}, "has 'x_test' but no array 'y_test'"),
        ({"x_valid": _pixels(6, 6, 5)}, "no array 'y_valid'"),
        ({"x_train": _pixels(60, 30)}, r"x_train is uint8 of shape \(60, 30\); expected uint8 \(n, h, w\)"),
        ({"x_train": _pixels(60, 3, 6, 3)}, "first and the last axis of an image could both"),
        ({"x_train": _pixels(60, 6, 5, 2)}, "no axis of an image can be its channels"),
        ({"x_train": _pixels(60, 0, 5)}, "no pixels"),
        ({"x_train": _pixels(0, 6, 5), "y_train": _LABELS[:0]}, "no pixels"),
        ({"x_train": _WITH_NAN}, "x_train is float32 .* from nan to nan; expected floats in"),
        ({"x_train": _FLOATS * 300}, r"from 150.0 to 150.0; expected floats in \[0, 1\]"),
        ({"x_train": -_FLOATS}, "from -0.5"),
        ({"x_train": _pixels(60, 6, 5).astype(np.int64)}, r"int64 .*\.astype\('uint8'\)"),
        ({"x_train": np.array([["a"] * 6] * 60, dtype=object)}, "'x_train' cannot be read .*not objects"),
        ({"x_test": _pixels(9, 6, 5, 3)}, r"\(9, 3, 6, 5\).* where the training images are \(1, 6, 5\)"),
        ({"x_test": _pixels(9, 7, 5)}, "give image_size"),
        ({"y_train": _LABELS[:59]}, r"y_train is int64 of shape \(59,\), but x_train has 60"),
        ({"y_train": _LABELS.astype(np.float32)}, "y_train is float32"),
        (
            {"y_train": np.eye(3, dtype=np.int64)[_LABELS]},
            r"y_train is int64 of shape \(60, 3\); expected integer labels",
        ),
        ({"y_train": np.zeros(60, np.int64), "y_test": np.zeros(9, np.int64)}, "at least 2"),
        ({"y_test": _LABELS[:9] + 1}, "test images have label 3, which no training image has"),
        ({"y_train": np.array([2] + [0, 1] * 29 + [0]), "y_test": np.zeros(9, np.int64)}, "class '2' has 1 image"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(_saved(tmp_path, _arrays(**changes))))
    assert "set.npz" in str(caught.value) or "class" in str(caught.value) or "label" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_files_that_are_no_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as a \.npz file.*numpy\.savez"):
        load_data(str(tmp_path / "set.npz"))


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, _arrays())
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_data(str(path))
