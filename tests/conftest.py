"""What holds for every test: real local models are loaded once a session, and no unit test opens a socket."""

from __future__ import annotations

import socket
import sys
from collections.abc import Generator
from typing import Any

import pytest

# Tests that may talk to a server, or start what does. All others are unit tests.
MAY_CONNECT = {"model", "postgres", "ray", "notebook", "browser", "loopback"}
OPENS = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"}


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


def _model(name: str) -> Any:
    from persona_dspy.errors import PersonaError
    from persona_dspy.local_lm import local_lm

    pytest.importorskip("xllamacpp", reason="pip install 'persona-dspy[local]'")
    try:
        return local_lm(name, cache=False)
    except PersonaError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smol_lm() -> Any:
    """The 135M model without DSPy's cache; skips where its file is not in PERSONA_DSPY_MODELS."""
    return _model("smol")
