"""What all tests share. One thread per process: pytest-xdist runs a process per core, and numbers stay the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# Read by OpenMP when torch or numpy is first imported, which no module does before this one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("hwnas", deadline=None, derandomize=True)
settings.load_profile("hwnas")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs the public benchmark tables in {SHARED_DATA}")
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(skip)


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
