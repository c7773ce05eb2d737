"""What holds for every test: real local models are loaded once a session, an MLflow file is made once for all workers,
and no unit test opens a socket."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import urllib3.util.connection  # noqa: F401 - binds [::1] once, at its first import: not in the middle of a test
from hypothesis import settings

# Tests that may talk to a server, or start what does. All others are unit tests.
MAY_CONNECT = {"model", "postgres", "ray", "notebook", "browser", "loopback"}
OPENS = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"}


os.environ.setdefault(
    "LITELLM_LOCAL_MODEL_COST_MAP", "True"
)  # or DSPy fetches prices once a process, whoever asks first


# Examples a property test tries: some on each run, many in CI (HYPOTHESIS_PROFILE=thorough). No deadline: a machine may
# be busy.
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("thorough", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


class _Wire:
    """Which sockets a unit test tried to open; None while the running test may."""

    tried: list[str] | None = None


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Python's audit hook: whoever opens a socket, in whichever thread, is refused and remembered."""
    if event in OPENS and _Wire.tried is not None and getattr(args[0], "family", None) != socket.AF_UNIX:
        what = f"{event} {args[1] if hasattr(args[0], 'family') else args[0]!r}"
        _Wire.tried.append(what)
        raise RuntimeError(f"a unit test opened a socket: {what}; expected a fake, or a marker (tests/conftest.py)")


def pytest_configure() -> None:
    sys.addaudithook(_watch)  # NOTE can't be removed again: it does nothing between tests


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fixtures of every scope run inside; an attempt that the code under test swallowed fails the test all the same."""
    _Wire.tried = None if any(item.get_closest_marker(m) for m in MAY_CONNECT) else []
    try:
        return (yield)
    finally:
        _Wire.tried = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    yield
    assert not _Wire.tried, f"a unit test opened a socket: {_Wire.tried}"


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to be copied: its migrations take seconds, so that xdist's workers share one."""
    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if os.environ.get("PYTEST_XDIST_WORKER") else mine
    file = shared / "empty-mlflow.db"
    with (shared / "empty-mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            from mlflow import MlflowClient

            made = shared / "making-mlflow.db"
            MlflowClient(f"sqlite:///{made}").search_experiments()
            made.rename(file)
    return file


def _model(name: str) -> Any:
    from persona_dspy.errors import PersonaError
    from persona_dspy.lm.local.engine import local_lm

    pytest.importorskip("xllamacpp", reason="pip install 'persona-dspy[local]'")
    try:
        return local_lm(name, cache=False)
    except PersonaError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smol_lm() -> Any:
    """The 135M model without DSPy's cache; skips where its file is not in PERSONA_DSPY_MODELS."""
    return _model("smol")
