"""Counts every LM call and stops the work where a budget ends. Owns: Budget, Ledger, roles.

Not here: MLflow (tracking.py). A Ledger hooks into DSPy at its two per-call points, both scoped by ``dspy.context``
and so safe under threads: the usage tracker (tokens; not called for cache hits) and the callbacks (time, failures).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from persona_dspy.core import Usage
from persona_dspy.errors import BudgetExceeded, InputError

__all__ = ["CALL_DRAFT", "Budget", "Ledger", "Role", "current_ledger", "reserved", "role"]

CALL_DRAFT: ContextVar[dict[str, Any] | None] = ContextVar("persona_call_draft", default=None)
"""What DSPy said of the LM call that a recorded LM is making here: ``usage``, ``entries`` of it, ``cost``."""
_RESERVED: ContextVar[bool] = ContextVar("persona_call_reserved", default=False)

Role = Literal["respond", "act", "loss", "update", "summarise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper bounds; None = no bound. ``calls`` LM calls, ``tokens`` input plus output, ``usd``, wall ``seconds``.

    Example:
        >>> Budget(calls=100).calls
        100
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "usd", "seconds"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"Budget.{name} {value!r}: expected 0 or more, or None for no bound")


_UNBOUND = Budget()
_OPTIONS = {
    (user, name): f" or --{'user-' * user}budget-{name}" for user in (False, True) for name in ("calls", "tokens")
}
_OPTIONS[False, "usd"] = " or --budget-usd"


class Ledger(BaseCallback):
    """What LM calls cost, by role, for one user (or, as ``parent``, for a whole fleet).

    A call is counted when its engine answered or failed, never for cache hits. ``check`` is called by the persona
    adapters before each call and raises once a bound is reached, so that work stops between calls. ``exceeded`` says
    which of this ledger's own bounds stopped something, or is empty.

    Example:
        >>> ledger = Ledger(budget=Budget(calls=100))
        >>> with ledger.recording():
        ...     pass  # whatever calls an LM
        >>> ledger.usage.calls, ledger.exceeded
        (0, '')
    """

    def __init__(
        self, *, user_id: str | None = None, budget: Budget | None = None, parent: Ledger | None = None
    ) -> None:
        self.user_id, self.budget, self.parent = user_id, budget or Budget(), parent
        self._lock = threading.Lock()
        self._by_role: dict[str, Usage] = {}
        self._open: dict[str, tuple[float, str, list[dict[str, Any]], Any]] = {}
        self._reserved = 0
        self._began = time.monotonic()
        self.exceeded = self._stopped = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        return self  # an account, not a value: a copy would split the count

    @contextmanager
    def recording(self) -> Generator[Ledger]:
        """Count every LM call made inside, in this thread and in those that copy its context."""
        callbacks = [c for c in dspy.settings.get("callbacks", []) if not isinstance(c, Ledger)]
        if dspy.settings.get("persona_calls") is None:  # recorded LMs report by themselves; a callback costs DSPy an
            callbacks.append(self)  # inspection of every module's and adapter's arguments
        with dspy.context(usage_tracker=self, callbacks=callbacks, persona_ledger=self):
            yield self

    @property
    def root(self) -> Ledger:
        """The account that all others add up in: the fleet's."""
        return self if self.parent is None else self.parent.root

    @property
    def ended(self) -> str:
        """Which bound, of this ledger's or of one above it, has stopped something; or empty."""
        return self.exceeded or (self.parent.ended if self.parent is not None else "")

    @property
    def usage(self) -> Usage:
        """All roles together."""
        with self._lock:
            return sum(self._by_role.values(), Usage())

    @property
    def by_role(self) -> dict[str, Usage]:
        """A copy of the totals per role."""
        with self._lock:
            return dict(self._by_role)

    def check(self, calls: int = 1, *, tokens: int = 0) -> None:
        """Reserve ``calls`` further LM calls, of at least ``tokens`` input tokens together.

        Raises:
            BudgetExceeded: a bound would be passed; nothing is reserved then.
        """
        with self._lock:
            if self._stopped:
                self.exceeded = self._stopped
                raise BudgetExceeded(f"stopped: {self._stopped}; what was finished is kept")
            if self.budget != _UNBOUND:
                self._afford(calls, tokens)
            self._reserved += calls
        if self.parent is not None:
            try:
                self.parent.check(calls, tokens=tokens)
            except BudgetExceeded:
                self._release(calls)
                raise

    def _afford(self, calls: int, tokens: int) -> None:
        spent, budget = sum(self._by_role.values(), Usage()), self.budget
        bounds = (
            ("calls", spent.calls + self._reserved + calls - (calls > 0), budget.calls),
            ("tokens", spent.tokens + tokens, budget.tokens),
            ("usd", spent.usd or 0.0, budget.usd),
            ("seconds", time.monotonic() - self._began, budget.seconds),
        )
        for name, used, bound in bounds:
            # nothing asked for: only what is wholly spent counts
            if bound is not None and (used >= bound if calls or not tokens else used > bound):
                who = f" of user {self.user_id!r}" if self.user_id else ""
                self.exceeded = name
                option = _OPTIONS.get((bool(self.user_id), name), "")
                raise BudgetExceeded(
                    f"budget{who}: {name} {round(used, 4)} of {bound} are spent; "
                    f"raise Budget({name}=...){option} to go on"
                )

    def _release(self, calls: int = 1) -> None:
        with self._lock:
            self._reserved = max(0, self._reserved - calls)

    def stop(self, why: str) -> None:
        """Let no further call begin: whoever works on this account ends before the next one, as with a spent budget."""
        self._stopped = why

    @property
    def stopping(self) -> str:
        """What ``stop`` was called with, or empty."""
        return self._stopped

    def settle(self) -> None:
        """Give back one reservation: the call it was for has ended (and was counted) or was not made."""
        self._release()
        if self.parent is not None:
            self.parent.settle()

    def report(self, draft: dict[str, Any], seconds: float, *, failed: bool) -> None:
        """A recorded LM's call has ended; ``draft`` is its ``CALL_DRAFT``."""
        named, entries = dspy.settings.get("persona_role", "respond"), draft.get("entries") or []
        if failed and not entries:
            self._add(named, Usage(calls=1, failures=1, seconds=seconds))
        else:
            self._add(named, _usage(entries or [{}], seconds, draft.get("cost")))

    def hit(self) -> None:
        """An answer that this run had already: no call."""
        self._add(dspy.settings.get("persona_role", "respond"), Usage(cache_hits=1))

    def replay(self, entry: dict[str, Any], seconds: float, usd: float | None) -> None:
        """An answer that an earlier, interrupted run paid for. The user's account counts it as the call it was, so
        that a resumed user costs, stops and reports as an uninterrupted one; the fleet's counts a cache hit."""
        named = dspy.settings.get("persona_role", "respond")
        paid = _usage([entry], seconds, usd)
        self._add(named, paid, above=Usage(cache_hits=1))

    # --- DSPy's hooks -------------------------------------------------------------------------------------------

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        with self._lock:
            self._open[call_id] = (time.monotonic(), dspy.settings.get("persona_role", "respond"), [], instance)

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """One entry per answer that an engine gave (DSPy's usage-tracker protocol)."""
        draft = CALL_DRAFT.get()
        if draft is not None:
            draft.setdefault("entries", []).append(dict(usage_entry))
            return
        with self._lock:
            opened = self._open.get(ACTIVE_CALL_ID.get() or "")
            if opened is not None:
                opened[2].append(dict(usage_entry))
                return
        self._add(dspy.settings.get("persona_role", "respond"), _usage([dict(usage_entry)], 0.0, None))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        with self._lock:
            opened = self._open.pop(call_id, None)
        if opened is None:
            return
        began, named, entries, lm = opened
        if exception is not None and not entries:
            self._add(named, Usage(calls=1, failures=1, seconds=time.monotonic() - began))
        elif not entries:
            self._add(named, Usage(cache_hits=1))
        else:
            self._add(named, _usage(entries, time.monotonic() - began, _cost(lm, outputs)))

    def get_total_tokens(self) -> dict[str, dict[str, Any]]:
        """DSPy's usage-tracker protocol; totals of this ledger under one name."""
        total = self.usage
        return {"all": {"prompt_tokens": total.input_tokens, "completion_tokens": total.output_tokens}}

    def _add(self, named: str, usage: Usage, *, above: Usage | None = None) -> None:
        """Count ``usage``; the ledgers above count ``above`` instead, where given."""
        with self._lock:
            self._by_role[named] = self._by_role.get(named, Usage()) + usage
        if self.parent is not None:
            self.parent.add(named, above or usage)

    def add(self, named: str, usage: Usage) -> None:
        """Count what was spent elsewhere, such as in another process."""
        self._add(named, usage)


def _usage(entries: list[dict[str, Any]], seconds: float, usd: float | None) -> Usage:
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


def _cost(lm: Any, outputs: Any) -> float | None:
    """DSPy's price of the call that returned ``outputs``: found in the LM's history by identity, not by position,
    since other threads append to it meanwhile. None where history is off or the model has no known price."""
    for entry in reversed(list(getattr(lm, "history", []) or [])[-64:]):
        if entry.get("outputs") is outputs:
            return entry.get("cost")
    return None


def current_ledger() -> Ledger | None:
    """The ledger whose ``recording()`` block this call is in."""
    return dspy.settings.get("persona_ledger")


@contextmanager
def reserved(tokens: int = 0) -> Generator[None]:
    """One LM call made inside is within the budget, or ``BudgetExceeded`` is raised; nested blocks reserve one call
    together. ``tokens``: what its prompt has at least."""
    ledger = current_ledger()
    if ledger is None:
        yield
        return
    if _RESERVED.get():
        ledger.check(0, tokens=tokens)
        yield
        return
    ledger.check(1, tokens=tokens)
    token = _RESERVED.set(True)
    try:
        yield
    finally:
        _RESERVED.reset(token)
        ledger.settle()


@contextmanager
def role(name: Role) -> Generator[None]:
    """LM calls inside count under ``name``."""
    with dspy.context(persona_role=name):
        yield
