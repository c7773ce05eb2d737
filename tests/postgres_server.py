"""A real PostgreSQL for tests: a fresh cluster on a free port of 127.0.0.1, removed afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["new_database", "running_server"]


def _programs() -> Path:
    """The folder with initdb and pg_ctl; Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: -float(p.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.skip("PostgreSQL is not installed: no initdb in /usr/lib/postgresql/*/bin or on the PATH")
    pytest.importorskip("psycopg", reason="pip install 'persona-dspy[postgres]'")
    return (found[0] if found else Path(str(on_path)).resolve()).parent


def _as_other_user() -> tuple[list[str], int]:
    """initdb refuses root: the words that run a command as somebody else, and who that is."""
    if os.geteuid() != 0:
        return [], os.geteuid()
    names = {entry.pw_name for entry in pwd.getpwall()}
    name = "postgres" if "postgres" in names else "nobody"
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL refuses root and setpriv is not installed to run it as another user")
    who = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"], who.pw_uid


@contextmanager
def running_server() -> Iterator[str]:
    """The URL of a running server's database ``postgres``; a non-C locale, so that collations could bite."""
    programs = _programs()
    prefix, owner = _as_other_user()
    folder = Path(tempfile.mkdtemp(prefix="persona-pg-"))
    try:
        os.chown(folder, owner, -1)
        data, log = folder / "data", folder / "log"
        locale = ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8", "--encoding=UTF8"]
        initdb = [*prefix, programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"]
        if subprocess.run([*initdb, *locale], capture_output=True, cwd=folder).returncode:  # built without ICU
            shutil.rmtree(data, ignore_errors=True)
            subprocess.run([*initdb, "--encoding=UTF8"], capture_output=True, check=True, cwd=folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        control = [*prefix, programs / "pg_ctl", "-D", data]
        subprocess.run(
            [*control, "-l", log, "-o", options, "-w", "start"], check=True, stdout=subprocess.DEVNULL, cwd=folder
        )
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "-w", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str, name: str) -> str:
    """The URL of a new, empty database on a running server."""
    import psycopg

    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.rpartition("/")[0] + "/" + name
