"""The dependency directions of the design, read from the imports of every file, those inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"hwnas": ROOT, "hwprof": ROOT / "profilers"}

FOUNDATION = {
    "errors",
    "space",
    "blocks",
    "trace",
    "progress",
    "files",
    "saved",
    "validation",
    "ranks",
    "units",
    "template",
    "card",
    "printable",
    "conformal",
}
MIDDLE = {"search", "supernet", "zeroshot", "train", "latency", "export", "report"}
BELOW_PIPELINE = FOUNDATION | MIDDLE | {"spaces", "graphs", "hwprof"}
# unit of hwnas -> what it may import, beside itself and the bare package (its version)
MAY_IMPORT = {
    "": FOUNDATION,
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    "spaces": FOUNDATION,
    "graphs": FOUNDATION | {"hwprof"},
    **dict.fromkeys(MIDDLE, FOUNDATION | {"spaces"}),
    "supernet": FOUNDATION | {"spaces", "train"},  # a supernet is trained as networks are, on the same images
    "latency": FOUNDATION | {"spaces", "graphs", "hwprof"},
    "export": FOUNDATION | {"spaces", "graphs", "hwprof"},
    "sections": BELOW_PIPELINE,
    "recipe": BELOW_PIPELINE | {"sections"},
    "run": BELOW_PIPELINE | {"recipe"},
    "precisions": BELOW_PIPELINE | {"recipe", "run"},
    "carding": BELOW_PIPELINE | {"recipe", "run", "training"},
    "results": BELOW_PIPELINE | {"recipe", "run", "scored", "carding", "precisions"},
    "card_recipe": BELOW_PIPELINE | {"recipe", "sections"},
    "from_card": BELOW_PIPELINE
    | {"recipe", "run", "results", "trained", "training", "exporting", "pipeline", "carding", "card_recipe"}
    | {"supernets"},
    "trained": BELOW_PIPELINE | {"recipe", "run", "scoring", "precisions"},
    "exporting": BELOW_PIPELINE | {"recipe", "run", "results", "trained", "precisions"},
    "confirm": BELOW_PIPELINE | {"recipe", "run"},
    "limits": BELOW_PIPELINE | {"recipe", "run"},
    "beforehand": BELOW_PIPELINE | {"recipe", "run", "limits", "scored"},
    "artifacts": BELOW_PIPELINE | {"recipe", "run"},
    "training": BELOW_PIPELINE | {"sections", "run", "trained", "artifacts"},
    "searching": BELOW_PIPELINE | {"recipe", "run", "beforehand", "confirm", "training"},
    "shipping": BELOW_PIPELINE | {"recipe", "run", "results", "trained"},
    "export_command": BELOW_PIPELINE | {"shipping"},
    "subnets": BELOW_PIPELINE | {"recipe", "run", "trained", "training"},
    "supernets": BELOW_PIPELINE | {"recipe", "run", "limits", "confirm", "trained", "subnets"},
    "proxyless_search": BELOW_PIPELINE | {"recipe", "run", "subnets"},
    "executors": BELOW_PIPELINE | {"recipe", "run", "scoring", "training", "searching"},
    "scoring": BELOW_PIPELINE,
    "scored": BELOW_PIPELINE | {"recipe", "run", "scoring", "limits"},
    "pipeline": BELOW_PIPELINE
    | {"recipe", "run", "results", "executors", "supernets", "proxyless_search", "trained", "exporting", "scored"},
    "validating": BELOW_PIPELINE | {"recipe", "run"},
    "testing": BELOW_PIPELINE | {"recipe", "run", "pipeline"},
    "table_commands": BELOW_PIPELINE,
    "transfer_command": BELOW_PIPELINE | {"recipe", "run"},
    "score_command": BELOW_PIPELINE | {"recipe", "run"},
    "listing_commands": BELOW_PIPELINE,
    "console": BELOW_PIPELINE | {"recipe", "run"},
    "search_command": BELOW_PIPELINE | {"run", "scored", "supernets", "trained", "pipeline", "console"},
    "run_command": BELOW_PIPELINE | {"pipeline", "from_card", "card_recipe", "console"},
    "cli": BELOW_PIPELINE
    | {"pipeline", "exporting", "testing", "validating", "shipping", "console"}
    | {"search_command", "run_command", "export_command", "table_commands", "transfer_command", "score_command"}
    | {"listing_commands"},
    "__main__": {"cli"},
}
# what the files of hwprof/runtimes measure; these files are imported by name, when their runtime is asked for
RUNTIME_PACKAGES = {"numpy", "onnxruntime", "tensorrt", "ai_edge_litert", "tflite_runtime", "onnx", "ncnn", "openvino"}

# torch is too large for most devices, but it is what GPUs without TensorRT run: only its own runtimes may import it
TORCH_RUNTIMES = {"hwprof.runtimes.torch_eager", "hwprof.runtimes.torch_cuda"}


def module_files() -> list[tuple[str, Path]]:
    found = []
    for package, root in SOURCES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found.append((".".join(parts), path))
    return found


def imports(module: str, source: str) -> Iterator[str]:
    """Every import of a file, relative ones made absolute. `from hwnas import report` counts as hwnas.report.

    `module` is the dotted file name, with its `__init__`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            target = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from (f"{target}.{alias.name}" if target in SOURCES else target for alias in node.names)


def unit_of(module: str) -> str:
    """The part of the design that a module of ours belongs to; '' for the package hwnas itself."""
    parts = module.removesuffix(".__init__").split(".")
    if parts[0] == "hwprof":
        return "hwprof"
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else ""


def wrong_imports(module: str, source: str) -> list[str]:
    wrong = wrong_in_hwprof if module.split(".")[0] == "hwprof" else wrong_in_hwnas
    return sorted({imported for imported in imports(module, source) if wrong(module, imported)})


def wrong_in_hwnas(module: str, imported: str) -> bool:
    if imported.split(".")[0] not in SOURCES:
        return False
    unit = unit_of(module)
    return unit_of(imported) not in MAY_IMPORT[unit] | {unit, ""}


def wrong_in_hwprof(module: str, imported: str) -> bool:
    package = imported.split(".")[0]
    if package in sys.stdlib_module_names or package == "hwprof":
        return False
    allowed = RUNTIME_PACKAGES if is_runtime(module) else set()
    return package not in (allowed | {"torch"} if module in TORCH_RUNTIMES else allowed)


def is_runtime(module: str) -> bool:
    return module.startswith("hwprof.runtimes.") and not module.endswith(".__init__")


FILES = module_files()


@pytest.mark.parametrize(("module", "path"), FILES, ids=[module for module, _ in FILES])
def test_imports_point_one_way(module: str, path: Path) -> None:
    assert wrong_imports(module, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", [module for module, _ in FILES if module.startswith("hwnas.")])
def test_every_module_has_a_place_in_the_design(module: str) -> None:
    unit = module.split(".")[1]
    assert unit == "__init__" or unit in MAY_IMPORT, f"say in MAY_IMPORT what hwnas.{unit} may import"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hwnas.search.study", "import hwnas.latency"),
        ("hwnas.search.study", "from hwnas import supernet"),
        ("hwnas.search.study", "def run():\n    from hwnas.supernet.elastic import Conv"),
        ("hwnas.search.study", "import hwprof"),
        ("hwnas.search.__init__", "from ..train import loop"),
        ("hwnas.report.html", "from hwnas.recipe import Recipe"),
        ("hwnas.train.loop", "class A:\n    def f(self):\n        import hwnas.zeroshot.zen"),
        ("hwnas.train.loop", "from ..export.onnx import export"),
        ("hwnas.spaces.mobile", "from hwnas.train import loop"),
        ("hwnas.space", "from hwnas.spaces import nb201"),
        ("hwnas.recipe", "from hwnas.pipeline import run"),
        ("hwnas.pipeline", "import hwnas.cli"),
        ("hwnas.testing.spaces", "import hwnas.cli"),
        ("hwprof.timing", "import numpy"),
        ("hwprof.timing", "def f():\n    import numpy"),
        ("hwprof.timing", "from hwnas import errors"),
        ("hwprof.runtimes.__init__", "import onnxruntime"),
        ("hwprof.runtimes.ort", "import optuna"),
        ("hwprof.runtimes.ort", "def f():\n    import torch"),
        ("hwprof.runtimes.torch_file", "import torch"),
        ("hwprof.runtimes.ort", "def f():\n    import hwnas.errors"),
    ],
)
def test_a_wrong_direction_is_found(module: str, source: str) -> None:
    assert len(wrong_imports(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hwnas.search.study", "from hwnas.search.pareto import front\nfrom hwnas.spaces import nb201\nimport optuna"),
        ("hwnas.search.__init__", "from . import pareto\nfrom ..errors import RunError\nfrom .. import space"),
        ("hwnas.latency.sweep", "from hwprof.table import LatencyTable\nfrom hwnas import __version__"),
        ("hwnas.pipeline", "from hwnas import report\nfrom hwnas.recipe import Recipe\nimport hwnas.search.study"),
        ("hwprof.runtimes.ort", "import numpy\nimport onnxruntime as ort"),
        ("hwprof.runtimes.torch_eager", "import numpy\nimport torch.nn"),
        ("hwprof.timing", "from .host import Host\nfrom . import table\nimport json, hwprof.target"),
    ],
)
def test_a_right_direction_is_let_pass(module: str, source: str) -> None:
    assert wrong_imports(module, source) == []


@pytest.mark.parametrize("module", ["hwnas"] + ["hwnas.cli"] * (ROOT / "hwnas" / "cli.py").exists())
def test_torch_stays_out_of_the_command_line(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'torchvision', 'optuna', 'plotly'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


def test_hwprof_needs_only_the_standard_library() -> None:
    """Beside its runtimes, every module of hwprof can be imported where nothing is installed."""
    modules = [module.removesuffix(".__init__") for module, _ in FILES if module.startswith("hwprof")]
    plain = [module for module in modules if not is_runtime(module)]
    code = f"import sys; sys.path.insert(0, {str(SOURCES['hwprof'])!r}); import {', '.join(plain)}"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
