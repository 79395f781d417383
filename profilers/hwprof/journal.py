"""An append-only file of JSON lines: what is in it has been measured, whatever happens next."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwprof.answers import Nonsense
from hwprof.errors import TableError
from hwprof.files import read_bounded
from hwprof.lock import table_lock

Record = dict[str, Any]

LARGEST_BYTES = 2**30


class Journal:
    """Records on disk under a header that says what they belong to. A record is durable once `append` returns.

    Opening a file that exists reads its records; a last line cut off by a kill is dropped. An open journal is locked
    until `close` or the end of the process. `check` is called with every record that is read, and raises Nonsense or
    ValueError on one that it would not have appended. Raises TableError if the file has another header (so records of
    two targets or plans are never mixed) or is not a journal, BusyError if another process has it open.
    """

    def __init__(self, path: Path, header: Record, check: Callable[[Record], object] = dict) -> None:
        self.path = path
        self.records: list[Record] = []
        header = json.loads(json.dumps(header))
        self._lock = table_lock(path)
        try:
            if path.exists():
                self._read(header, check)
            if not path.exists():
                self._write(header)
        except BaseException:
            self.close()
            raise

    def _read(self, header: Record, check: Callable[[Record], object]) -> None:
        try:
            data = read_bounded(self.path, LARGEST_BYTES)
        except ValueError as error:
            raise TableError(f"{self.path} is no journal of measurements: {error}; move it away") from error
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            self.path.unlink()
            return
        try:
            lines = [json.loads(line, parse_constant=_constant) for line in whole.splitlines()]
        except (ValueError, RecursionError) as error:
            raise TableError(f"{self.path} is damaged ({error}); delete it to measure anew") from error
        if not all(isinstance(line, dict) for line in lines):
            raise TableError(f"{self.path} is not a journal of measurements; delete it to measure anew")
        if lines[0] != header:
            changed = _changed(header, lines[0])
            was = "; ".join(f"{key} was {_short(found)}, is {_short(now)}" for key, (found, now) in changed.items())
            raise TableError(
                f"{self.path} holds unfinished measurements of something else ({', '.join(changed)} changed: {was}); "
                "delete it to measure anew, or restore what changed to go on with it"
            )
        try:
            for record in lines[1:]:
                check(record)
        except (Nonsense, ValueError, TypeError) as error:
            raise TableError(f"{self.path} is damaged ({error}); delete it to measure anew") from error
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        self.records = lines[1:]

    def append(self, record: Record) -> None:
        """Add a record and wait until it is on disk. Raises OSError when the disk is full; the file stays valid."""
        self._write(record)
        self.records.append(record)

    def _write(self, record: Record) -> None:
        end = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # Half a line would be taken for damage by the next record written behind it.
            with contextlib.suppress(OSError):
                os.truncate(self.path, end)
            raise

    def close(self) -> None:
        """Let another process have it; the file stays."""
        self._lock.release()

    def delete(self) -> None:
        """Remove the file: what it held is now in a table."""
        self.path.unlink(missing_ok=True)
        self.close()


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no measurement")
    return float(name)  # infinite is what a refused one may be


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 500 else text[:500] + "..."


def _changed(header: Any, found: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two headers differ, with what was found and what is now."""
    if not isinstance(header, dict) or not isinstance(found, dict):
        return {} if header == found else {prefix.removesuffix("."): (found, header)}
    changed: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*header, *found}):
        changed |= _changed(header.get(key), found.get(key), f"{prefix}{key}.")
    return changed
