"""Flows written once, run by threads and by asyncio: a generator yields what is to be called and is sent the result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from persona_dspy.agent.on_loop import on_loop, wait_for

__all__ = ["Ask", "Blocking", "Steps", "adrive", "drive", "drop_last", "within_context"]

T = TypeVar("T")

_SENT_BACK = (AdapterParseError, dspy.ContextWindowExceededError)  # a flow may go on after these; others end it


class Work(Protocol):
    """What a flow yields."""

    def run(self) -> Any: ...

    async def arun(self) -> Any: ...


Steps = Generator[Work, Any, T]


@dataclass(frozen=True, slots=True)
class Ask:
    """A call of a DSPy module."""

    module: dspy.Module
    arguments: dict[str, Any] = field(default_factory=dict)
    positional: tuple[Any, ...] = ()

    def run(self) -> Any:
        return self.module(*self.positional, **self.arguments)

    async def arun(self) -> Any:
        return await self.module.acall(*self.positional, **self.arguments)


@dataclass(frozen=True, slots=True)
class Blocking:
    """A function that may take long without a coroutine of its own, such as an encoder: asyncio runs it in a thread."""

    function: Callable[[], Any]

    def run(self) -> Any:
        return wait_for(self.arun()) if on_loop() else self.function()

    async def arun(self) -> Any:
        return await asyncio.to_thread(self.function)


def drive(steps: Steps[T]) -> T:
    """Runs a flow in this thread and returns what it returns.

    An answer that cannot be parsed and a full context are raised inside the flow, which may go on; any other exception
    ends it.

    Example:
        >>> def flow():
        ...     first = yield Blocking(lambda: 20)
        ...     return first + (yield Blocking(lambda: 1))
        >>> drive(flow()), asyncio.run(adrive(flow()))
        (21, 21)
    """
    with closing(steps):
        proceed: Callable[[Any], Work] = steps.send
        value: Any = None
        while True:
            try:
                work = proceed(value)
            except StopIteration as end:
                return end.value
            try:
                proceed, value = steps.send, work.run()
            except _SENT_BACK as failure:
                proceed, value = steps.throw, failure


async def adrive(steps: Steps[T]) -> T:
    """``drive`` for asyncio: modules by ``acall``, blocking functions in a thread, so that the loop goes on."""
    with closing(steps):
        proceed: Callable[[Any], Work] = steps.send
        value: Any = None
        while True:
            try:
                work = proceed(value)
            except StopIteration as end:
                return end.value
            try:
                proceed, value = steps.send, await work.arun()
            except _SENT_BACK as failure:
                proceed, value = steps.throw, failure


def within_context(ask: Callable[[T], Steps[Any]], shown: T, shorten: Callable[[T], T | None]) -> Steps[Any]:
    """``ask(shown)``, and again with less while the LM's context is full.

    Args:
        shorten: ``shown`` without its least useful part; None where nothing is left to drop.

    Raises:
        ContextWindowExceededError: it does not fit with nothing left to drop.
    """
    while True:
        try:
            return (yield from ask(shown))
        except dspy.ContextWindowExceededError:
            less = shorten(shown)
            if less is None:
                raise
            shown = less


def drop_last(episodes: Sequence[T]) -> Sequence[T] | None:
    """Episodes, best first, without the least similar; None where there are none."""
    return episodes[:-1] if episodes else None
