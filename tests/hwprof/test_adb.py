"""What adb says, and what is made of it; a real adbd is spoken to in tests/peers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hwprof.client import AgentClient
from hwprof.devices import adb_connection, make_device
from hwprof.devices.adb import AdbDevice
from hwprof.devices.adb_connection import AdbConnection
from hwprof.errors import DeviceError, TargetError
from hwprof.target import Target

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in for adb is a shell script")

# A device whose shell is this machine's; what it is attached as is in the file `devices`.
ADB = """\
#!/bin/sh
here={folder}
echo "$@" >>$here/asked
case $1 in
devices) echo "* daemon started successfully"; echo "List of devices attached"; cat $here/devices; exit ;;
connect) [ -e $here/network ] && printf '%s\\tdevice\\n' "$2" >$here/devices; echo "failed to connect"; exit 1 ;;
disconnect) : >$here/devices; exit ;;
esac
[ "$1" = -s ] || exit 9
[ -e $here/hang ] && sleep 9
[ -e $here/broken ] && {{ echo "error: closed" >&2; exit 1; }}
shift 2
case $1 in
push) mkdir -p "$(dirname "$3")"; head -c "${{CUT:-999999999}}" "$2" >"$3" ;;
shell) shift 2; exec sh -c "$*" ;;
esac
"""


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for adb, which is on the path."""
    folder = tmp_path / "adb"
    folder.mkdir()
    (folder / "adb").write_text(ADB.format(folder=folder))
    (folder / "adb").chmod(0o755)
    (folder / "devices").write_text("0A1B2C\tdevice\n")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def text(folder: Path, **options: str) -> str:
    options = {"folder": str(folder / "it's here"), "python": sys.executable, **options}
    return "adb:0A1B2C?" + "&".join(f"{name}={value}" for name, value in options.items())


def refusal(device: str) -> str:
    with pytest.raises(DeviceError) as refused:
        make_device(device).start_agent()
    return str(refused.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("unauthorized", "adb says of 0A1B2C: unauthorized; unlock it and accept the key of this computer"),
        ("offline", "0A1B2C: offline; plug it in again"),
        ("authorizing", "0A1B2C: authorizing; wait a moment"),
        ("no permissions (user in plugdev group; are your udev rules wrong?); see [x]",
         "0A1B2C: no permissions; let this user open it: install the udev rules"),
        ("recovery", "0A1B2C: recovery; start Android on it"),
    ],
)  # fmt: skip
def test_a_device_that_cannot_be_used_is_told_with_the_next_step(adb: Path, state: str, message: str) -> None:
    (adb / "devices").write_text(f"0A1B2C\t{state}\n")
    assert message in refusal("adb:0A1B2C")
    assert message in refusal("adb")
    assert AdbDevice.found() == ["adb:0A1B2C"]


def test_what_adb_sees(adb: Path) -> None:
    (adb / "devices").write_text("")
    assert AdbDevice.found() == []
    assert refusal("adb") == "adb sees no device: plug it in, and allow USB debugging in its developer options"
    assert refusal("adb:X1") == "adb sees no device X1; it sees none"
    (adb / "devices").write_text("X2\tdevice\nX3\tunauthorized\n????????????\tno permissions; see [x]\n")
    assert AdbDevice.found() == ["adb", "adb:X2", "adb:X3"]
    assert refusal("adb") == "adb sees X2, X3, ????????????: name one, adb:SERIAL"
    assert "it sees X2, X3" in refusal("adb:X1")


@pytest.mark.parametrize("before", ["", "192.168.1.5:5555\toffline\n"])
def test_a_device_on_the_network_is_connected_to(adb: Path, before: str) -> None:
    (adb / "devices").write_text(before)
    connection = AdbConnection("192.168.1.5:5555")
    with pytest.raises(DeviceError, match=r"adb sees no device 192\.168\.1\.5:5555; it sees none"):
        connection.require_ready()
    (adb / "network").touch()
    connection.require_ready()
    (adb / "asked").unlink()
    connection.require_ready()
    assert (adb / "asked").read_text() == "devices\n"


def test_no_adb_is_told_and_no_device_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert AdbDevice.found() == []
    assert refusal("adb:X").startswith("there is no program adb here: install Android's platform tools")
    tools = tmp_path / "sdk" / "platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").write_text("#!/bin/sh\necho 'List of devices attached'; echo 'X device'\n")
    (tools / "adb").chmod(0o755)
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert AdbDevice.found() == ["adb:X"]


def test_an_adb_that_fails_or_hangs_is_told(adb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (adb / "broken").touch()
    assert refusal("adb:0A1B2C") == "adb could not do its work: error: closed"
    (adb / "hang").touch()
    monkeypatch.setattr(adb_connection, "COMMAND_SECONDS", 0.2)
    monkeypatch.setattr(AdbConnection.run, "__defaults__", (0.2,))
    assert "is the device awake?" in refusal("adb:0A1B2C")


def test_an_agent_on_a_device_that_has_a_python(adb: Path, tmp_path: Path) -> None:
    with AgentClient(make_device(text(tmp_path)), Target(device="adb:0A1B2C")) as client:
        assert client.fingerprint["onnxruntime"]
    with pytest.raises(DeviceError, match=r"the agent on adb:0A1B2C ended .*/no/python"):
        AgentClient(make_device(text(tmp_path, python="/no/python")), Target(device="adb:0A1B2C")).restart()


def test_a_file_that_arrives_cut_is_not_taken(adb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_device(text(tmp_path))
    with AgentClient(device, Target(device="adb:0A1B2C")):
        (tmp_path / "model.onnx").write_bytes(bytes(1000))
        monkeypatch.setenv("CUT", "999")
        with pytest.raises(DeviceError, match="incomplete"):
            device.put(tmp_path / "model.onnx")
        assert not list((tmp_path / "it's here").glob("run-*/*/*"))
        monkeypatch.delenv("CUT")
        assert Path(device.put(tmp_path / "model.onnx")).read_bytes() == bytes(1000)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("adb:-s", "an adb device is a serial of `adb devices` or HOST:PORT, got '-s'"),
        ("adb:a b", "an adb device is a serial"),
        ("adb:a\nb", "an adb device is a serial"),
        ("adb:X?folder=hwprof", "must be an absolute path on it and ours alone, got 'hwprof'"),
        ("adb:X?folder=/", "must be an absolute path"),
        ("adb:X?folder=/data/local/tmp/", "must be an absolute path on it and ours alone"),
        ("adb:X?folder=/a%0Ab", "must be an absolute path"),
        ("adb:X?root=1", "adb devices have no option 'root'; they have bundle, python, folder"),
        ("adb:X?python=/bin/python3&bundle=/x", "give python= or bundle=, not both"),
        ("adb:X?bundle=/nowhere/phone.tar.gz", "/nowhere/phone.tar.gz cannot be read .*python -m hwprof.bundle"),
    ],
)
def test_a_text_that_is_no_adb_device_is_refused(device: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        make_device(device)
