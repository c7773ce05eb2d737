"""How every command ends when it is told to: in order where that takes no longer than two seconds, else at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from persona_dspy.core import remove_own_folders

__all__ = ["at_the_latest", "ending_on_signals"]

_ORDERLY, _LAST_WORDS = 1.2, 0.6  # seconds: until waiting ends, then for what must be written
_INTERRUPTED = 130
_last_words: list[Callable[[], object]] = []


@contextmanager
def at_the_latest(*work: Callable[[], object]) -> Generator[None]:
    """Have ``work`` done before the process ends at once, because something inside does not return."""
    _last_words.extend(work)
    try:
        yield
    finally:
        for one in work:
            _last_words.remove(one)


@contextmanager
def ending_on_signals() -> Generator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt here; the process ends within two seconds, whatever hangs.

    A second signal ends it at once. In other threads than the first, where signals cannot be handled, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = threading.Event()

    def stop(_number: int, _frame: Any) -> None:
        if stopping.is_set():
            os._exit(_INTERRUPTED)
        stopping.set()
        threading.Thread(target=_end, daemon=True, name="ending").start()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if not stopping.is_set():  # else the next one still ends it at once
            for number, handler in before.items():
                signal.signal(number, handler)


def _end() -> None:
    threading.Event().wait(_ORDERLY)
    done = [threading.Thread(target=_quietly, args=(work,), daemon=True) for work in reversed(_last_words)]
    for thread in done:
        thread.start()
    threading.Event().wait(0.05)
    for thread in done:
        thread.join(_LAST_WORDS / max(1, len(done)))
    remove_own_folders()
    if _last_words:
        sys.stderr.write("persona-dspy: interrupted; what was finished is kept\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(_INTERRUPTED)


def _quietly(work: Callable[[], object]) -> None:
    with suppress(Exception):
        work()
