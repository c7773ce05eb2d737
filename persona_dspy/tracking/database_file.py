"""MLflow's SQLite file, made whole or not at all: its migrations take seconds, in which a process may end."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

from persona_dspy.core import temporary_folder

__all__ = ["absolute_uri", "file_of", "make_database", "opened_by", "set_aside_broken"]


def file_of(uri: str) -> Path | None:
    """The file of an SQLite URI; None where it is none.

    Example:
        >>> file_of("sqlite:///mlflow.db"), file_of("http://localhost:5000")
        (PosixPath('mlflow.db'), None)
    """
    if not uri.startswith("sqlite:///"):
        return None
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(name) if name and name != ":memory:" else None


def absolute_uri(uri: str) -> str:
    """The URI with its SQLite file named from the root: MLflow keeps connections by URI, and a relative one leads on to
    the folder in which it was opened first.

    Example:
        >>> absolute_uri("http://localhost:5000"), absolute_uri("sqlite:///m.db").endswith("/m.db")
        ('http://localhost:5000', True)
    """
    file = file_of(uri)
    _, has_options, options = uri.partition("?")
    return uri if file is None else f"sqlite:///{file.absolute()}{has_options}{options}"


def opened_by(uri: str) -> str:
    """The command that shows the runs of a file.

    Example:
        >>> opened_by("sqlite:///mlflow.db").endswith("mlflow ui --backend-store-uri sqlite:///mlflow.db")
        True
    """
    beside = Path(sys.executable).with_name("mlflow")
    program = "mlflow"
    if shutil.which("mlflow") is None and beside.exists():  # an environment that is not activated
        program = os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
    return f"{program} ui --backend-store-uri {shlex.quote(uri)}"


def make_database(file: Path) -> None:
    """An empty MLflow database at ``file``, made beside it; one that another process made meanwhile stays."""
    from mlflow.store.db.utils import (  # pyright: ignore[reportMissingTypeStubs]
        _initialize_tables,  # pyright: ignore[reportPrivateUsage]
        create_sqlalchemy_engine,
    )

    with temporary_folder(file.resolve().parent) as folder:
        made = folder / "mlflow.db"
        engine = create_sqlalchemy_engine(f"sqlite:///{made}")
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()
        with closing(sqlite3.connect(made)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        try:
            os.link(made, file)  # fails where there is one by now
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if not file.exists():
                os.replace(made, file)


def set_aside_broken(file: Path) -> Path | None:
    """Rename what an interrupted MLflow left of a new file, so that a whole one can be made; its new name, or None.

    Only a file in which MLflow's tables are not all made and no run stands is taken for one.
    """
    if not file.is_file() or not _is_half_made(file):
        return None
    aside = file.with_name(f"{file.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    os.replace(file, aside)
    for end in ("-wal", "-shm", "-journal"):
        beside = file.with_name(file.name + end)
        if beside.exists():
            os.replace(beside, aside.with_name(aside.name + end))
    return aside


def _is_half_made(file: Path) -> bool:
    from mlflow.store.db.utils import (  # pyright: ignore[reportMissingTypeStubs]
        _get_latest_schema_revision,  # pyright: ignore[reportPrivateUsage]
    )

    if file.stat().st_size == 0:
        return True
    try:
        with closing(sqlite3.connect(f"file:{file.resolve()}?mode=ro", uri=True, timeout=5)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and not tables & {"experiments", "runs", "alembic_version"}:
                return False  # somebody else's
            if "runs" in tables and connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                return False
            if "alembic_version" not in tables:
                return True
            version = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return version is None or version[0] != _get_latest_schema_revision()
    except sqlite3.Error:
        return False
