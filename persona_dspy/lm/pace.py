"""One pace for all calls of an LM, so that a provider's rate limit is met by waiting in turn and not by trying alone.

As long as hardly anything is refused, nothing waits. After a few refusals (429) all calls pause together, as long as
the provider says, and then begin one after the other at a rate that is found by bisection between one that held and one
that was refused. Where much slower calls are refused as often, the rate has no part in it, and each refused call
waits alone. While the LM is down, one call at a time tries whether it is back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

__all__ = ["Pace", "Turns", "pace_key", "pace_of", "set_turns", "turns_of"]

_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds, where the provider names none or less; doubled at each refusal in a row
_WINDOW, _CALLS = 1.0, 10  # the accepted rate is that of the last second, or of the last 10 calls where that is longer
_HELD = 2.0  # seconds at one rate without a refusal until it counts as accepted
_CLOSE = 1.03  # refused over accepted rate at which the search between them ends
_SEARCH_STEP, _SEARCH_EVERY = 1.25, 0.5  # raise of the first rate, and seconds between raises, until it is refused
_LARGEST_STEP = 1.3  # a rate that was found is raised by 3%, 6%, ... while nothing is refused
_CALM, _LONGEST_CALM = 80.0, 60.0  # so many pauses long nothing may be refused before that, and so many seconds at most
_FEW, _OF = 4, 100  # so many refusals of so many calls say nothing of the rate: those calls alone wait and try again
_LOWEST = 0.2  # calls a second
_SLOWER = 8.0  # how much slower calls have to be refused as often as before, in so many calls, ...
_SAMPLE, _AS_OFTEN, _OFTEN = 12, (0.7, 2.0), 0.25  # ... by these factors, and at least so often, to be taken for alike
_ALONE = (
    60.0  # seconds each refused call then waits alone, until it is tried anew whether slower calls are refused less
)
_DOWN = 5  # calls that fail in a row, without an answer, until the LM counts as down
_MAX_PROBES = 3  # tries whether a LM that is down is back; then each call tries for itself, and fails
_AHEAD = 0.2  # seconds; turns are not given further ahead, since the rate may change
_NAP = 0.5  # seconds between two looks whether the work was stopped
_PROBE_LASTS = 120.0  # seconds after which a call that tries whether the LM is back no longer keeps others from it


class Turns(Protocol):
    """What calls ask before they begin, and tell when they end: a ``Pace``, or one in another process."""

    def turn(self) -> tuple[bool, float]: ...

    def paused(self) -> bool: ...

    def answered(self) -> None: ...

    def refused(self, *, began: float, retry_after: float | None = None) -> None: ...

    def failed(self, *, began: float, retry_after: float | None = None) -> None: ...


class Pace:
    """When the next call may begin. Thread-safe. Times are those of ``clock``, in seconds.

    Example:
        >>> now = [0.0]
        >>> pace = Pace(clock=lambda: now[0])
        >>> pace.turn()
        (True, 0.0)
        >>> for _ in range(5):
        ...     pace.refused(began=0.0, retry_after=2.0)
        >>> pace.turn()
        (False, 0.5)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._rate: float | None = None  # calls a second; None = as many as come
        self._held_rate = self._refused_rate = 0.0  # 0 = unknown
        self._step, self._rate_since, self._waited = _SEARCH_STEP, 0.0, False
        self._begun: deque[float] = deque(maxlen=1000)  # when calls that were not refused began, by the unpaused clock
        self._paused_for = 0.0  # seconds in all
        self._paused_until = self._next = 0.0
        self._pause, self._pauses = _PAUSE, 0  # the last one's length; how many in a row, without an answer between
        self._calls, self._refusals = 0, deque[int](maxlen=_FEW)  # the numbers of calls at the last refusals
        self._fast, self._slow = deque[bool](maxlen=_OF), deque[bool](maxlen=_SAMPLE)  # whether calls were refused
        self._first_rate, self._alone_until = 0.0, float("-inf")
        self.last_answer = float("-inf")  # when a call of this process was answered last, by ``time.monotonic``
        self._failures, self._probes, self._probe_began = 0, 0, float("-inf")

    @property
    def rate(self) -> float | None:
        """Calls a second; None = no limit is known."""
        return self._rate

    def turn(self) -> tuple[bool, float]:
        """(whether the call has its turn, seconds until it begins); without one, seconds until it has to ask again."""
        with self._lock:
            now = self._clock()
            if now < self._paused_until:
                return False, min(self._paused_until - now, _NAP)
            if self._failures >= _DOWN and self._probes <= _MAX_PROBES:
                if now - self._probe_began < _PROBE_LASTS:
                    return False, _NAP
                self._probe_began = now
            elif self._rate is not None:
                self._raise_rate(now)
                begin = max(now, self._next)
                self._waited = self._waited or begin > now
                if begin - now > _AHEAD:
                    return False, _AHEAD
                self._next, self._calls = begin + 1.0 / self._rate, self._calls + 1
                self._begun.append(begin - self._paused_for)
                return True, begin - now
            self._calls += 1
            self._begun.append(now - self._paused_for)
            return True, 0.0

    def paused(self) -> bool:
        """Whether calls pause, those too that were given a turn some time ahead."""
        with self._lock:
            return self._clock() < self._paused_until

    def answered(self) -> None:
        """A call was answered."""
        with self._lock:
            self._note(refused=False)
            self._pauses = 0
            if self._probes:
                self._paused_until = self._clock()
        self._failures, self._probes, self._probe_began = 0, 0, float("-inf")

    def refused(self, *, began: float, retry_after: float | None = None, others: float = 0.0) -> None:
        """A call met a rate limit. It has to wait by itself too before it asks for its turn again.

        Args:
            began: when it began; one that began before the last pause ended is part of the same refusal.
            retry_after: the pause that the provider asks for, in seconds.
            others: calls a second that began elsewhere, where they did not ask here for their turn.
        """
        with self._lock:
            now = self._clock()
            if self._begun:
                self._begun.pop()
            if now < self._alone_until or began >= self._paused_until:
                self._note(refused=True)
            if now < self._alone_until:
                return
            if began < self._paused_until:
                if retry_after is not None:
                    self._pause_until(now, now + retry_after)
                return
            if self._is_refused_at_any_rate():
                self._leave_alone(now)
                return
            few = len(self._refusals) < _FEW or self._refusals[0] <= self._calls - _OF
            self._refusals.append(self._calls)
            if few:
                return
            default = min(_PAUSE * 2**self._pauses, _LONGEST_PAUSE)
            self._pause = max(default if retry_after is None else retry_after, _PAUSE)
            self._pauses += 1
            self._lower_rate(now, others)
            self._pause_until(now, now + self._pause)

    def failed(self, *, began: float, retry_after: float | None = None) -> None:
        """A call failed for another reason that may pass, such as a server error; ``began``: as in ``refused``."""
        with self._lock:
            now = self._clock()
            if began < self._paused_until:
                return
            self._failures += 1
            if self._failures < _DOWN or self._probes > _MAX_PROBES:
                return
            pause = 2.0**self._probes if retry_after is None else min(retry_after, _LONGEST_PAUSE)
            self._probes, self._probe_began = self._probes + 1, float("-inf")
            if self._probes <= _MAX_PROBES:
                self._pause_until(now, now + pause)

    def begun_rate(self) -> float:
        """Calls a second that began of late."""
        with self._lock:
            return self._measured_rate(self._clock() - self._paused_for)

    def _note(self, *, refused: bool) -> None:
        """Keeps what became of calls before there was a rate, and at rates much lower than the first one."""
        if self._rate is None or not self._first_rate:
            self._fast.append(refused)
        elif self._rate <= self._first_rate / _SLOWER:
            self._slow.append(refused)

    def _is_refused_at_any_rate(self) -> bool:
        """Whether calls that are made much slower are refused about as often."""
        if len(self._slow) < _SAMPLE:
            return False
        fast, slow = (sum(seen) / len(seen) for seen in (self._fast, self._slow))
        least, most = (factor * fast for factor in _AS_OFTEN)
        return max(least, _OFTEN) <= slow <= most

    def _leave_alone(self, now: float) -> None:
        """For some time refusals say nothing of the rate; then all begins anew."""
        self._alone_until, self._paused_until = now + _ALONE, now
        self._rate, self._held_rate, self._refused_rate, self._first_rate = None, 0.0, 0.0, 0.0
        self._step, self._pauses = _SEARCH_STEP, 0
        self._refusals.clear()
        self._fast.clear()
        self._slow.clear()

    def _pause_until(self, now: float, until: float) -> None:
        until = max(until, self._paused_until)
        self._paused_for += until - max(now, self._paused_until)
        self._paused_until = self._next = self._rate_since = until
        self._waited = False

    def _measured_rate(self, now: float) -> float:
        """By the clock that stands still while calls pause."""
        if not self._begun:
            return 0.0
        window = max(_WINDOW, now - self._begun[max(-_CALLS, -len(self._begun))])
        return sum(1 for at in self._begun if at > now - window) / window

    def _lower_rate(self, now: float, others: float) -> None:
        measured = self._measured_rate(now - self._paused_for) + others
        if self._rate is None:
            self._rate = self._first_rate = max(measured, 1.0)
            return
        self._refused_rate, self._step = self._rate, _CLOSE
        if now - self._rate_since >= _HELD:  # it was a little too high
            self._rate = self._held_rate = max(self._rate / _CLOSE, _LOWEST)
        else:
            lower = min(self._held_rate or self._rate, 0.9 * self._rate, measured)
            self._rate = self._held_rate = max(lower, _LOWEST)

    def _raise_rate(self, now: float) -> None:
        """Raise a rate that calls wait for and that was not refused for some time."""
        assert self._rate is not None
        found = 0.0 < self._refused_rate <= _CLOSE * 1.005 * self._rate
        calm = _SEARCH_EVERY if self._step == _SEARCH_STEP else _HELD
        calm = min(max(_CALM * self._pause, calm), _LONGEST_CALM) if found else calm
        if not self._waited or now - self._rate_since < calm:
            return
        self._held_rate = self._rate
        if self._refused_rate and not found:
            self._rate = (self._held_rate + self._refused_rate) / 2
        else:
            self._rate, self._refused_rate = self._rate * self._step, 0.0
            if self._step != _SEARCH_STEP:
                self._step = min(2 * self._step - 1, _LARGEST_STEP)
        self._rate_since, self._waited = now, False


def pace_key(lm: Any) -> str:
    """Which calls share a pace: those of one model at one address."""
    options = getattr(lm, "kwargs", {})
    return f"{getattr(lm, 'model', '')} {options.get('api_base') or options.get('base_url') or ''}"


@lru_cache(maxsize=64)
def pace_of(key: str) -> Pace:
    """This process's pace of a ``pace_key``."""
    return Pace()


_turns: list[Callable[[str], Turns]] = [pace_of]


def set_turns(turns: Callable[[str], Turns]) -> None:
    """From now on calls of this process ask ``turns(pace_key)``: for a worker whose pace another process keeps."""
    _turns[0] = turns


def turns_of(lm: Any) -> Turns:
    """Whom calls of ``lm`` ask for their turn."""
    return _turns[0](pace_key(lm))
