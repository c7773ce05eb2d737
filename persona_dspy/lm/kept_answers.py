"""Answers that were paid for, kept per user until the user is finished, so that a killed run pays none of them twice.

Owns: ``UserCalls`` (one user's answers while the user is worked on), ``recorded(lm)`` (an LM that asks them first).
Not here: where answers are kept (call_folder.py), who is finished (fleet_folder.py), what calls cost (ledger.py).

DSPy's own disk cache knows no user and so cannot forget one: a recorded LM never uses it. A key is a digest of model,
messages and options, ``rollout_id`` included; where the LM has ``cache=False`` (each call is a sample of its own) the
n-th call of a key is answered by the n-th record. A record is in the file before the program sees the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import dspy
from dspy.clients.call_result import attributes

from persona_dspy.errors import StoreError
from persona_dspy.lm.answer_folder import CallLog
from persona_dspy.lm.calls import OpenCall, metering, open_call, parse_usage, replayed, take_over
from persona_dspy.lm.ledger import current_ledger, reserved

__all__ = ["UserCalls", "call_key", "recorded", "recording_calls", "unshared"]

_SECRET = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers", "timeout", "num_retries", "cache"})
_CHARS = 8  # a token has fewer characters on average: what is estimated with it is there at least


def call_key(model: str, prompt: Any, messages: Any, options: dict[str, Any]) -> str:
    """A digest of all that decides an answer: equal requests have equal keys, whatever the process or the address.

    Example:
        >>> call_key("m", "hello", None, {"api_key": "a"}) == call_key("m", "hello", None, {"api_key": "b"})
        True
    """
    kept = {name: value for name, value in options.items() if name not in _SECRET and value is not None}
    text = json.dumps([model, prompt, messages, kept], sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=256)
def _schema_of(form: Any) -> Any:
    return form.model_json_schema()


def _plain(value: Any) -> Any:
    """What JSON has no form for, by its content: never by its address, which differs between processes."""
    schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(schema):
        return _schema_of(value)
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else f"{type(value).__qualname__} {getattr(value, '__name__', '')}"


class UserCalls:
    """One user's answers while the user is worked on. Thread-safe; equal calls at the same time are made once.

    Args:
        log: where they are kept; None = only in memory, for this run.

    Attributes:
        failed: why the log refused a record; the answer is used all the same, since it was paid.
    """

    def __init__(self, user_id: str, log: CallLog | None = None) -> None:
        self.user_id, self.log = user_id, log
        self._kept: dict[str, dict[str, Any]] = {}
        self._flying: dict[str, Future[None]] = {}
        self._fresh: set[str] = set()  # kept before this run and not yet asked for in it
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.failed: StoreError | None = None
        for record in log.load(user_id) if log is not None else ():
            if record["key"] not in self._kept:
                self._kept[record["key"]] = record
                self._fresh.add(record["key"])

    def slot(self, key: str, *, sample: bool) -> str:
        """The key under which a call is kept; for samples the n-th call of a key has a slot of its own."""
        if not sample:
            return key
        with self._lock:
            self._asked[key] += 1
            return f"{key}.{self._asked[key]}"

    def find(self, slot: str) -> tuple[dict[str, Any] | None, bool, Future[None] | None]:
        """(record, whether it was paid before this run and is seen for the first time in it, what to wait for).

        (None, False, None): the caller makes the call, and ends with ``keep`` or ``give_up``.
        """
        with self._lock:
            record = self._kept.get(slot)
            if record is not None:
                first = slot in self._fresh
                self._fresh.discard(slot)
                return record, first, None
            flying = self._flying.get(slot)
            if flying is None:
                self._flying[slot] = Future()
            return None, False, flying

    def keep(self, slot: str, record: dict[str, Any]) -> None:
        """Keep an answer, on disk before anybody sees it. Where the disk refuses it, no further call may begin."""
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
        self.give_up(slot)

    def give_up(self, slot: str) -> None:
        """The call ended; whoever waits for it looks again."""
        with self._lock:
            flying = self._flying.pop(slot, None)
        if flying is not None:
            flying.set_result(None)


@contextmanager
def recording_calls(calls: UserCalls) -> Generator[UserCalls]:
    """Recorded LMs called inside answer from ``calls`` first and keep there what they had to ask."""
    with dspy.context(persona_calls=calls, disable_history=False):
        yield calls


def recorded(lm: Any) -> Any:
    """``lm`` as one that keeps its answers per user; what is no ``dspy.LM``, or is one already, comes back as it is.

    A light copy: engine and connections are shared. Outside of ``recording_calls`` it is a plain LM without a cache.
    Its history stays empty: a fleet's would fill the memory.
    """
    if not isinstance(lm, dspy.LM) or isinstance(lm, _Recorded):
        return lm
    twin = lm.copy()
    twin.__class__ = _recorded_class(type(lm))
    twin._samples, twin.cache = not lm.cache, False  # type: ignore[attr-defined]
    return twin


def unshared(lm: Any) -> Any:
    """``lm`` over connections of its own; itself where DSPy does not own them.

    Copies of an LM share DSPy's pool of connections, whose lock is held over a system call at each call: among 64
    threads it bounded a process at a third of what its CPU could do (docs/results/fleet.md).
    """
    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return lm
    twin = lm.copy()
    if type(twin) is not type(lm):  # a copy() that makes something else of it
        return lm
    dspy.LM.__setstate__(twin, {})  # what makes a pickled LM's connections anew, and changes nothing else
    return twin


class _Recorded:
    """Over ``dspy.LM``: looks up, asks, keeps."""

    _samples: bool
    model: str
    kwargs: dict[str, Any]

    def __call__(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        calls: UserCalls | None = dspy.settings.get("persona_calls")
        if calls is None:
            return super().__call__(prompt, messages=messages, **options)  # type: ignore[misc]
        if "request" in options or not isinstance(prompt, str | None):
            with metering(self, sent=False):
                return super().__call__(prompt, messages=messages, **options)  # type: ignore[misc]
        slot = self._slot(calls, prompt, messages, options)
        take_over()
        while True:
            record, first, flying = calls.find(slot)
            if record is not None:
                return _answer(self, record, first)
            if flying is None:
                break
            flying.result()
        try:
            with reserved(_tokens_at_least(prompt, messages)), metering(self) as call:
                outputs = super().__call__(prompt, messages=messages, **options)  # type: ignore[misc]
                calls.keep(slot, _record(call, outputs))
                return outputs
        finally:
            calls.give_up(slot)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        calls: UserCalls | None = dspy.settings.get("persona_calls")
        if calls is None:
            return await super().acall(prompt, messages=messages, **options)  # type: ignore[misc]
        if "request" in options or not isinstance(prompt, str | None):
            with metering(self, sent=False):
                return await super().acall(prompt, messages=messages, **options)  # type: ignore[misc]
        slot = self._slot(calls, prompt, messages, options)
        take_over()
        while True:
            record, first, flying = calls.find(slot)
            if record is not None:
                return _answer(self, record, first)
            if flying is None:
                break
            await asyncio.shield(asyncio.wrap_future(flying))  # whoever is cancelled here cancels nobody's call
        try:
            with reserved(_tokens_at_least(prompt, messages)), metering(self) as call:
                outputs = await super().acall(prompt, messages=messages, **options)  # type: ignore[misc]
                calls.keep(slot, _record(call, outputs))
                return outputs
        finally:
            calls.give_up(slot)

    def _slot(self, calls: UserCalls, prompt: Any, messages: Any, options: dict[str, Any]) -> str:
        samples = self._samples if options.get("cache") is None else not options["cache"]
        key = call_key(self.model, prompt, messages, {**self.kwargs, **options})
        options.pop("cache", None)
        return calls.slot(key, sample=samples)

    def update_history(self, entry: dict[str, Any]) -> None:
        """DSPy's last word on a call: usage and price, for the record and the ledger."""
        call = open_call()
        if call is not None and call.lm is self:
            call.history = {"usage": dict(entry.get("usage") or {}), "cost": entry.get("cost")}


@cache
def _recorded_class(base: type) -> type:
    return type(f"Recorded{base.__name__}", (_Recorded, base), {"__module__": __name__})


def _tokens_at_least(prompt: Any, messages: Any) -> int:
    """So that a prompt which alone would pass a bound on tokens, such as a poisoned user's huge text, is never sent."""
    texts = [prompt, *(m.get("content") for m in messages or ())]
    return sum(len(text) for text in texts if isinstance(text, str)) // _CHARS


def _record(call: OpenCall, outputs: Any) -> dict[str, Any]:
    usage, cost = call.history.get("usage") or {}, call.history.get("cost")
    return {"outputs": outputs, "usage": usage, "cost": cost, "seconds": round(call.seconds, 3)}


def _answer(lm: Any, record: dict[str, Any], first: bool) -> Any:
    """A kept answer, and its place in the ledger: paid in an earlier run, or asked twice in this one."""
    seconds, usd = float(record.get("seconds") or 0.0), record.get("cost")
    replayed(lm, parse_usage([record.get("usage") or {}], seconds=seconds, usd=usd) if first else None)
    return [attributes(output) for output in record["outputs"]]
