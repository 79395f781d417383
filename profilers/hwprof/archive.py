"""The agent as one file that travels: this package as a zipapp, which any Python from 3.8 on runs by itself.

    python hwprof-3f9c0d2a7b51e846.pyz

The files are stored, not compressed: a Python without zlib can read them, and the bytes depend on the source alone.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from hwprof.files import write_atomic

# The oldest Python that can run the agent (boards of 2020 have it); hosts need the one that pyproject.toml names.
OLDEST_PYTHON = (3, 8)
# A fixed time of all files: the archive must not depend on when the source was checked out.
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_START = f"""\
import sys
if sys.version_info < {OLDEST_PYTHON}:
    sys.exit("the agent needs Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer, this is " + sys.version.split()[0])
from hwprof.agent import main
main()
"""


def agent_archive(folder: Path) -> Path:
    """The archive in the folder, made if it is not there; its name is a digest of its content."""
    content = archive_bytes()
    path = folder / f"hwprof-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
    if not path.exists():
        write_atomic(path, content)
    return path


def archive_bytes() -> bytes:
    """All Python files of this package and a `__main__.py` that starts the agent; the same source, the same bytes."""
    package = Path(__file__).resolve().parent
    sources = {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in package.rglob("*.py")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted({**sources, "__main__.py": _START.encode()}.items()):
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.create_system = 3  # Windows would write its own number
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
