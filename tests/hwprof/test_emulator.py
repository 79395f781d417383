from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwprof import android, cooling, host
from hwprof.emulator import emulated

X86_INFO = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n"
ARM_INFO = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
PIXEL = """\
[ro.build.id]: [AP2A.240805.005]
[ro.build.version.release]: [14]
[ro.hardware]: [panther]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 7]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [GS201]
[ro.empty]: []
"""


def write_kernel(root: Path, arch: str = "", modalias: str = "", cpuinfo: str = "") -> Path:
    for name, text in (
        ("proc/sys/kernel/arch", arch),
        ("sys/devices/system/cpu/modalias", modalias),
        ("proc/cpuinfo", cpuinfo),
    ):
        if text:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("machine", "kernel", "expected"),
    [
        ("aarch64", {"arch": "x86_64\n"}, "qemu-user"),
        ("x86_64", {"arch": "aarch64\n"}, "qemu-user"),
        ("riscv64", {"arch": "x86_64"}, "qemu-user"),
        ("x86_64", {"arch": "x86_64"}, None),
        ("i686", {"arch": "x86_64"}, None),
        ("AMD64", {"arch": "x86_64"}, None),
        ("armv7l", {"arch": "aarch64"}, None),
        ("aarch64", {"arch": "aarch64", "cpuinfo": X86_INFO}, None),
        ("aarch64", {"modalias": "cpu:type:x86,ven0000fam0006mod0055:feature:,0000"}, "qemu-user"),
        ("aarch64", {"modalias": "cpu:type:aarch64:feature:,0000"}, None),
        ("aarch64", {"cpuinfo": X86_INFO}, "qemu-user"),
        ("aarch64", {"cpuinfo": ARM_INFO}, None),
        ("x86_64", {"cpuinfo": ARM_INFO}, "qemu-user"),
        ("s390x", {"cpuinfo": "vendor_id       : IBM/S390"}, None),
        ("loongarch64", {"arch": "x86_64"}, None),  # a family that is not known here
        ("aarch64", {}, None),
    ],
)
def test_a_program_of_another_architecture_than_the_kernels_is_emulated(
    tmp_path: Path, machine: str, kernel: dict[str, str], expected: str | None
) -> None:
    assert emulated(machine, "some CPU", write_kernel(tmp_path, **kernel)) == expected


def test_a_whole_emulated_machine_is_known_by_its_processor(tmp_path: Path) -> None:
    assert emulated("x86_64", "QEMU TCG CPU version 2.5+", write_kernel(tmp_path, arch="x86_64")) == "qemu-system"
    assert emulated("x86_64", "QEMU Virtual CPU", write_kernel(tmp_path, arch="x86_64")) is None


@pytest.fixture
def getprop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An Android's program that tells its properties, from a file."""
    program = tmp_path / "getprop"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/properties\n")
    program.chmod(0o755)
    monkeypatch.setattr(android, "GETPROP", program)
    android.properties.cache_clear()
    yield tmp_path / "properties"
    android.properties.cache_clear()


def test_android_tells_what_phone_it_is(getprop: Path, tmp_path: Path) -> None:
    getprop.write_text(PIXEL)
    assert android.identity() == {"phone": "Google Pixel 7", "android": "14 AP2A.240805.005"}
    assert android.processor() == "Google GS201"
    assert emulated("aarch64", "", write_kernel(tmp_path, arch="aarch64")) is None
    assert host.identity()["phone"] == "Google Pixel 7"


@pytest.mark.parametrize("line", ["[ro.kernel.qemu]: [1]", "[ro.boot.qemu]: [1]", "[ro.hardware]: [ranchu]"])
def test_the_emulator_of_androids_tools_is_known(getprop: Path, tmp_path: Path, line: str) -> None:
    getprop.write_text(f"{PIXEL.replace('[panther]', '[x]')}{line}\n")
    assert emulated("aarch64", "", write_kernel(tmp_path, arch="aarch64")) == "android-emulator"
    assert host.identity()["emulated"] == "android-emulator"


def test_androids_battery(getprop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    getprop.write_text(PIXEL)
    run = subprocess.run
    said = b"Current Battery Service state:\n  AC powered: false\n  status: 3\n  level: 85\n  scale: 100\n"

    def dumpsys(command, **options):
        return subprocess.CompletedProcess(command, 0, said) if command[1:] == ["battery"] else run(command, **options)

    monkeypatch.setattr(subprocess, "run", dumpsys)
    assert cooling.state(tmp_path) == {"battery": "85%, discharging"}


def test_where_there_is_no_android() -> None:
    android.properties.cache_clear()
    assert (android.identity(), android.processor(), android.battery(), android.is_emulator()) == ({}, "", "", False)


def test_an_android_program_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(android, "SECONDS", 0.1)
    assert android._run(["sleep", "9"]) == ""
