from __future__ import annotations

from types import ModuleType

import pytest
import toy_space


@pytest.fixture
def toy() -> ModuleType:
    return toy_space
