"""Adds up what LM calls cost, by role, and stops the work where a budget ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dspy

from persona_dspy.core import Usage
from persona_dspy.errors import BudgetExceeded, InputError
from persona_dspy.lm.calls import LMCall, call_listeners, listening
from persona_dspy.lm.prices import check_price

__all__ = ["Budget", "Ledger", "current_ledger", "reserved"]

_RESERVED: ContextVar[bool] = ContextVar("persona_call_reserved", default=False)


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


class Ledger:
    """What LM calls cost, by role, for one user (or, as ``parent``, for a whole fleet).

    A call is counted when its engine answered or failed, never for cache hits. ``check`` is called by the persona
    adapters before each call and raises once a bound is reached, so that work stops between calls. ``exceeded`` is
    the bound of this ledger that stopped work, or empty.

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
        self._reserved = 0
        self._began = time.monotonic()
        self.exceeded = self._stopped = ""

    def __deepcopy__(self, memo: dict[int, object]) -> Ledger:
        return self  # a copy would split the count

    @contextmanager
    def recording(self) -> Generator[Ledger]:
        """Count every LM call made inside, in this thread and in those that copy its context."""
        others = [listener for listener in call_listeners() if not isinstance(listener, Ledger)]
        callbacks = dspy.settings.get("persona_calls") is None  # recorded LMs report by themselves; a callback costs
        with listening(self, *others, callbacks=callbacks), dspy.context(persona_ledger=self):  # DSPy an inspection of
            yield self  # every module's and adapter's arguments

    @property
    def root(self) -> Ledger:
        """The topmost ledger, the fleet's, in which all others add up."""
        return self if self.parent is None else self.parent.root

    @property
    def ended(self) -> str:
        """The bound, of this ledger or of one above it, that has stopped work; or empty."""
        return self.exceeded or (self.parent.ended if self.parent is not None else "")

    @property
    def usd_bound(self) -> float | None:
        """The bound in US dollars, of this ledger or of one above it."""
        above = self.parent.usd_bound if self.parent is not None else None
        return self.budget.usd if self.budget.usd is not None else above

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
            # A check for 0 calls fails only once the budget is used up.
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
        """Refuse every further call, as a spent budget does. ``why`` becomes part of the error."""
        self._stopped = why

    @property
    def stopping(self) -> str:
        """The reason given to ``stop``, or empty."""
        return self._stopped

    def settle(self) -> None:
        """Release one reservation: its call has ended (and was counted) or was not made."""
        self._release()
        if self.parent is not None:
            self.parent.settle()

    def call_ended(self, call: LMCall) -> None:
        """Count an LM call. One that an earlier run paid for costs a user what it cost then, so that a resumed user
        stops and reports as an uninterrupted one; for the ledgers above it is a cache hit."""
        if call.outcome == "replayed":
            self._add(call.role, call.usage, above=Usage(cache_hits=1))
        else:
            self.add(call.role, call.usage)

    def _add(self, role: str, usage: Usage, *, above: Usage | None = None) -> None:
        """Count ``usage``; the ledgers above count ``above`` instead, unless it is None."""
        with self._lock:
            self._by_role[role] = self._by_role.get(role, Usage()) + usage
        if self.parent is not None:
            self.parent.add(role, above or usage)

    def add(self, role: str, usage: Usage) -> None:
        """Count ``usage``, such as that of another process."""
        self._add(role, usage)


def current_ledger() -> Ledger | None:
    """The ledger of the innermost ``recording()`` block."""
    return dspy.settings.get("persona_ledger")


@contextmanager
def reserved(tokens: int = 0, *, lm: Any = None) -> Generator[None]:
    """Reserve one LM call in the budget, or raise ``BudgetExceeded``. Nested blocks reserve one call together.

    Args:
        tokens: a lower bound of its prompt's length.
        lm: what is called: under a budget in US dollars its price has to be known.

    Raises:
        InputError: it is not.
    """
    ledger = current_ledger()
    if ledger is not None and lm is not None:
        check_price(lm, ledger.usd_bound)
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
