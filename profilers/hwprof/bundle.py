"""Python and a runtime in one archive, for devices that have no Python (phones): `python -m hwprof.bundle --help`.

It is made on any machine from an unpacked CPython of the device's architecture and from wheels; nothing of either is
executed. A CPython of a Linux distribution brings its C library and is started through that library's own loader, so
that it runs on the bare kernel of an Android device. The archive is the same, byte for byte, for the same inputs.

    manifest.json              machine, Python, packages
    start                      a shell script: sh FOLDER/start agent.pyz
    python/ packages/ lib/     the interpreter with its library; the wheels; the C library with its loader
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from hwprof.errors import TargetError

SCHEMA = 1
# Of an archive when it is unpacked (those of CPython with ONNX Runtime have 150 MB), and of what of it is read at once.
LARGEST_BYTES = 4 * 2**30
LARGEST_READ = 2**20
# ELF's number of an architecture -> its name in `uname -m` and in the names of wheels.
MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
# What no inference needs, of the standard library and of wheels.
_LEFT_OUT = re.compile(
    r"(^|/)(__pycache__|test|tests/data|idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data|config-[^/]*"
    r"|site-packages|dist-packages|include)/|(^|/)tests/(.*/)?test_[^/]*$|\.(pyc|pyi|a|h)$"
)
_START = """\
# Starts the Python of this folder: sh FOLDER/start ARGUMENTS
here=${{0%/*}}
export PYTHONHOME="$here/python" PYTHONPATH="$here/packages" PYTHONUTF8=1 PYTHONNOUSERSITE=1
unset LD_LIBRARY_PATH LD_PRELOAD
exec {command} "$@"
"""


@dataclass(frozen=True)
class Manifest:
    """What a bundle is for and what is in it: `packages` are the names and versions of the wheels."""

    machine: str
    python: str
    packages: dict[str, str]
    schema: int = SCHEMA


@dataclass(frozen=True)
class _Interpreter:
    """An unpacked CPython: its program, its standard library, and the loader of its C library if it brings one."""

    program: Path
    library: Path
    loader: Path | None

    @property
    def machine(self) -> str:
        head = self.program.read_bytes()[:20]
        if head[:4] != b"\x7fELF" or (number := int.from_bytes(head[18:20], "little")) not in MACHINES:
            raise TargetError(f"{self.program} is not a program of {', '.join(MACHINES.values())}")
        return MACHINES[number]


def make_bundle(python_root: Path, wheels: Sequence[Path], out: Path) -> Manifest:
    """Write the archive `out` (.tar.gz) from a root folder with a CPython for the device, and wheels for it.

    The root is an unpacked distribution (then the device needs no C library) or an unpacked build of
    python-build-standalone (then it does). Raises TargetError if it holds no CPython, or on a wheel for another
    Python or machine.
    """
    interpreter = _find_interpreter(python_root.resolve())
    python, machine = interpreter.program.name.removeprefix("python"), interpreter.machine
    manifest = Manifest(machine, python, dict(sorted(_package(wheel, python, machine) for wheel in wheels)))
    files = {"manifest.json": json.dumps(asdict(manifest), indent=1).encode(), "start": _start(interpreter).encode()}
    members = dict(_python_files(python_root.resolve(), interpreter))
    try:
        with (
            out.open("wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name, data in files.items():
                _add(archive, name, data)
            for name, path in sorted(members.items()):
                _add(archive, name, path.read_bytes())
            for wheel in sorted(wheels, key=lambda path: path.name):
                for name, data in _wheel_files(wheel):
                    _add(archive, f"packages/{name}", data)
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return manifest


def read_manifest(bundle: Path) -> Manifest:
    """What a bundle is for, after a check of all its paths. Raises TargetError unless it is a bundle of this schema.

    Only files and folders below the folder that it is unpacked into are allowed: no links, no "..", no absolute paths.
    """
    try:
        with _Bounded(bundle, "rb") as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
            first = archive.next()
            file = archive.extractfile(first) if first is not None and first.name == "manifest.json" else None
            values = json.loads(file.read(LARGEST_READ)) if file is not None else None
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not member.isreg():
                    raise TargetError(f"{bundle} would write outside of its folder: {member.name!r}; make it anew")
    except TargetError:
        raise
    except Exception as error:  # what gzip, tarfile and json raise on damage is not all documented
        raise TargetError(f"{bundle} cannot be read ({error}); make it with python -m hwprof.bundle") from error
    expected = {field.name for field in fields(Manifest)}
    if not isinstance(values, dict) or set(values) != expected or values["schema"] != SCHEMA:
        raise TargetError(f"{bundle} is not a bundle of this version; make it with python -m hwprof.bundle")
    texts = (values["machine"], values["python"], *_pairs(values["packages"]))
    if not all(isinstance(text, str) and re.fullmatch(r"[\w.+-]{1,100}", text) for text in texts):
        raise TargetError(f"{bundle} names its machine, Python or packages oddly; make it with python -m hwprof.bundle")
    return Manifest(**values)


def _pairs(packages: Any) -> list[Any]:
    """Names and versions of packages; None for what is none."""
    return [*packages, *packages.values()] if isinstance(packages, dict) else [None]


class _Bounded(gzip.GzipFile):
    """Of which nobody reads or passes over more than a bundle can have: a small archive can be a very large one."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LARGEST_READ:
            raise ValueError(f"a part of {size} bytes is too large for a bundle")
        return super().read(size)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if place > LARGEST_BYTES:
            raise ValueError(f"it is larger than {LARGEST_BYTES} bytes when it is unpacked")
        return super().seek(place, whence)


def _find_interpreter(root: Path) -> _Interpreter:
    for prefix in ("python", "usr/local", "usr", "."):
        for program in sorted((root / prefix / "bin").glob("python3.*")):
            library = root / prefix / "lib" / program.name
            if re.fullmatch(r"python3\.\d+", program.name) and (library / "os.py").is_file():
                loaders = [path for name in ("ld-linux*.so.*", "ld-musl-*.so.*") for path in root.glob(f"lib*/{name}")]
                return _Interpreter(program, library, loaders[0] if loaders else None)
    raise TargetError(
        f"{root} holds no CPython: expected bin/python3.N and lib/python3.N in it, or below usr, usr/local or python"
    )


def _python_files(root: Path, interpreter: _Interpreter) -> Iterator[tuple[str, Path]]:
    """Names in the archive and files of the interpreter, its standard library and its C library."""
    program = interpreter.program
    yield f"python/bin/{program.name}", _inside(root, program) or program
    for path in interpreter.library.rglob("*"):
        name = f"python/lib/{program.name}/{path.relative_to(interpreter.library).as_posix()}"
        if not _LEFT_OUT.search(name) and (real := _inside(root, path)):
            yield name, real
    folders = [program.parent.parent / "lib"]
    if interpreter.loader is not None:
        yield f"lib/{interpreter.loader.name}", _inside(root, interpreter.loader) or interpreter.loader
        folders += [*root.glob("lib/*-linux-*"), *root.glob("usr/lib/*-linux-*")]
    for folder in folders:
        shared = {path: real for path in folder.glob("*.so*") if (real := _inside(root, path))}
        # A library is asked for by the name of the link to it; the file behind that need not come a second time.
        behind = {real for path, real in shared.items() if path.is_symlink()}
        for path, real in shared.items():
            if path.is_symlink() or real not in behind:
                yield f"lib/{path.name}", real


def _inside(root: Path, path: Path) -> Path | None:
    """The file behind `path` if it is below the root; absolute links of a system start at its own root."""
    absolute = path.is_symlink() and path.readlink().is_absolute()
    real = (root / path.readlink().relative_to("/") if absolute else path).resolve()
    return real if real.is_relative_to(root) and real.is_file() else None


def _start(interpreter: _Interpreter) -> str:
    command = f'"$here/python/bin/{interpreter.program.name}"'
    if interpreter.loader is not None:
        command = f'"$here/lib/{interpreter.loader.name}" --library-path "$here/lib" {command}'
    return _START.format(command=command)


def _package(wheel: Path, python: str, machine: str) -> tuple[str, str]:
    """Name and version of a wheel. Raises TargetError if it is for another Python or machine."""
    parts = wheel.name.removesuffix(".whl").split("-")
    if wheel.suffix != ".whl" or len(parts) not in (5, 6) or not zipfile.is_zipfile(wheel):
        raise TargetError(f"{wheel} is not a wheel")
    pythons, abis, platforms = (part.split(".") for part in parts[-3:])
    if not any(platform == "any" or platform.endswith(f"_{machine}") for platform in platforms):
        raise TargetError(f"{wheel.name} is not for {machine}: pip download --platform manylinux_2_28_{machine}")
    if not any(_runs(each, abis, int(python.split(".")[1])) for each in pythons):
        raise TargetError(f"{wheel.name} is not for Python {python}: pip download --python-version {python}")
    return parts[0].replace("_", "-").lower(), parts[1]


def _runs(tag: str, abis: Sequence[str], minor: int) -> bool:
    stable = re.fullmatch(r"cp3(\d+)", tag) if "abi3" in abis else None
    return tag in ("py3", f"py3{minor}", f"cp3{minor}") or (stable is not None and int(stable.group(1)) <= minor)


def _wheel_files(wheel: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield from _members(wheel, archive)
    except TargetError:
        raise
    except Exception as error:  # what zipfile and its decompressors raise on damage is not all documented
        raise TargetError(f"{wheel.name} cannot be read ({error}); download it again") from error


def _members(wheel: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST_BYTES:
        raise TargetError(f"{wheel.name} has {size} bytes when it is unpacked, more than any bundle may have")
    for name in sorted(archive.namelist()):
        installed = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
        path = PurePosixPath(installed)
        if path.is_absolute() or ".." in path.parts:
            raise TargetError(f"{wheel.name} would write outside of its folder: {name!r}")
        if not name.endswith("/") and ".data/" not in installed and not _LEFT_OUT.search(installed):
            yield installed, archive.read(name)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o755, 0
    archive.addfile(member, io.BytesIO(data))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a bundle from the command line."""
    parser = argparse.ArgumentParser(prog="python -m hwprof.bundle", description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder with an unpacked CPython for the device")
    parser.add_argument("wheels", type=Path, nargs="+", help="the runtime, and what it needs, as wheels for the device")
    parser.add_argument("--out", type=Path, default=Path("bundle.tar.gz"), help="the archive (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        manifest = make_bundle(given.root, given.wheels, given.out)
    except (TargetError, OSError) as error:
        sys.exit(f"error: {error}")
    packages = ", ".join(f"{name} {version}" for name, version in manifest.packages.items())
    size = given.out.stat().st_size / 1e6
    sys.stdout.write(f"{given.out}: Python {manifest.python} for {manifest.machine} with {packages}, {size:.0f} MB\n")


if __name__ == "__main__":
    main()
