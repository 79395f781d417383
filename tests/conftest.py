"""What all tests share. One thread per process: pytest-xdist runs a process per core, and numbers stay the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

# Read by OpenMP when torch or numpy is first imported, which no module does before this one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("hwnas", deadline=None, derandomize=True)
settings.load_profile("hwnas")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accelerator", choices=("cpu", "cuda"), default="cpu", help="where networks train and are scored"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _sees_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU that torch sees"))
    if SHARED_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs the public benchmark tables in {SHARED_DATA}")
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(skip)


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def accelerator(request: pytest.FixtureRequest) -> torch.device:
    """Where the tests of training and of scores run their networks: what `--accelerator` says, the CPU unasked."""
    import torch

    name: str = request.config.getoption("accelerator")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("--accelerator cuda: torch sees no NVIDIA GPU here")
    return torch.device(name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public benchmark tables. Tests that ask for it carry the mark `shared_data`."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the public benchmark tables in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium that can run headless."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"needs one of these browsers: {', '.join(BROWSERS)}")
    return found
