"""Alignment in the background: which users are due, who aligns them, one process at a time."""

from __future__ import annotations

import contextvars
import logging
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from persona_dspy.errors import StoreError
from persona_dspy.store import DueUser, Lease, Store

__all__ = ["Alignments", "Outcome", "Pace"]

_log = logging.getLogger(__name__)
_OUTCOMES = 1024  # of the latest users
_LONGEST_RETRY = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a process looks at the store, and how long it waits; all in seconds.

    Args:
        poll: between two looks for due users, queued interactions and a store that failed.
        lease: a process that has not said for so long that it is alive loses the users it aligns.
        retry: from a failed alignment to the next attempt; twice as long after each further failure, an hour at most.
    """

    poll: float = 1.0
    lease: float = 30.0
    retry: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one alignment ended. ``version``: current when it ended, None = no version yet; ``changed``: it made that
    version; ``error``: why it failed, or empty; ``note``: why its result was not kept, or empty; ``unread``: nothing
    that the LM wrote could be read, so that only what code counts was learned."""

    user_id: str
    version: int | None
    changed: bool
    error: str = ""
    note: str = ""
    unread: bool = False


@dataclass(slots=True)
class _Request:
    context: contextvars.Context
    over: DueUser | None = None  # whose lease to take over


class Alignments:
    """Aligns due users in threads of its own, and those whose process died.

    Args:
        align: aligns the user of a lease and gives the lease back; called in one of ``workers`` threads; raises
            nothing.
        every: interactions that make a user due.
        chores: called between two looks at the store, in the thread that looks.
        on_done: called with each outcome, in the thread that aligned; must not raise.
    """

    def __init__(
        self,
        store: Store,
        align: Callable[[Lease], Outcome],
        *,
        every: int,
        workers: int,
        pace: Pace,
        chores: Callable[[], None],
        on_done: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._store, self._align, self._every, self._chores = store, align, every, chores
        self._on_done = on_done
        self._workers, self.pace = workers, pace
        self._state = threading.Condition()
        self._requests: OrderedDict[str, _Request] = OrderedDict()
        self._running: dict[str, Lease | None] = {}
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()
        self._observing: Counter[str] = Counter()
        self._seen: dict[str, tuple[DueUser, float]] = {}  # since when a due user has looked like this
        self._threads: list[threading.Thread] = []
        self._context = contextvars.copy_context()
        self.closed = self._stopped = False  # closed: nobody new is aligned; stopped: nor is anything looked at

    def request(self, user_id: str, *, over: DueUser | None = None, context: contextvars.Context | None = None) -> None:
        """Align a user soon where nobody else does; does not wait."""
        with self._state:
            if self.closed or user_id in self._running or user_id in self._requests:
                return
            self._requests[user_id] = _Request(context or self._context.copy(), over)
            self._state.notify_all()

    @contextmanager
    def observing(self, user_id: str) -> Generator[None]:
        """Around an interaction that may make a user due, and its ``request``: the context of that request counts,
        not that in which this object was made."""
        with self._state:
            self._observing[user_id] += 1
        try:
            yield
        finally:
            with self._state:
                self._observing[user_id] -= 1
                self._observing += Counter()  # drops zeros

    def start(self) -> None:
        """Start the threads, once; those of a process that forked are not its children's."""
        with self._state:
            if self._threads or self.closed:
                return
            work = [(self._work, f"persona-alignment-{n}") for n in range(self._workers)]
            for target, name in (*work, (self._look, "persona-due-users")):
                self._threads.append(threading.Thread(target=target, name=name, daemon=True))
            for thread in self._threads:
                thread.start()

    def align_now(self, user_id: str, timeout: float) -> Outcome | None:
        """Align a user in this thread, whatever is due; None where another went on aligning it for ``timeout`` s."""
        until, first = time.monotonic() + timeout, None
        while True:
            with self._state:
                free = user_id not in self._running
                if free:
                    self._running[user_id] = None
                    self._requests.pop(user_id, None)
            if free:
                over = first[0] if first is not None and time.monotonic() - first[1] > self.pace.lease else None
                outcome = self._leased(user_id, 0, over)
                if outcome is not None:
                    return outcome
            if time.monotonic() >= until:
                return None
            now = self._store.due(user_id)
            if now is not None and (first is None or (now.holder, now.beats) != (first[0].holder, first[0].beats)):
                first = (now, time.monotonic())
            time.sleep(0.05)

    def last(self, user_id: str) -> Outcome | None:
        with self._state:
            return self._outcomes.get(user_id)

    def forget(self, user_id: str) -> None:
        """Drop what is known of a user here."""
        with self._state:
            self._requests.pop(user_id, None)
            self._outcomes.pop(user_id, None)
            self._seen.pop(user_id, None)

    def counts(self) -> dict[str, int]:
        """Alignments running and waiting in this process."""
        with self._state:
            return {"running": len(self._running), "waiting": len(self._requests)}

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs or waits here; False where ``timeout`` seconds were not enough."""
        with self._state:
            return self._state.wait_for(lambda: not self._running and not self._requests, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Take no more, drop what waits (the store still counts it), and wait for what runs. False where ``timeout``
        seconds were not enough: what runs then is thrown away, and the user is left to another process."""
        with self._state:
            self.closed = True
            self._requests.clear()
            self._state.notify_all()
            ended = self._state.wait_for(lambda: not self._running, timeout)
            unfinished = [lease for lease in self._running.values() if lease is not None]
            self._stopped = True
            self._state.notify_all()
        for thread in self._threads:  # the last use of the store is over when this returns
            if (ended or thread is self._threads[-1]) and thread is not threading.current_thread():
                thread.join(timeout)
        for lease in unfinished:
            try:
                self._store.release(lease, aligned=False)
            except StoreError as failure:
                _log.warning("the lease of a user was not given back: %s", failure)
        return ended

    def _work(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._requests or self.closed)
                if self.closed:
                    return
                user_id, request = self._requests.popitem(last=False)
                self._running[user_id] = None
            request.context.run(self._leased, user_id, self._every, request.over)

    def _leased(self, user_id: str, at_least: int, over: DueUser | None) -> Outcome | None:
        """Align a user that is marked as running here; None where the lease was not to be had."""
        outcome = None
        try:
            lease = self._store.take_lease(user_id, 1 + secrets.randbits(60), at_least=at_least, over=over)
            if lease is not None:
                with self._state:
                    self._running[user_id] = lease
                outcome = self._align(lease)
                self._tell(outcome)
                due = self._store.due(user_id)
                if due is not None and due.new >= self._every and not outcome.error:
                    with self._state:  # at once: whoever waits for the end must not see a gap
                        del self._running[user_id]
                        self.request(user_id, context=contextvars.copy_context())
        except StoreError as failure:
            _log.warning("a user waits for the alignment: %s", failure)
        finally:
            with self._state:
                self._running.pop(user_id, None)
                self._state.notify_all()
        return outcome

    def _tell(self, outcome: Outcome) -> None:
        if outcome.error:  # no ids in a log: forgetting does not reach it
            _log.warning("an alignment failed, version %s stays: %s", outcome.version, outcome.error)
        if outcome.unread:
            _log.warning(
                "an alignment could read nothing that its LM wrote, and learned only what code counts: expected "
                "answers in the form that is asked for; is it the right model?"
            )
        with self._state:
            self._outcomes[outcome.user_id] = outcome
            self._outcomes.move_to_end(outcome.user_id)
            while len(self._outcomes) > _OUTCOMES:
                self._outcomes.popitem(last=False)
        if self._on_done is not None:
            self._on_done(outcome)

    def _look(self) -> None:
        """Says that this process is alive, and looks for users who are due or whose process died."""
        renewed = time.monotonic()
        while True:
            with self._state:
                if self._state.wait_for(lambda: self._stopped, self.pace.poll):
                    return
                running = [lease for lease in self._running.values() if lease is not None]
            self._chores()
            try:
                if time.monotonic() - renewed > self.pace.lease / 4:
                    renewed = time.monotonic()
                    for lease in running:
                        self._store.renew(lease)
                self._request_due()
            except StoreError as failure:
                _log.debug("no look at the store: %s", failure)

    def _request_due(self) -> None:
        now, due = time.monotonic(), self._store.due_users(self._every)
        with self._state:
            own = {*self._running, *self._requests, *self._observing}
        self._seen = {
            user.user_id: known if (known := self._seen.get(user.user_id)) and known[0] == user else (user, now)
            for user in due
        }
        for user in due:
            unchanged = now - self._seen[user.user_id][1]
            if user.user_id in own:
                continue
            if user.holder:
                if unchanged > self.pace.lease:
                    self.request(user.user_id, over=user)
            elif unchanged > self._delay(user.failures):
                self.request(user.user_id)

    def _delay(self, failures: int) -> float:
        """Seconds for which a due user is left alone: at first to the process that observed the user."""
        return min(self.pace.retry * 2 ** min(failures - 1, 20), _LONGEST_RETRY) if failures else self.pace.poll
