from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas.errors import DataError
from hwnas.train.data import load_data


def _image(seed: int, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def _fill(path: Path, classes: str = "ab", n: int = 6, mode: str = "RGB") -> Path:
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for index in range(n):
            _image(100 * label + index, mode).save(path / name / f"{index}.png")
    return path


@pytest.mark.parametrize("write", ["folder:{}", "{}"])
def test_class_folders_alone_are_split(tmp_path: Path, write: str) -> None:
    data = load_data(write.format(_fill(tmp_path, n=10)))
    assert data.class_names == ("a", "b")
    assert [len(x) for x in (data.x_train, data.x_valid, data.x_test)] == [14, 2, 4]
    known = {
        _pixels.tobytes() for label in (0, 1) for _pixels in (np.asarray(_image(100 * label + i)) for i in range(10))
    }
    every = [*data.x_train, *data.x_valid, *data.x_test]
    assert {x.permute(1, 2, 0).contiguous().numpy().tobytes() for x in every} == known


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train",), [14, 2, 4]),
        (("train", "test"), [18, 2, 20]),
        (("train", "val"), [18, 2, 20]),  # as in ImageNet: the held-out images are the test set
        (("train", "valid", "test"), [20, 20, 20]),
        (("train", "validation", "test"), [20, 20, 20]),
    ],
)
def test_split_folders(tmp_path: Path, folders: tuple[str, ...], expected: list[int]) -> None:
    for name in folders:
        _fill(tmp_path / name, n=10)
    data = load_data(str(tmp_path))
    assert [len(x) for x in (data.x_train, data.x_valid, data.x_test)] == expected
    assert data.y_test.bincount().tolist() == [expected[2] // 2] * 2


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_grey_and_colour(tmp_path: Path, mode: str, channels: int) -> None:
    assert load_data(str(_fill(tmp_path, mode=mode))).channels == channels


def test_the_middle_square_is_resized_with_antialias(tmp_path: Path) -> None:
    _fill(tmp_path / "train")
    for name in "ab":
        (tmp_path / "test" / name).mkdir(parents=True)
        wide = np.zeros((8, 16), np.uint8)
        wide[:, 4:12:2] = 255  # stripes of one pixel in the middle square: their mean, not one of them
        Image.fromarray(wide).convert("RGB").save(tmp_path / "test" / name / "stripes.png")
    data = load_data(str(tmp_path), image_size=2)
    assert data.x_train.shape[1:] == (3, 2, 2)
    assert ((data.x_test > 100) & (data.x_test < 160)).all()


def test_a_photo_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    _fill(tmp_path)
    turned = _image(7, size=(5, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a" / "turned.png", exif=exif)
    data = load_data(str(tmp_path))
    expected = np.asarray(turned.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    assert any(np.array_equal(x.numpy(), expected) for x in (*data.x_train, *data.x_valid, *data.x_test))


def test_other_files_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "labels.csv").write_text("a,b")
    (tmp_path / "a" / "notes.txt").write_text("blurred")
    (tmp_path / "a" / "._0.png").write_text("what macOS leaves on other disks")
    (tmp_path / "a" / "more.png").mkdir()
    assert load_data(str(tmp_path)).class_names == ("a", "b")


def _empty_class(path: Path) -> None:
    (path / "c").mkdir()


def _no_classes(path: Path) -> None:
    for name in "ab":
        (path / name).rename(path.parent / f"elsewhere-{name}")


def _grey_among_colour(path: Path) -> None:
    _image(0, "L").save(path / "b" / "grey.png")


def _other_size(path: Path) -> None:
    _image(0, size=(7, 5)).save(path / "b" / "large.png")


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(path / "b" / "deep.png")


def _no_image(path: Path) -> None:
    (path / "b" / "zz.png").write_text("not an image")


def _cut_off(path: Path) -> None:
    content = (path / "b" / "0.png").read_bytes()
    (path / "b" / "zz.png").write_bytes(content[: len(content) // 2])


def _unknown_test_class(path: Path) -> None:
    _fill(path / "train")
    _fill(path / "test", "abc")


def _grey_test(path: Path) -> None:
    _fill(path / "train")
    _fill(path / "test", mode="L")


def _empty_test_class(path: Path) -> None:
    _fill(path / "train")
    _fill(path / "test")
    for file in (path / "test" / "b").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty_class, r"class folder .*c has no images"),
        (_no_classes, "0 class folder"),
        (_grey_among_colour, r"grey\.png is grey \(mode L\) where .* in colour"),
        (_other_size, r"large\.png has 7 x 5 pixels where .* 6 x 5; give image_size"),
        (_sixteen_bits, r"deep\.png has pixels of mode I;16; convert it to 8 bits"),
        (_no_image, r"zz\.png cannot be read as an image"),
        (_cut_off, r"zz\.png cannot be read as an image"),
        (_unknown_test_class, r"test has class 'c', which the training images have not"),
        (_grey_test, r"is grey .* in colour"),
        (_empty_test_class, r"class folder .*b has no images"),
    ],
)
def test_unusable_folders_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    _fill(tmp_path / "set")
    spoil(tmp_path / "set")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "set"))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        load_data(f"folder:{tmp_path / 'file'}")


def test_too_much_for_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lower image_size"):
        load_data(str(_fill(tmp_path)), image_size=100_000)
