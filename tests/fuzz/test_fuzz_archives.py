"""Data sets and archives: .npz files, folders of images, bundles of Python for devices, wheels."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import as_json, bytes_like, changed_values, fuzz, refused
from PIL import Image

from hwnas.errors import DataError
from hwnas.train.data import load_data
from hwprof import bundle
from hwprof.bundle import _wheel_files, read_manifest
from hwprof.errors import TargetError


def arrays(**options: Any) -> dict[str, bytes]:
    """The members of a good .npz file."""
    rng = np.random.default_rng(0)
    values = {"x_train": rng.integers(0, 256, (12, 4, 4), dtype=np.uint8), "y_train": np.arange(12) % 2, **options}
    content = io.BytesIO()
    np.savez(content, **values)
    with zipfile.ZipFile(content) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


MEMBERS = arrays()


def load_npz(path: Path, data: bytes) -> str | None:
    path.write_bytes(data)
    return refused(lambda: load_data(f"npz:{path}"))


def test_good_arrays_are_read(tmp_path: Path) -> None:
    assert load_npz(tmp_path / "a.npz", zipped(MEMBERS)) is None
    assert load_npz(tmp_path / "a.npz", zipped(MEMBERS, zipfile.ZIP_DEFLATED)) is None


@fuzz
@given(data=st.data())
def test_arrays(data: st.DataObject, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(MEMBERS)))
    changed = zipped({**MEMBERS, name: data.draw(bytes_like(MEMBERS[name]))})
    packed = zipped(MEMBERS, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])))
    load_npz(tmp_path / "a.npz", data.draw(st.one_of(st.just(changed), bytes_like(packed))))


def test_arrays_that_are_larger_than_they_are_and_objects(tmp_path: Path) -> None:
    vast = MEMBERS["x_train.npy"].replace(b"'shape': (12, 4, 4), }          ", b"'shape': (900000000000, 4, 4), }")
    assert vast != MEMBERS["x_train.npy"]
    assert "cannot be read" in (load_npz(tmp_path / "a.npz", zipped({**MEMBERS, "x_train.npy": vast})) or "")
    objects = arrays(x_train=np.array([{"a": 1}] * 12, dtype=object))
    assert "save plain numbers" in (load_npz(tmp_path / "a.npz", zipped(objects)) or "")


def image_bytes(format: str, size: tuple[int, int] = (6, 5)) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, format)
    return content.getvalue()


FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
IMAGES = {format: image_bytes(format) for format in FORMATS}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four images, all of them good."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(4):
            (folder / name / f"{number}.png").write_bytes(IMAGES["PNG"])
    return folder


@fuzz
@given(data=st.data())
def test_images(data: st.DataObject, images: Path) -> None:
    format = data.draw(st.sampled_from(FORMATS))
    (images / "a" / "0.png").write_bytes(data.draw(bytes_like(IMAGES[format])))
    refused(lambda: load_data(f"folder:{images}", image_size=4), images)


def test_other_formats_and_vast_images_are_refused(images: Path) -> None:
    first = images / "a" / "0.png"
    first.write_bytes(IMAGES["PNG"])
    assert refused(lambda: load_data(f"folder:{images}")) is None
    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "EPS")  # of which Pillow would have another program make an image
    first.write_bytes(content.getvalue())
    assert "cannot be read as an image" in (refused(lambda: load_data(f"folder:{images}")) or "")
    content = io.BytesIO()
    Image.new("1", (8192, 8193)).save(content, "PNG")
    first.write_bytes(content.getvalue())
    assert "8192 x 8193 pixels are more than" in (refused(lambda: load_data(f"folder:{images}")) or "")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\u202ebad"])
def test_class_folders_that_a_terminal_would_obey_are_refused(name: str, tmp_path: Path) -> None:
    for each in ("a", name):
        (tmp_path / each).mkdir()
        (tmp_path / each / "0.png").write_bytes(IMAGES["PNG"])
    with pytest.raises(DataError, match="rename it to characters that can be shown"):
        load_data(f"folder:{tmp_path}")


MANIFEST = {"machine": "aarch64", "python": "3.11", "packages": {"onnxruntime": "1.20.0"}, "schema": 1}


def packed(manifest: bytes, *members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in (("manifest.json", manifest), *members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


PLAIN = packed(json.dumps(MANIFEST).encode(), ("start", b"#!/bin/sh\n"), ("lib/x.so", bytes(2000)))


def read_bundle(path: Path, data: bytes) -> str | None:
    path.write_bytes(gzip.compress(data, mtime=0))
    return refused(lambda: read_manifest(path))


def test_a_good_bundle_is_read(tmp_path: Path) -> None:
    assert read_bundle(tmp_path / "b.tar.gz", PLAIN) is None


@fuzz
@given(data=bytes_like(PLAIN))
def test_a_bundle(data: bytes, tmp_path: Path) -> None:
    read_bundle(tmp_path / "b.tar.gz", data)


@fuzz
@given(data=bytes_like(gzip.compress(PLAIN, mtime=0)))
def test_a_packed_bundle(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(data)
    refused(lambda: read_manifest(tmp_path / "b.tar.gz"))


@fuzz
@given(values=changed_values(MANIFEST))
def test_the_manifest_of_a_bundle(values: Any, tmp_path: Path) -> None:
    read_bundle(tmp_path / "b.tar.gz", packed(as_json(values).encode()))


def vast_file() -> tarfile.TarInfo:
    info = tarfile.TarInfo("lib/x.so")
    info.size = 2**40
    return info


def vast_name() -> tarfile.TarInfo:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    return info


@pytest.mark.parametrize("make", [vast_file, vast_name])
def test_a_bundle_that_grows_is_not_unpacked(make: Callable[[], tarfile.TarInfo], tmp_path: Path) -> None:
    """Its headers say so much; nobody has to send it."""
    header = make().tobuf(tarfile.GNU_FORMAT)
    body = packed(json.dumps(MANIFEST).encode())[:1024] + header + bytes(4096)
    said = read_bundle(tmp_path / "b.tar.gz", body)
    assert said is not None
    assert "too large for a bundle" in said or "larger than 4294967296 bytes" in said


@fuzz
@given(data=bytes_like(zipped({"my/__init__.py": b"x", "my-1.data/platlib/core.so": b"y" * 50}, zipfile.ZIP_DEFLATED)))
def test_a_wheel(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "my-1.0-py3-none-any.whl").write_bytes(data)
    refused(lambda: list(_wheel_files(tmp_path / "my-1.0-py3-none-any.whl")))


def test_a_wheel_that_grows_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.whl").write_bytes(zipped({"my/data": bytes(10**6)}, zipfile.ZIP_DEFLATED))
    assert [name for name, _ in _wheel_files(tmp_path / "my.whl")] == ["my/data"]
    monkeypatch.setattr(bundle, "LARGEST_BYTES", 10**6 - 1)
    with pytest.raises(TargetError, match="has 1000000 bytes when it is unpacked"):
        list(_wheel_files(tmp_path / "my.whl"))
