"""What our code uses of TensorRT is in TensorRT's own Python bindings, under these names and with these parameters.

test_tensorrt_build.py and test_tensorrt_run.py execute our code on a stand-in that has exactly what it uses. Here that
stand-in is compared with the real bindings of 8.6, 10.0, 10.16 and 11.4, which need neither TensorRT nor a GPU: they
are imported on libraries that only have the names of TensorRT's functions. `.ci/tensorrt-bindings` brings them.
"""

from __future__ import annotations

import enum
import functools
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import COMPILER
from fake_tensorrt import classes_of

SOURCES = Path(__file__).resolve().parents[2] / "profilers"
BINDINGS = Path(sys.prefix) / "share" / "tensorrt-bindings"
VERSIONS = ("8.6.1", "10.0.1", "10.16.1.11", "11.4.0.106")

NOTHING = "void *{name}(void) {{ return 0; }}\n"
LIBRARIES = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvparsers": (
        "_ZN11nvuffparser15createUffParserEv",
        "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
        "_ZN14nvcaffeparser117createCaffeParserEv",
        "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
    ),
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries with the names of TensorRT's functions, of every major version."""
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler (cc, gcc or clang)")
    folder = tmp_path_factory.mktemp("libraries")
    for name, functions in LIBRARIES.items():
        source = "".join(NOTHING.format(name=function) for function in functions)
        for major in {version.split(".")[0] for version in VERSIONS}:
            library = folder / f"lib{name}.so.{major}"
            command = [str(COMPILER), "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
            subprocess.run(command, input=source, text=True, check=True, timeout=60)
    return folder


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    if not (BINDINGS / request.param).is_dir():
        pytest.skip(f"no bindings of TensorRT {request.param} here: .ci/tensorrt-bindings {sys.executable}")
    return str(request.param)


def with_bindings(version: str, libraries: Path, code: str) -> Any:
    """What a program prints, as JSON, that runs on the real bindings, as `trt` and as the package tensorrt."""
    program = "import json, sys\nimport tensorrt_bindings as trt\nsys.modules['tensorrt'] = trt\n" + textwrap.dedent(
        code
    )
    path = os.pathsep.join([str(BINDINGS / version), str(SOURCES)])
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": str(libraries)},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@functools.cache
def members(version: str, libraries: Path) -> dict[str, dict[str, Any]]:
    """The bindings' classes and their members: the text that tells signatures, or whether a property can be set."""
    return with_bindings(  # type: ignore[no-any-return]
        version,
        libraries,
        """
        def told(member):
            if isinstance(member, property):
                return {"property": True, "set": member.fset is not None}
            return {"text": member.__doc__ or ""}

        def members(kind):
            return {name: told(getattr(kind, name)) for name in dir(kind) if not name.startswith("__")}

        kinds = {name: kind for name, kind in vars(trt).items() if isinstance(kind, type)}
        print(json.dumps({name: {**members(kind), "": told(kind.__init__)} for name, kind in kinds.items()}))
        """,
    )


def parameters(text: str) -> list[list[str]]:
    """The names of the parameters of every overload, out of what pybind11 writes into a docstring."""
    found = []
    for signature in re.findall(r"\(self: [\w.:]+(.*?)\) -> ", text):
        depth, names = 0, []
        # Types have commas in brackets; a name follows one outside of them.
        for piece in re.split(r"([\[\](){}<>])|, (?=\w+: )", signature):
            if piece is None:
                continue
            depth += {"[": 1, "(": 1, "{": 1, "<": 1, "]": -1, ")": -1, "}": -1, ">": -1}.get(piece, 0)
            if depth == 0 and re.match(r"\w+: ", piece):
                names.append(piece.split(":")[0])
        found.append(names)
    return found


def required_and_all(function: Any) -> tuple[list[str], list[str]]:
    own = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
    return [each.name for each in own if each.default is each.empty], [each.name for each in own]


def differences(version: str, real: dict[str, dict[str, Any]]) -> list[str]:
    """What the stand-in has and the bindings have not, or have otherwise."""
    wrong = []
    for name, fake in classes_of(version).items():
        if name not in real:
            wrong.append(f"there is no {name}")
            continue
        if issubclass(fake, enum.Enum):
            wrong += [f"there is no {name}.{member.name}" for member in fake if member.name not in real[name]]
            continue
        for member in {*vars(fake), *vars(fake).get("__annotations__", {}), *_inherited(fake)}:
            if member.startswith("_") or (member == "Severity"):
                continue
            wrong += _difference(f"{name}.{member}", fake, member, real[name].get(member))
    return wrong


def _inherited(fake: type) -> set[str]:
    return {member for base in fake.__mro__[1:-1] if base is not bytes for member in vars(base)}


def _difference(text: str, fake: type, member: str, found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [f"there is no {text}"]
    ours = getattr(fake, member, None)
    if not inspect.isfunction(ours):  # what the stand-in lets be set must let itself be set there
        settable = not isinstance(ours, property)
        right = found.get("property") and (found["set"] or not settable)
        return [] if right else [f"{text} is {found}"]
    required, known = required_and_all(ours)
    overloads = parameters(found.get("text", ""))
    fits = any(there[: len(required)] == required and {*known} <= {*there} for there in overloads)
    return [] if fits else [f"{text} takes {overloads}, used with {known}"]


def test_everything_used_is_there(version: str, libraries: Path) -> None:
    assert differences(version, members(version, libraries)) == []


def test_what_is_not_there_is_found(libraries: Path) -> None:
    """11 has neither the precision flags of 8 nor its network flag; wrong parameters or properties are seen as well."""
    if not (BINDINGS / "11.4.0.106").is_dir():
        pytest.skip(f"no bindings of TensorRT 11.4 here: .ci/tensorrt-bindings {sys.executable}")
    real = members("11.4.0.106", libraries)
    gone = {"BuilderFlag.FP16", "BuilderFlag.INT8", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"}
    assert {*differences("8.6.1", real)} == {f"there is no {name}" for name in gone}

    class Wrong:
        num_layers: int

        def get_layer(self, number: int) -> None: ...

        def get_input(self) -> None: ...

    for member in ("num_layers", "get_layer", "get_input", "gone"):
        found = real["INetworkDefinition"].get(member)
        assert bool(_difference(member, Wrong, member, found)) == (member != "get_input"), member


def test_overloads_are_read() -> None:
    text = """f(*args, **kwargs) Overloaded function.
    1. f(self: trt.A, name: str, shape: tuple[int, str], flag: B = <B.C: 0>) -> bool
    2. f(self: trt.A) -> None"""
    assert parameters(text) == [["name", "shape", "flag"], []]


def test_our_modules_on_the_real_bindings(version: str, libraries: Path) -> None:
    """Our classes derive from TensorRT's, and its own code calls them; without TensorRT, a builder cannot be made."""
    told = with_bindings(
        version,
        libraries,
        """
        from hwprof.runtimes.tensorrt import Layers
        from hwprof.runtimes.tensorrt_builder import Log, MAJOR, _network_flags, settings_for
        from hwprof.target import Target

        log, layers = Log(), Layers()
        log.log(trt.ILogger.Severity.WARNING, "a warning")
        log.log(trt.ILogger.Severity.ERROR, "an error")
        layers.begin_run()
        layers.report_layer_time("b0:conv", 0.25)
        try:
            trt.Builder(log)
        except TypeError as error:
            failed = str(error)
        print(json.dumps({
            "major": MAJOR,
            "flags": _network_flags(),
            "log": [log.take(), log.take()],
            "us": layers.profile({}).us,
            "levels": settings_for(Target(runtime="tensorrt", optimisation="basic")).level,
            "failed": failed,
        }))
        """,
    )
    assert told["major"] == int(version.split(".")[0])
    assert told["flags"] == {8: 1, 10: 2, 11: 0}[told["major"]]
    assert told["log"] == ["an error", "TensorRT gave no reason"]
    assert (told["us"], told["levels"]) == ([[250.0]], 1)
    assert "nullptr" in told["failed"]
