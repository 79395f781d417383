from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from hwprof.bundle import main, make_bundle, read_manifest
from hwprof.errors import TargetError

ELF = {"aarch64": 183, "x86_64": 62, "riscv64": 243}


def write_root(root: Path, prefix: str = "usr", machine: str = "aarch64") -> Path:
    """A distribution's folder with a CPython: links, tests, caches and all."""
    program = b"\x7fELF" + bytes(14) + ELF[machine].to_bytes(2, "little") + bytes(40)
    library = root / prefix / "lib" / "python3.11"
    triplet = root / "usr" / "lib" / f"{machine}-linux-gnu"
    for path, content in {
        root / prefix / "bin" / "python3.11": program,
        root / prefix / "bin" / "python3.11-config": b"#!/bin/sh",
        library / "os.py": b"os",
        library / "json" / "decoder.py": b"json",
        library / "test" / "test_os.py": b"test",
        library / "__pycache__" / "os.cpython-311.pyc": b"cache",
        library / "lib-dynload" / "zlib.so": b"zlib",
        triplet / "libz.so.1.2.13": b"z",
        triplet / "libm.so.6": b"m",
        triplet / "ld-2.36.so": b"loader",
        triplet / "gconv" / "EBCDIC.so": b"gconv",
        root / "etc" / "shadow": b"secret",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if prefix != ".":
        (root / "lib").symlink_to("usr/lib")
    (triplet / "libz.so.1").symlink_to("libz.so.1.2.13")
    (root / "usr" / "lib" / "ld-linux-x.so.1").symlink_to(f"/usr/lib/{machine}-linux-gnu/ld-2.36.so")
    (library / "sitecustomize.py").symlink_to("/etc/hostname")
    (library / "outside.py").symlink_to(Path(os.__file__))
    return root


def write_wheel(folder: Path, tags: str = "cp311-cp311-manylinux_2_28_aarch64", **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"my_runtime-1.2-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"my_runtime/__init__.py": "x", **files}.items():
            archive.writestr(name, content)
    return path


def contents(bundle: Path) -> dict[str, bytes]:
    with tarfile.open(bundle) as archive:
        return {member.name: file.read() for member in archive if (file := archive.extractfile(member)) is not None}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "root")


def test_a_bundle_has_the_interpreter_its_libraries_and_the_wheels_without_what_nobody_needs(
    root: Path, tmp_path: Path
) -> None:
    wheel = write_wheel(
        tmp_path / "wheels",
        **{
            "my_runtime-1.2.data/platlib/my_runtime/core.so": "core",
            "my_runtime-1.2.data/scripts/tool": "tool",
            "my_runtime/tests/test_core.py": "test",
            "my_runtime/tests/helpers.py": "imported by others",
            "my_runtime/core.pyi": "types",
        },
    )
    manifest = make_bundle(root, [wheel], tmp_path / "out.tar.gz")
    assert manifest == read_manifest(tmp_path / "out.tar.gz")
    assert (manifest.machine, manifest.python, manifest.packages) == ("aarch64", "3.11", {"my-runtime": "1.2"})
    files = contents(tmp_path / "out.tar.gz")
    assert list(files)[:2] == ["manifest.json", "start"]
    assert {name for name in files if not name.startswith("python/lib")} - {"manifest.json", "start"} == {
        "python/bin/python3.11",
        "lib/ld-linux-x.so.1",
        "lib/ld-2.36.so",
        "lib/libm.so.6",
        "lib/libz.so.1",
        "packages/my_runtime/__init__.py",
        "packages/my_runtime/core.so",
        "packages/my_runtime/tests/helpers.py",
    }
    assert {name.removeprefix("python/lib/python3.11/") for name in files if name.startswith("python/lib")} == {
        "os.py",
        "json/decoder.py",
        "lib-dynload/zlib.so",
    }
    assert files["lib/libz.so.1"] == b"z"
    assert files["lib/ld-linux-x.so.1"] == b"loader"
    command = b'exec "$here/lib/ld-linux-x.so.1" --library-path "$here/lib" "$here/python/bin/python3.11" "$@"'
    assert command in files["start"]


def test_the_same_inputs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        wheel = write_wheel(tmp_path / f"wheels-{name}")
        os.utime(wheel, (1, 1))
        os.utime(root / "usr/lib/python3.11/os.py", (ord(name), ord(name)))
        make_bundle(root, [wheel], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("prefix", ["python", "usr/local", "."])
def test_where_a_python_may_be(tmp_path: Path, prefix: str) -> None:
    root = write_root(tmp_path / "root", prefix, "riscv64")
    assert make_bundle(root, [], tmp_path / "out.tar.gz").machine == "riscv64"
    assert "python/lib/python3.11/json/decoder.py" in contents(tmp_path / "out.tar.gz")


def test_a_build_without_a_c_library_is_started_directly(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", "python", "x86_64")
    (root / "lib").unlink()
    make_bundle(root, [], tmp_path / "out.tar.gz")
    assert b'exec "$here/python/bin/python3.11" "$@"' in contents(tmp_path / "out.tar.gz")["start"]


@pytest.mark.skipif(sys.platform != "linux", reason="starts this machine's Python through its own loader")
def test_the_start_script_starts_the_python_that_is_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    (folder / "python" / "bin").mkdir(parents=True)
    (folder / "packages").mkdir()
    (folder / "packages" / "mine.py").write_text("value = 42")
    root = write_root(tmp_path / "root", "python", "x86_64")
    (root / "lib").unlink()
    make_bundle(root, [], tmp_path / "out.tar.gz")
    script = contents(tmp_path / "out.tar.gz")["start"].decode()
    (folder / "start").write_text(script.replace('PYTHONHOME="$here/python" ', ""))
    (folder / "python" / "bin" / "python3.11").symlink_to(sys.executable)
    ran = subprocess.run(
        ["sh", folder / "start", "-c", "import mine, sys; print(mine.value, sys.argv[1])", "a b"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == "42 a b\n"


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("cp311-cp311-manylinux_2_28_x86_64", "is not for aarch64: pip download --platform manylinux_2_28_aarch64"),
        ("cp310-cp310-manylinux_2_28_aarch64", "is not for Python 3.11: pip download --python-version 3.11"),
        ("cp312-abi3-manylinux_2_28_aarch64", "is not for Python 3.11"),
        ("py2-none-any", "is not for Python 3.11"),
        ("x", "is not a wheel"),
    ],
)
def test_a_wheel_for_another_device_is_refused_and_nothing_is_written(
    root: Path, tmp_path: Path, tags: str, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        make_bundle(root, [write_wheel(tmp_path / "wheels", tags)], tmp_path / "out.tar.gz")
    assert not (tmp_path / "out.tar.gz").exists()


@pytest.mark.parametrize("tags", ["cp38-abi3-linux_aarch64", "py2.py3-none-any", "cp311-cp311-a_aarch64.b_x86_64"])
def test_a_wheel_that_runs_there_is_taken(root: Path, tmp_path: Path, tags: str) -> None:
    assert make_bundle(root, [write_wheel(tmp_path / "wheels", tags)], tmp_path / "out").packages == {
        "my-runtime": "1.2"
    }


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "a/../../outside.py"])
def test_a_wheel_that_writes_elsewhere_is_refused_and_nothing_is_left(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(TargetError, match="would write outside of its folder"):
        make_bundle(root, [write_wheel(tmp_path / "wheels", **{name: "x"})], tmp_path / "out.tar.gz")
    assert not (tmp_path / "out.tar.gz").exists()


def test_a_folder_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="holds no CPython"):
        make_bundle(tmp_path, [], tmp_path / "out.tar.gz")
    root = write_root(tmp_path / "root")
    (root / "usr/bin/python3.11").write_bytes(b"#!/bin/sh")
    with pytest.raises(TargetError, match="is not a program of i686"):
        make_bundle(root, [], tmp_path / "out.tar.gz")


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside"),
        tarfile.TarInfo("/outside"),
        tarfile.TarInfo("lib/../../outside"),
        link("lib", "/"),
        link("lib", ".."),
        link("lib", "start", tarfile.LNKTYPE),
        link("lib", "", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_that_writes_elsewhere_is_no_bundle(tmp_path: Path, member: tarfile.TarInfo) -> None:
    manifest = json.dumps({"machine": "aarch64", "python": "3.11", "packages": {}, "schema": 1}).encode()
    first = tarfile.TarInfo("manifest.json")
    first.size = len(manifest)
    with tarfile.open(tmp_path / "bundle.tar.gz", "w:gz") as archive:
        archive.addfile(first, io.BytesIO(manifest))
    assert read_manifest(tmp_path / "bundle.tar.gz").machine == "aarch64"
    with tarfile.open(tmp_path / "bundle.tar.gz", "w:gz") as archive:
        archive.addfile(first, io.BytesIO(manifest))
        archive.addfile(member)
    with pytest.raises(TargetError, match="would write outside of its folder"):
        read_manifest(tmp_path / "bundle.tar.gz")


@pytest.mark.parametrize("kind", ["missing", "text", "cut", "another", "list", "schema", "field"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, root: Path, kind: str) -> None:
    path = tmp_path / "bundle.tar.gz"
    manifests = {"another": "", "list": "[1]", "schema": '{"schema": 2}', "field": '{"schema": 1, "machine": "x"}'}
    if kind == "text":
        path.write_text("text")
    elif kind == "cut":
        make_bundle(root, [], path)
        path.write_bytes(path.read_bytes()[:-40])
    elif kind in manifests:
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("x" if kind == "another" else "manifest.json")
            member.size = len(manifests[kind])
            archive.addfile(member, io.BytesIO(manifests[kind].encode()))
    with pytest.raises(TargetError, match=r"bundle\.tar\.gz"):
        read_manifest(path)


def test_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = write_wheel(tmp_path / "wheels")
    main([str(root), str(wheel), "--out", str(tmp_path / "phone.tar.gz")])
    assert "phone.tar.gz: Python 3.11 for aarch64 with my-runtime 1.2" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .* holds no CPython"):
        main([str(tmp_path / "wheels"), str(wheel)])
