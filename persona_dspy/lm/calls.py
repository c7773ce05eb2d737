"""The meter around an LM call: it sees each call begin and end, and reports to its listeners what the call cost.

DSPy reports usage to a usage tracker (not for cache hits), begin and end to callbacks, and the price in the LM's
history. Callbacks slow every module and adapter, so fleets and answers without tools do without them: there, recorded
LMs (``metering``) or the persona adapters (``adapter_call``) say when a call begins and ends. Where several of them see
one call, the one nearest to the LM reports it. A call that none of them sees is reported by its usage alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import dspy
from dspy.utils.callback import BaseCallback

from persona_dspy.core import Usage
from persona_dspy.lm.prices import known_price

__all__ = [
    "CallListener",
    "LMCall",
    "OpenCall",
    "Role",
    "adapter_call",
    "call_listeners",
    "listening",
    "metering",
    "open_call",
    "parse_usage",
    "prompt_ready",
    "replayed",
    "reply_ready",
    "role",
    "take_over",
]

Role = Literal["respond", "act", "portrait", "loss", "update", "judge", "summarise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LMCall:
    """One LM call that has ended.

    Args:
        outcome: ``"failed"``: the engine raised before it reported usage. ``"cached"``: no engine was asked.
            ``"replayed"``: an earlier, interrupted run paid for the answer.
        began: when, by ``time.perf_counter()``.
        seconds: wall time of the call, cache hits included.
        usage: what it cost; of a replayed call, what it had cost then.
        raised: the call ended with an exception; an engine may have reported usage before.
    """

    outcome: Literal["answered", "failed", "cached", "replayed"]
    model: str
    role: str
    began: float
    seconds: float
    usage: Usage
    raised: bool = False


class CallListener(Protocol):
    """Gets each LM call made inside ``listening``, in the thread that made the call; must not raise."""

    def call_ended(self, call: LMCall) -> None: ...


def parse_usage(entries: Sequence[Mapping[str, Any]], *, seconds: float = 0.0, usd: float | None = None) -> Usage:
    """The sum of DSPy's usage entries, one call each; missing counts are 0.

    Example:
        >>> parse_usage([{"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}]).cached_tokens
        4
    """
    total = Usage(seconds=seconds, usd=usd)
    for entry in entries:
        details = entry.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") if isinstance(details, dict) else getattr(details, "cached_tokens", 0)
        total += Usage(
            calls=1,
            input_tokens=entry.get("prompt_tokens") or 0,
            output_tokens=entry.get("completion_tokens") or 0,
            cached_tokens=cached or 0,
        )
    return total


@contextmanager
def role(name: Role) -> Generator[None]:
    """LM calls inside count under ``name``."""
    with dspy.context(persona_role=name):
        yield


class OpenCall:
    """An LM call under way.

    Attributes:
        began: ``time.perf_counter()`` at its beginning; None while it has not begun, and once it is reported.
        entries: usage that DSPy reported to its usage tracker.
        history: DSPy's entry for the LM's history: full usage, and the price as ``cost``; empty where unknown.
    """

    __slots__ = ("began", "call_id", "entries", "history", "lm", "outer", "role")

    def __init__(self, lm: Any, *, call_id: str = "", began: bool = True) -> None:
        self.lm, self.call_id, self.role = lm, call_id, _current_role()
        self.outer = _OPEN.get()
        self.entries: list[dict[str, Any]] = []
        self.history: dict[str, Any] = {}
        self.began: float | None = None
        if began:
            self.begin()

    def begin(self) -> None:
        self.began, self.entries = time.perf_counter(), []

    @property
    def seconds(self) -> float:
        """Since it began."""
        return 0.0 if self.began is None else time.perf_counter() - self.began

    def end(self, *, raised: bool = False, sent: bool = False) -> None:
        """Report the call, at most once. ``sent``: an engine was asked, so it is no cache hit."""
        if self.began is None:
            return
        began, seconds, self.began = self.began, self.seconds, None
        entries = self.entries or ([self.history.get("usage") or {}] if sent and not raised else [])
        if entries:
            outcome, usage = "answered", parse_usage(entries, seconds=seconds, usd=self.history.get("cost"))
            if usage.usd is None:  # no entry in a history: by the prices that DSPy knows
                usage = replace(usage, usd=known_price(self.lm, usage.input_tokens, usage.output_tokens))
        elif raised:
            outcome, usage = "failed", Usage(calls=1, failures=1, seconds=seconds)
        else:
            outcome, usage = "cached", Usage(cache_hits=1)
        model = str(getattr(self.lm, "model", ""))
        _report(
            LMCall(
                outcome=outcome, model=model, role=self.role, began=began, seconds=seconds, usage=usage, raised=raised
            )
        )


_OPEN: ContextVar[OpenCall | None] = ContextVar("persona_open_call", default=None)


def _current_role() -> str:
    return dspy.settings.get("persona_role") or "respond"


def call_listeners() -> tuple[CallListener, ...]:
    """The listeners of LM calls made here."""
    return dspy.settings.get("persona_listeners") or ()


def _report(call: LMCall) -> None:
    for listener in call_listeners():
        listener.call_ended(call)


@contextmanager
def listening(*listeners: CallListener, tracker: Any = None, callbacks: bool | None = None) -> Generator[None]:
    """Report LM calls made inside to ``listeners`` alone; in this thread, and in those that copy its context.

    Args:
        tracker: a DSPy usage tracker that gets usage as well.
        callbacks: whether the meter is one of DSPy's callbacks inside; None = as outside.
    """
    context: dict[str, Any] = {"persona_listeners": listeners, "usage_tracker": Meter(_inner_tracker(tracker))}
    if callbacks is not None:
        others = [c for c in dspy.settings.get("callbacks") or [] if not isinstance(c, Meter)]
        context["callbacks"] = [*others, Meter()] if callbacks else others
    with dspy.context(**context):
        yield


class Meter(BaseCallback):
    """The meter as DSPy sees it: a usage tracker over another one, and a callback."""

    def __init__(self, tracker: Any = None) -> None:
        self.tracker = tracker

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self  # DSPy copies trackers for threads: a copy of the inner one would lose usage

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """One entry for each answer that an engine gave."""
        call = _OPEN.get()
        if call is not None and call.began is not None:
            call.entries.append(dict(usage_entry))
        else:
            usage = parse_usage([usage_entry])
            now = time.perf_counter()
            _report(LMCall(outcome="answered", model=lm, role=_current_role(), began=now, seconds=0.0, usage=usage))
        if self.tracker is not None:
            self.tracker.add_usage(lm, usage_entry)

    @property
    def usage_data(self) -> Any:
        """Where a tracker that was opened inside writes its entries when it closes; they are counted by then."""
        return defaultdict(list) if self.tracker is None else self.tracker.usage_data

    def get_total_tokens(self) -> dict[str, dict[str, Any]]:
        """What the tracker behind the meter has counted."""
        return {} if self.tracker is None else self.tracker.get_total_tokens()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        call = _OPEN.get()
        if call is not None and call.lm is instance and not call.call_id and not isinstance(call, _AdapterCall):
            return  # inside ``metering``
        take_over()
        _OPEN.set(OpenCall(instance, call_id=call_id))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        call = _OPEN.get()
        if call is None or call.call_id != call_id:
            return
        _OPEN.set(call.outer)
        call.history = _history_entry(call.lm, outputs) if exception is None else {}
        bypassed = not isinstance(dspy.settings.get("usage_tracker"), Meter)  # by a tracker of the program's own
        call.end(raised=exception is not None, sent=bypassed and bool(call.history.get("usage")))


def _inner_tracker(tracker: Any) -> Any:
    return tracker.tracker if isinstance(tracker, Meter) else tracker


def _history_entry(lm: Any, outputs: Any) -> dict[str, Any]:
    """DSPy's history entry of the call that returned ``outputs``: found by identity, not by position, since other
    threads append to the history meanwhile. Empty where history is off."""
    for entry in reversed(list(getattr(lm, "history", []) or [])[-64:]):
        if entry.get("outputs") is outputs:
            return entry
    return {}


@contextmanager
def _metered_tracker() -> Generator[None]:
    """Makes the meter the usage tracker inside, around the tracker that a program has opened for itself."""
    tracker = dspy.settings.get("usage_tracker")
    if isinstance(tracker, Meter) or not call_listeners():
        yield
        return
    with dspy.context(usage_tracker=Meter(tracker)):
        yield


# --- A recorded LM's calls -------------------------------------------------------------------------------------------


@contextmanager
def metering(lm: Any, *, sent: bool = True) -> Generator[OpenCall]:
    """Meter the one call of ``lm`` inside. ``sent``: an engine is asked; False where DSPy's cache may answer."""
    take_over()
    call, raised = OpenCall(lm), True
    token = _OPEN.set(call)
    try:
        with _metered_tracker():
            yield call
        raised = False
    finally:
        _OPEN.reset(token)
        call.end(raised=raised, sent=sent)


def open_call() -> OpenCall | None:
    """The LM call under way."""
    return _OPEN.get()


def take_over() -> None:
    """From here on the LM reports its call itself, so the adapter does not."""
    call = _OPEN.get()
    if isinstance(call, _AdapterCall):
        call.began = None


def replayed(lm: Any, usage: Usage | None) -> None:
    """Report an answer that was kept instead of a call. ``usage``: what it cost the earlier run that paid for it; None
    where this run has counted it before."""
    outcome = "cached" if usage is None else "replayed"
    model, now = str(getattr(lm, "model", "")), time.perf_counter()
    usage = usage or Usage(cache_hits=1)
    _report(LMCall(outcome=outcome, model=model, role=_current_role(), began=now, seconds=0.0, usage=usage))


# --- An adapter's calls ----------------------------------------------------------------------------------------------


class _AdapterCall(OpenCall):
    """An LM call as its adapter sees it: open from the prompt's end to the reply, unless the LM reports by itself."""

    __slots__ = ()


@contextmanager
def adapter_call(lm: Any) -> Generator[None]:
    """Meter an adapter's work on one predictor's call: prompt, LM call, parsing. A fallback's work is nested in it."""
    if not call_listeners():
        yield
        return
    call = _AdapterCall(lm, began=False)
    token = _OPEN.set(call)
    try:
        with _metered_tracker():
            yield
    except BaseException:
        call.end(raised=True)
        raise
    finally:
        _OPEN.reset(token)


def prompt_ready() -> None:
    """The adapter's prompt is ready: the LM call begins."""
    call = _OPEN.get()
    if isinstance(call, _AdapterCall):
        call.begin()


def reply_ready() -> None:
    """The adapter has the LM's reply: the LM call has ended."""
    call = _OPEN.get()
    if isinstance(call, _AdapterCall):
        call.end()
