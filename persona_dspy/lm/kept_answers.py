"""Keeps the answers a user has paid for until the user is finished, so that a killed run pays for none of them twice.

A recorded LM never uses DSPy's disk cache, which does not know users and so cannot forget one. An answer's key is a
digest of model, messages and options, ``rollout_id`` included. Where the LM has ``cache=False`` each call is a sample
of its own: the n-th record of a key answers its n-th call. A record is on disk before the program sees the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import dspy
from dspy.clients.call_result import attributes
from dspy.utils.exceptions import LMError

from persona_dspy.core import remember
from persona_dspy.errors import StoreError
from persona_dspy.lm.answer_folder import CallLog
from persona_dspy.lm.calls import OpenCall, metering, open_call, parse_usage, replayed, take_over
from persona_dspy.lm.ledger import current_ledger, reserved
from persona_dspy.lm.tries import Tries

__all__ = ["UserCalls", "call_key", "recorded", "recording_calls", "unshared"]

_SECRET = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers", "timeout", "num_retries", "cache"})
_CHARS = 8  # more than a token has on average, so that estimates are lower bounds


def call_key(model: str, prompt: Any, messages: Any, options: dict[str, Any]) -> str:
    """A digest of everything that decides an answer: equal requests have equal keys in every process.

    Example:
        >>> call_key("m", "hello", None, {"api_key": "a"}) == call_key("m", "hello", None, {"api_key": "b"})
        True
    """
    deciding = {name: value for name, value in options.items() if name not in _SECRET and value is not None}
    text = json.dumps([model, prompt, messages, deciding], sort_keys=True, default=_content)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@remember(maxsize=256)
def _schema_of(form: Any) -> Any:
    return form.model_json_schema()


def _content(value: Any) -> Any:
    """A JSON form by content; ``str`` could give an address, which differs between processes."""
    schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(schema):
        return _schema_of(value)
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else f"{type(value).__qualname__} {getattr(value, '__name__', '')}"


class UserCalls:
    """One user's answers during a run. Thread-safe; equal calls at the same time are made once.

    Args:
        log: where answers are stored; None = only in memory, for this run.
        in_flight: entered for as long as a call is made or tried again, such as a semaphore that bounds how many of all
            users are in flight; asyncio does not wait for it.

    Attributes:
        failed: why the log refused a record; the answer is used all the same, since it was paid.
    """

    def __init__(
        self, user_id: str, log: CallLog | None = None, in_flight: AbstractContextManager[Any] | None = None
    ) -> None:
        self.user_id, self.log, self.in_flight = user_id, log, in_flight or nullcontext()
        self._kept: dict[str, dict[str, Any]] = {}
        self._pending: dict[str, Future[None]] = {}
        self._unused: set[str] = set()  # of an earlier run, not yet used in this one
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.failed: StoreError | None = None
        for record in log.load(user_id) if log is not None else ():
            if record["key"] not in self._kept:
                self._kept[record["key"]] = record
                self._unused.add(record["key"])

    def slot(self, key: str, *, sample: bool) -> str:
        """The key of an answer's record; for samples the n-th call of a key has a slot of its own."""
        if not sample:
            return key
        with self._lock:
            self._counts[key] += 1
            return f"{key}.{self._counts[key]}"

    def look_up(self, slot: str) -> tuple[dict[str, Any] | None, bool, Future[None] | None]:
        """(record, whether this is the first use of an earlier run's record, the pending call to wait for).

        (None, False, None): the caller makes the call, then calls ``keep`` or ``release``.
        """
        with self._lock:
            record = self._kept.get(slot)
            if record is not None:
                replay = slot in self._unused
                self._unused.discard(slot)
                return record, replay, None
            pending = self._pending.get(slot)
            if pending is None:
                self._pending[slot] = Future()
            return None, False, pending

    def keep(self, slot: str, record: dict[str, Any]) -> None:
        """Keep an answer, on disk before anybody sees it. Where the disk refuses it, further calls are refused."""
        record = {"key": slot, **record}
        try:
            if self.log is not None:
                self.log.add(self.user_id, record)
        except StoreError as failure:
            self.failed = failure
            ledger = current_ledger()
            if ledger is not None:
                ledger.root.stop("answers cannot be kept")
        with self._lock:
            self._kept[slot] = record
        self.release(slot)

    def release(self, slot: str) -> None:
        """End a pending call; those who wait for it look it up again."""
        with self._lock:
            pending = self._pending.pop(slot, None)
        if pending is not None:
            pending.set_result(None)


@contextmanager
def recording_calls(calls: UserCalls) -> Generator[UserCalls]:
    """Recorded LMs called inside answer from ``calls`` where they can, and keep new answers there."""
    with dspy.context(persona_calls=calls, disable_history=False):
        yield calls


def recorded(lm: Any) -> Any:
    """A copy of ``lm`` that keeps its answers per user. Recorded LMs and anything but a ``dspy.LM`` are returned as is.

    Copies share engine and connections. Outside of ``recording_calls`` it is a plain LM without a cache. Its history
    stays empty, since a fleet's would fill the memory.
    """
    if not isinstance(lm, dspy.LM) or isinstance(lm, _Recorded):
        return lm
    copied = lm.copy()
    copied.__class__ = _recorded_class(type(lm))
    copied._samples, copied.cache = not lm.cache, False  # type: ignore[attr-defined]
    copied._retries, copied.num_retries = lm.num_retries, 0  # type: ignore[attr-defined]
    return copied


def unshared(lm: Any) -> Any:
    """A copy of ``lm`` with connections of its own; ``lm`` itself where DSPy does not own them.

    Copies of an LM share DSPy's pool of connections, whose lock is held over a system call at each call: among 64
    threads it bounded a process at a third of what its CPU could do (docs/results/fleet.md).
    """
    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return lm
    copied = lm.copy()
    if type(copied) is not type(lm):  # a custom copy() that returns another class
        return lm
    dspy.LM.__setstate__(copied, {})  # opens new connections, as for a pickled LM, and changes nothing else
    return copied


class _Recorded:
    """Mixin over ``dspy.LM``: looks an answer up, or asks the LM and keeps the answer. It tries again by itself (see
    tries.py), since DSPy's own tries know nothing of other calls."""

    _samples: bool
    _retries: int
    model: str
    kwargs: dict[str, Any]

    def __call__(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        calls: UserCalls | None = dspy.settings.get("persona_calls")
        if calls is None:
            return self._ask(prompt, messages, options)
        if "request" in options or not isinstance(prompt, str | None):
            with metering(self, sent=False):
                return self._ask(prompt, messages, options)
        slot = self._slot(calls, prompt, messages, options)
        take_over()
        while True:
            record, replay, pending = calls.look_up(slot)
            if record is not None:
                return _answer(self, record, replay)
            if pending is None:
                break
            pending.result()
        try:
            with calls.in_flight, reserved(_tokens_at_least(prompt, messages), lm=self), metering(self) as call:
                outputs = self._ask(prompt, messages, options)
                calls.keep(slot, _record(call, outputs))
                return outputs
        finally:
            calls.release(slot)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        calls: UserCalls | None = dspy.settings.get("persona_calls")
        if calls is None:
            return await self._aask(prompt, messages, options)
        if "request" in options or not isinstance(prompt, str | None):
            with metering(self, sent=False):
                return await self._aask(prompt, messages, options)
        slot = self._slot(calls, prompt, messages, options)
        take_over()
        while True:
            record, replay, pending = calls.look_up(slot)
            if record is not None:
                return _answer(self, record, replay)
            if pending is None:
                break
            await asyncio.shield(asyncio.wrap_future(pending))  # cancelling the wait must not cancel the call
        try:
            with reserved(_tokens_at_least(prompt, messages), lm=self), metering(self) as call:
                outputs = await self._aask(prompt, messages, options)
                calls.keep(slot, _record(call, outputs))
                return outputs
        finally:
            calls.release(slot)

    def _ask(self, prompt: Any, messages: Any, options: dict[str, Any]) -> Any:
        tries = Tries(self, self._retries)
        while True:
            for seconds in tries.waits():
                time.sleep(seconds)
            try:
                outputs = super().__call__(prompt, messages=messages, **options)  # type: ignore[misc]
            except LMError as failure:
                tries.failed(failure)
            else:
                tries.answered()
                return outputs

    async def _aask(self, prompt: Any, messages: Any, options: dict[str, Any]) -> Any:
        tries = Tries(self, self._retries)
        while True:
            for seconds in tries.waits():
                await asyncio.sleep(seconds)
            try:
                outputs = await super().acall(prompt, messages=messages, **options)  # type: ignore[misc]
            except LMError as failure:
                tries.failed(failure)
            else:
                tries.answered()
                return outputs

    def _slot(self, calls: UserCalls, prompt: Any, messages: Any, options: dict[str, Any]) -> str:
        samples = self._samples if options.get("cache") is None else not options["cache"]
        key = call_key(self.model, prompt, messages, {**self.kwargs, **options})
        options.pop("cache", None)
        return calls.slot(key, sample=samples)

    def update_history(self, entry: dict[str, Any]) -> None:
        """Takes usage and price from DSPy, instead of a history."""
        call = open_call()
        if call is not None and call.lm is self:
            call.history = {"usage": dict(entry.get("usage") or {}), "cost": entry.get("cost")}


@cache
def _recorded_class(base: type) -> type:
    return type(f"Recorded{base.__name__}", (_Recorded, base), {"__module__": __name__})


def _tokens_at_least(prompt: Any, messages: Any) -> int:
    """A lower bound of a prompt's tokens: one that alone exceeds a budget (a hostile user's huge text) is not sent."""
    texts = [prompt, *(m.get("content") for m in messages or ())]
    return sum(len(text) for text in texts if isinstance(text, str)) // _CHARS


def _record(call: OpenCall, outputs: Any) -> dict[str, Any]:
    usage, cost = call.history.get("usage") or {}, call.history.get("cost")
    return {"outputs": outputs, "usage": usage, "cost": cost, "seconds": round(call.seconds, 3)}


def _answer(lm: Any, record: dict[str, Any], replay: bool) -> Any:
    """A kept answer, reported to the meter as a replay or as a cache hit."""
    seconds, usd = float(record.get("seconds") or 0.0), record.get("cost")
    replayed(lm, parse_usage([record.get("usage") or {}], seconds=seconds, usd=usd) if replay else None)
    return [attributes(output) for output in record["outputs"]]
