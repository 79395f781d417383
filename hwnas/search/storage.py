"""Where studies are kept: a journal file, a database, or a gRPC proxy in front of one, by Optuna's storages.

A journal file on a folder that all machines share needs no server. SQLite is for the processes of one machine,
PostgreSQL or MySQL for many; Optuna's gRPC proxy spares a database the connections of very many workers.
"""

from __future__ import annotations

import os
import re
import uuid
import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage

from hwnas.errors import MissingPackageError, RecipeError, RunError
from hwnas.search.journal import open_journal

KINDS = ("journal:PATH", "sqlite:///PATH", "postgresql://USER@HOST/DATABASE", "grpc://HOST:PORT")

_GRPC_SECONDS = 10.0
_SQLITE_SECONDS = 60  # to wait for another process's write


def check_url(url: str) -> str:
    """The URL, if it is one of a storage. Raises RecipeError."""
    if url.startswith("journal:") and len(url) > len("journal:"):
        return url
    if url.startswith("grpc://"):
        _host_port(url)
        return url
    if re.match(r"^[a-z][a-z0-9]*(\+[a-z0-9_]+)?://.", url):
        return url
    raise RecipeError(f"{shown(url)} is no storage; use one of {', '.join(KINDS)}")


def shown(place: Path | str) -> str:
    """A journal's path, or a URL without its password."""
    return str(place) if isinstance(place, Path) else re.sub(r"(://[^:/@]*):.*@", r"\1:***@", place)


def open_storage(place: Path | str) -> BaseStorage:
    """The storage of a journal file (a path) or a URL; it is made if it can be.

    Raises RunError if it cannot be reached or is damaged, MissingPackageError without the package that it needs.
    """
    if isinstance(place, Path):
        return open_journal(place)
    if place.startswith("journal:"):
        return open_journal(Path(place.removeprefix("journal:")))
    return _server(check_url(place), os.getpid())


def shared_name(folder: Path) -> str:
    """What the studies of the run in `folder` are called where other runs have theirs: its name, and a unique end.

    It is in the folder: a run that begins anew, in a new folder, has studies of its own.
    """
    path = folder / "studies"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"studies.{uuid.uuid4().hex}"
        own.write_text(f"{folder.name}-{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
        try:
            os.link(own, path)  # the first of several processes wins
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            own.replace(path)
        own.unlink(missing_ok=True)
    return path.read_text(encoding="utf-8").strip()


@lru_cache(maxsize=8)
def _server(url: str, _: int) -> BaseStorage:
    """One connection for a process, not for its parent's."""
    return _proxy(url) if url.startswith("grpc://") else _database(url)


def _proxy(url: str) -> BaseStorage:
    host, port = _host_port(url)
    if find_spec("grpc") is None or find_spec("google.protobuf") is None:
        raise _missing("grpcio and protobuf", url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = GrpcStorageProxy(host=host, port=port)
    try:
        storage.wait_server_ready(timeout=_GRPC_SECONDS)
    except ConnectionError as error:
        raise RunError(
            f"no gRPC proxy of Optuna answers at {url}; start one with optuna.storages.run_grpc_proxy_server"
        ) from error
    return storage


def _database(url: str) -> BaseStorage:
    if url.startswith("postgresql://") and find_spec("psycopg2") is None:
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)  # what we install
    arguments = {"connect_args": {"timeout": _SQLITE_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    if url.startswith("sqlite:///") and (path := url.removeprefix("sqlite:///").partition("?")[0]):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        return RDBStorage(url, engine_kwargs=arguments)
    except ImportError as error:
        raise _missing("psycopg" if url.startswith("postgresql") else "its driver", url) from error
    except (StorageInternalError, RuntimeError, ValueError) as error:
        raise _unreachable(url, error) from None
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy"):
            raise _unreachable(url, error) from None
        raise


def _host_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise RecipeError(f"{shown(url)} names no host and port; write grpc://HOST:PORT")
    return host, port


def _missing(package: str, url: str) -> MissingPackageError:
    return MissingPackageError(f'{shown(url)} needs {package}: pip install "hwnas[storage]"')


def _unreachable(url: str, error: Exception) -> RunError:
    cause = str(getattr(error, "orig", None) or error).strip().replace(url, shown(url))
    if re.search("[:/@]", (re.search(r"://[^:/@]*:(.*)@", url) or ["", ""])[1]):
        # drivers quote what they read
        cause = "signs like : / and @ in its password must be written as %3A, %2F and %40"
    return RunError(f"the storage {shown(url)} cannot be used: {cause}; is its server running, and the URL right?")
