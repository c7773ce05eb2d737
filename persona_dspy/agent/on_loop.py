"""Runs code that was written for threads as an asyncio task: wherever it waits for an LM, a tool or a search, the loop
goes on (by greenlet)."""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import dspy
from greenlet import getcurrent, greenlet

from persona_dspy.agent.dspy_private import answers_on_a_loop

__all__ = ["awaited_lm", "on_loop", "run_all_on_loop", "run_on_loop", "wait_for"]

T = TypeVar("T")


class _Flow(greenlet):
    """A function that the loop's thread left where it began to wait, and goes on with later."""


async def run_on_loop(function: Callable[[], T]) -> T:
    """What ``function`` returns. It runs in this task, on the loop's thread; what it waits for by ``wait_for`` is
    awaited, and other tasks run meanwhile.

    Example:
        >>> def function():
        ...     return wait_for(asyncio.sleep(0, "awaited")) if on_loop() else "not on a loop"
        >>> asyncio.run(run_on_loop(function)), function()
        ('awaited', 'not on a loop')
    """
    task = getcurrent()
    flow = _Flow(function, task)
    flow.gr_context = task.gr_context  # one context for both: what the function sets, what it awaits sees
    value = flow.switch()
    while not flow.dead:
        try:
            result = await value
        except BaseException as failure:  # noqa: BLE001 - the function decides what to do, of a cancelled task too
            value = flow.throw(failure)
        else:
            value = flow.switch(result)
    return value


def on_loop() -> bool:
    """Whether this code runs inside ``run_on_loop``, so that it may ``wait_for`` an awaitable."""
    return isinstance(getcurrent(), _Flow)


def wait_for(awaitable: Awaitable[T]) -> T:
    """What ``awaitable`` gives; only inside ``run_on_loop``."""
    task = getcurrent().parent
    assert task is not None and on_loop(), "wait_for outside of run_on_loop"
    return task.switch(awaitable)


def run_all_on_loop(functions: Sequence[Callable[[], T]]) -> list[T]:
    """What all ``functions`` return, run as tasks beside each other; only inside ``run_on_loop``.

    Raises:
        Exception: that of the first function in order that raises, once all have ended.
    """

    async def run_all() -> list[T | BaseException]:
        return await asyncio.gather(*map(run_on_loop, functions), return_exceptions=True)

    results = wait_for(run_all())
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]  # no exception is among them


def awaited_lm(lm: Any) -> Any:
    """On a loop, ``lm`` as one whose calls are awaited; else ``lm`` itself. An LM that knows nothing of asyncio is
    asked in a thread."""
    if not on_loop() or not isinstance(lm, dspy.BaseLM) or isinstance(lm, _Awaited):
        return lm
    awaited = copy.copy(lm)
    awaited.__class__ = _awaited_class(type(lm))
    return awaited


class _Awaited:
    """Mixin over an LM: a call is awaited by the task that it is made in."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        call: Any = super()
        if answers_on_a_loop(self):
            return wait_for(call.acall(*args, **options))
        ask = partial(contextvars.copy_context().run, call.__call__, *args, **options)
        return wait_for(asyncio.to_thread(ask))


@lru_cache(maxsize=64)
def _awaited_class(base: type[dspy.BaseLM]) -> type[dspy.BaseLM]:
    return type(base.__name__, (_Awaited, base), {"__module__": __name__, "__qualname__": f"Awaited{base.__name__}"})
