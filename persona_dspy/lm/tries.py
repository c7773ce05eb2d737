"""The tries of one LM call: when it may begin, and whether it is tried again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from dspy.utils.exceptions import LMRateLimitError, is_retryable_lm_error

from persona_dspy.lm.ledger import current_ledger
from persona_dspy.lm.pace import pace_key, pace_of, turns_of

__all__ = ["Tries", "retry_hint"]

_GIVE_UP = 300.0  # seconds of refusals in which no call is answered, or of the pause that the provider asks for
_NAP = 0.5  # seconds between two looks whether the work was stopped
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s|)")


class Tries:
    """One call of ``lm``, tried until it is answered or its failure is final. A rate limit is waited for as long as
    other calls are answered, and five minutes longer; other failures that may pass are tried ``retries`` times again.
    With ``retries`` 0 nothing is tried again.

    Example:
        >>> import dspy
        >>> tries = Tries(dspy.LM("openai/gpt-4o-mini"), retries=3)
        >>> sum(tries.waits())
        0
        >>> tries.answered()
    """

    def __init__(self, lm: Any, retries: int) -> None:
        self._turns, self._retries = turns_of(lm), retries
        self._own = pace_of(pace_key(lm))  # of this process, whoever gives the turns
        self._failures, self._delay, self._began = 0, 0.0, 0.0
        self._refused_since: float | None = None

    def waits(self) -> Iterator[float]:
        """Seconds to sleep, one nap after the other, until the next try may begin.

        Raises:
            BudgetExceeded: the work was stopped meanwhile.
        """
        while self._delay > 0.0:
            _raise_if_stopped()
            yield min(self._delay, _NAP)
            self._delay -= _NAP
        while True:
            begins, seconds = self._turns.turn()
            if seconds:
                _raise_if_stopped()
                yield seconds
            if begins and not (seconds and self._turns.paused()):
                self._began = time.monotonic()
                return

    def answered(self) -> None:
        """The try was answered."""
        self._own.last_answer = time.monotonic()
        self._turns.answered()

    def failed(self, failure: Exception) -> None:
        """Raises ``failure`` where no further try is to be made."""
        if self._retries == 0 or not is_retryable_lm_error(failure):
            raise failure
        hint = retry_hint(failure)
        if isinstance(failure, LMRateLimitError):
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            self._turns.refused(began=self._began, retry_after=hint)
            unanswered_since = max(self._refused_since, self._own.last_answer)
            if max(hint or 0.0, now - unanswered_since) > _GIVE_UP:
                raise failure
            self._delay = _NAP if hint is None else hint
            return
        self._failures += 1
        self._turns.failed(began=self._began, retry_after=hint)
        if self._failures > self._retries:
            raise failure
        self._delay = min(2.0 ** (self._failures - 1), 60.0) if hint is None else hint


def retry_hint(failure: Exception) -> float | None:
    """Seconds to wait that the provider names: ``Retry-After``, or when a limit that is used up is reset
    (``x-ratelimit-remaining-requests: 0``, ``x-ratelimit-reset-requests: 1m2.5s``); None where it names none.

    Example:
        >>> failure = LMRateLimitError("slow down", retry_after=2.0)
        >>> retry_hint(failure)
        2.0
    """
    hint: float | None = getattr(failure, "retry_after", None)
    if hint is not None:
        return hint
    headers = getattr(failure, "rate_limit_headers", None) or {}
    resets = [
        _seconds(headers.get(f"x-ratelimit-reset-{kind}", ("",))[0])
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}", ("",))[0] == "0"
    ]
    return max((seconds for seconds in resets if seconds is not None), default=None)


def _seconds(text: str) -> float | None:
    """A duration such as "20ms", "1m2.5s" or "3" (seconds); None where it is none, such as a date."""
    parts = _DURATION.findall(text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _raise_if_stopped() -> None:
    ledger = current = current_ledger()
    while ledger is not None:
        if ledger.stopping and current is not None:
            current.check(0)
        ledger = ledger.parent
