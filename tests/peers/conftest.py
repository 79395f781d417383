"""Real peers: programs that others wrote. `.ci/devices` brings them; without it these tests are skipped at once."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwprof.bundle import make_bundle

# The server of hwprof's own tests serves here too.
sys.path.append(str(Path(__file__).resolve().parents[1] / "hwprof"))

from phone import Phone
from sshd import Sshd


@pytest.fixture(scope="session")
def peers() -> Path:
    """The folder that `.ci/devices` has filled."""
    folder = os.environ.get("HWNAS_PEERS")
    if not folder:
        pytest.skip("needs adbd and arm64 programs under qemu: run .ci/devices, which brings them")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def bundle(peers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python and the runtimes of phones for arm64, made as a user makes it."""
    out = tmp_path_factory.mktemp("bundle") / "phone.tar.gz"
    make_bundle(peers / "python", sorted((peers / "wheels").glob("*.whl")), out)
    return out


@pytest.fixture(scope="session")
def phone(peers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A phone that is on, and `adb` on the path."""
    phone = Phone(peers, tmp_path_factory.mktemp("adb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{phone.adb.parent}{os.pathsep}{os.environ['PATH']}")
        try:
            phone.switch_on()
            yield phone
        finally:
            phone.close()


@pytest.fixture(scope="session")
def board(peers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A board with an arm64 Debian and ONNX Runtime behind OpenSSH's server: its device, in words."""
    folder = tmp_path_factory.mktemp("board")
    server = Sshd(folder)
    for wheel in (peers / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    (program,) = (peers / "python" / "usr" / "bin").glob("python3.*")
    python = folder / "python"
    qemu = f"'{peers}/tools/usr/bin/qemu-aarch64' -L '{peers}/python'"
    python.write_text(f"#!/bin/sh\nPYTHONPATH='{folder}/site' exec {qemu} '{program}' \"$@\"\n")
    python.chmod(0o755)
    server.start()
    yield server.text(python=str(python))
    server.stop()
