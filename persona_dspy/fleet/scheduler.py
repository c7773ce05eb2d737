"""Assigns a fleet's users to workers in other processes, replaces workers that die and retries their users.

The same for every transport: a transport starts workers and carries messages, nothing else.

- To a worker: ``user`` (number, history), ``answer`` (ticket, value), ``limited`` (pace key), ``stop`` (reason) and
  ``end``.
- From it, questions: ``check`` (ticket, calls, tokens), ``turn`` (ticket, pace key), ``paused`` (ticket, pace key).
- From it: ``ready``, ``spent`` (usage by role, calls released), ``answered`` (pace key), ``refused`` (pace key, seconds
  since the call began, pause asked for, calls a second), ``event``, ``stop`` (reason), ``result`` (number, result, the
  bound that was exceeded), ``failed`` (type and text of an error that ends the fleet).
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import dspy

from persona_dspy.errors import BudgetExceeded, InputError, RunError, StoreError
from persona_dspy.fleet.pipe import Pipe
from persona_dspy.fleet.user import History, UserResult, UserWork, unpacked
from persona_dspy.lm import Budget, CallLog, Ledger, pace_of

__all__ = ["Channel", "RemoteWorker", "Scheduler", "packed_setup", "shares"]

_MAX_ATTEMPTS = 3  # workers that may die under one user before it counts as the user's failure
_POLL = 0.5  # seconds between two checks whether the fleet was stopped
_GRACE = 60.0  # seconds that workers have to finish their LM calls


class Channel(Protocol):
    """One end of what carries messages: any thread may send, one receives.

    ``receive`` raises EOFError or OSError once the other end is gone; ``send`` may raise OSError then.
    """

    def send(self, *message: Any) -> None: ...

    def receive(self) -> tuple[Any, ...]: ...


class RemoteWorker:
    """A worker in another process, in the fleet's process: its channel, its users and its reserved LM calls.

    Args:
        slots: users it works on at once.
        alone: it gets one user at a time, each of whom other workers died under, and no others.

    Attributes:
        ready: it has the fleet's program.
        end_reason: why it is gone, as far as its channel knows.
    """

    def __init__(
        self, channel: Channel, slots: int, inbox: queue.Queue[Any], fleet: Ledger, *, alone: bool = False
    ) -> None:
        self.channel, self.slots, self.inbox, self.fleet, self.alone = channel, slots, inbox, fleet, alone
        self.busy: dict[int, tuple[History, int]] = {}
        self.reserved, self.ready, self.end_reason = 0, False, ""
        self._reader = threading.Thread(target=self._read, daemon=True, name="fleet-reader")

    def start_reading(self) -> None:
        """Called by the transport once the worker is complete."""
        self._reader.start()

    @property
    def room(self) -> int:
        """How many more users it may be sent: one a slot, and a few that queue."""
        return self.slots + self.slots // 4 - len(self.busy) if self.ready else 0

    def send(self, kind: str, *values: Any) -> None:
        with suppress(OSError):  # it is dead: the reader reports it
            self.channel.send(kind, *values)

    def kill(self) -> None:
        """End it at once, wherever it is, so that it does not go on with a user whom another worker has taken over."""
        raise NotImplementedError

    def wait(self, patience: float) -> str:
        """Kill it unless it ends by itself within ``patience`` seconds. Returns how it ended, for an error's text."""
        raise NotImplementedError

    def start_hint(self) -> str:
        """What was expected, and what to type, where it could not start."""
        raise NotImplementedError

    def _read(self) -> None:
        try:
            while True:
                self._handle(*self.channel.receive())
        except (EOFError, OSError) as gone:
            self.end_reason = str(gone)
        except Exception as refused:
            self.end_reason = f"{type(refused).__name__}: {refused}"
            self.kill()
            raise
        finally:
            for _ in range(self.reserved):
                self.fleet.settle()
            self.inbox.put((self, "gone", []))

    def _handle(self, kind: str, *values: Any) -> None:
        if kind == "check":
            self._check(*values)
        elif kind == "spent":
            self._count(*values)
        elif kind in ("turn", "paused"):
            ticket, key = values
            pace = pace_of(key)
            self.send("answer", ticket, pace.turn() if kind == "turn" else pace.paused())
        elif kind == "answered":
            pace_of(*values).answered()
        elif kind == "refused":
            key, age, retry_after, others = values
            pace_of(key).refused(began=time.monotonic() - age, retry_after=retry_after, others=others)
            self.inbox.put((self, "limited", [key]))
        else:
            if kind == "ready":
                self.ready = True
            self.inbox.put((self, kind, values))

    def _check(self, ticket: int, calls: int, tokens: int) -> None:
        try:
            self.fleet.check(calls, tokens=tokens)
            self.reserved += calls
            why = ""
        except BudgetExceeded as spent:
            why = str(spent)
        self.send("answer", ticket, why)

    def _count(self, by_role: dict[str, Any], released: int) -> None:
        for role, usage in by_role.items():
            self.fleet.add(role, usage)
        for _ in range(released):
            self.fleet.settle()
        self.reserved -= released

    def end(self, patience: float) -> str:
        """Give it ``patience`` seconds to finish its LM calls, then kill it. Returns how it ended."""
        self.send("end")
        how = self.wait(patience)
        self._reader.join(5.0)
        return how


StartWorker = Callable[..., RemoteWorker]
"""``start_worker(slots, inbox, fleet, alone=False)``: begins to start a worker and returns without waiting for it."""


class Scheduler:
    """Assigns users to workers, least loaded first; see ``results``.

    Args:
        shares: slots of each worker. A worker is started for each user that is taken, until all are there.
        observers: get the workers' events.
    """

    def __init__(
        self, start_worker: StartWorker, shares: Sequence[int], fleet: Ledger, observers: Sequence[Any] = ()
    ) -> None:
        self.start_worker, self.fleet, self.observers = start_worker, fleet, observers
        self.unstarted, self.capacity = deque(shares), sum(slots + slots // 4 for slots in shares)
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.workers: list[RemoteWorker] = []
        self.waiting: deque[tuple[History, int]] = deque()  # with the attempt that is next
        self.waiting_alone: deque[History] = deque()
        self.limited: set[str] = set()  # pace keys of LMs that have met a rate limit
        self.last_number, self.stop_reason, self.ended = 0, "", False

    def results(self, todo: Iterator[History]) -> Generator[UserResult]:
        """One result for each user that was taken from ``todo``, in no fixed order: a stopped one where the fleet ended
        before the user was begun. At most one and a quarter users a slot are held. Once the fleet has ended nobody more
        is taken.

        A user whose worker died is tried again, the third time as the only one of a worker, so that a user who kills
        workers fails nobody else. Answers that were kept are not paid again.

        Raises:
            RunError: a worker ended before it was ready, or failed.
            StoreError: as ``UserWork.run``.
        """
        for history in todo:
            self.waiting.append((history, 1))
            if self.unstarted:
                self._start(self.unstarted.popleft())
            yield from self._step(0.0)
            while len(self.waiting) + self._busy() >= self.capacity:
                yield from self._step(_POLL)
            if self.ended:
                break
        while self.waiting or self.waiting_alone or self._busy():
            yield from self._step(_POLL)

    def _busy(self) -> int:
        return sum(len(worker.busy) for worker in self.workers)

    def _start(self, slots: int, *, alone: bool = False) -> None:
        worker = self.start_worker(slots, self.inbox, self.fleet, alone=alone)
        self.workers.append(worker)
        for key in self.limited:
            worker.send("limited", key)
        if self.stop_reason:
            worker.send("stop", self.stop_reason)

    def _step(self, patience: float) -> Generator[UserResult]:
        """Assign what can be assigned, then handle the next message, if one comes within ``patience`` seconds."""
        self._send_stop()
        yield from self._reject_waiting()
        self._assign_alone()
        self._assign()
        try:
            worker, kind, values = self.inbox.get(block=patience > 0, timeout=patience or None)
        except queue.Empty:
            return
        if kind == "result":
            number, result, exceeded = values
            worker.busy.pop(number, None)
            self.fleet.exceeded = self.fleet.exceeded or exceeded
            yield unpacked(result)
        elif kind == "event":
            for observer in self.observers:
                observer(values[0])
        elif kind == "limited":
            self._share_pace(values[0])
        elif kind == "stop":
            self.fleet.stop(values[0])
        elif kind == "failed":
            name, text = values
            raise StoreError(text) if name == "StoreError" else RunError(f"a fleet's worker failed: {name}: {text}")
        elif kind == "gone" and worker in self.workers:
            yield from self._replace(worker)

    def _share_pace(self, key: str) -> None:
        """Tell all workers that the turns of an LM's calls are given here."""
        if key not in self.limited:
            self.limited.add(key)
            for worker in self.workers:
                worker.send("limited", key)

    def _send_stop(self) -> None:
        """Stop the workers before their next LM call once the fleet's ledger, or one above it, was stopped."""
        ledger: Ledger | None = self.fleet
        while ledger is not None and not ledger.stopping:
            ledger = ledger.parent
        if ledger is not None and not self.stop_reason:
            self.stop_reason = ledger.stopping
            for worker in self.workers:
                worker.send("stop", self.stop_reason)

    def _reject_waiting(self) -> Generator[UserResult]:
        """A stopped result for each user who was taken and not begun, once the fleet has ended."""
        while self.waiting or self.waiting_alone:
            try:
                self.fleet.check(0)
                if not self.fleet.ended:
                    return
                reason = f"stopped: {self.fleet.ended}"
            except BudgetExceeded as spent:
                reason = str(spent)
            self.ended = True
            history = self.waiting.popleft()[0] if self.waiting else self.waiting_alone.popleft()
            kind = BudgetExceeded.__name__
            yield UserResult(user_id=history.user_id, document=None, error=reason, kind=kind, stopped=True)
        self.ended = self.ended or bool(self.fleet.ended or self.fleet.stopping)

    def _assign_alone(self) -> None:
        """Send a user whose workers died to a worker of one slot that nobody else is at."""
        if not self.waiting_alone:
            return
        single = [worker for worker in self.workers if worker.slots == 1]
        if not single:
            self._start(1, alone=True)
            return
        idle = next((worker for worker in single if worker.ready and not worker.busy), None)
        if idle is not None:
            self._send(idle, self.waiting_alone.popleft(), _MAX_ATTEMPTS)

    def _assign(self) -> None:
        while self.waiting:
            free = [worker for worker in self.workers if worker.room > 0 and not worker.alone]
            if not free:
                return
            self._send(max(free, key=lambda worker: worker.room / worker.slots), *self.waiting.popleft())

    def _send(self, worker: RemoteWorker, history: History, attempt: int) -> None:
        self.last_number += 1
        worker.busy[self.last_number] = (history, attempt)
        worker.send("user", self.last_number, history)

    def _replace(self, dead: RemoteWorker) -> Generator[UserResult]:
        self.workers.remove(dead)
        how = dead.end(0.0)
        if not dead.ready and not self.stop_reason:
            raise RunError(f"a fleet's worker could not start: {how}; {dead.start_hint()}")
        if not dead.alone:
            self.unstarted.append(dead.slots)
            if dead.busy or self.waiting:
                self._start(self.unstarted.popleft())
        for history, attempt in dead.busy.values():
            if attempt + 1 < _MAX_ATTEMPTS:
                self.waiting.appendleft((history, attempt + 1))
            elif attempt < _MAX_ATTEMPTS:
                self.waiting_alone.append(history)
            else:
                error = f"{attempt} workers died under this user, the last one: {how}"
                yield UserResult(user_id=history.user_id, document=None, error=error, kind="WorkerDied")

    def shut_down(self) -> None:
        """Stop workers before their next LM call, then end them; one deadline for all."""
        for worker in self.workers:
            if worker.busy:
                worker.send("stop", "interrupted")
        for worker in self.workers:
            worker.send("end")
        deadline = time.monotonic() + _GRACE
        for worker in self.workers:
            worker.end(max(0.0, deadline - time.monotonic()))


def shares(workers: int, processes: int) -> list[int]:
    """``workers`` users at once, shared out to at most so many processes.

    Example:
        >>> shares(5, 2), shares(2, 4)
        ([3, 2], [1, 1])
    """
    processes = min(workers, processes)
    return [workers // processes + (n < workers % processes) for n in range(processes)]


def packed_setup(work: UserWork, fleet: Ledger, log: CallLog | None, instead: str) -> tuple[bytes, tuple[Any, ...]]:
    """(what a worker needs before its first user, as bytes; the optimizer's observers, which stay here).

    Raises:
        InputError: program, optimizer or LM cannot be sent to another process; ``instead`` says what to type.
    """
    arguments = work.arguments()
    observers = tuple(getattr(arguments["optimizer"], "observers", ()))
    if observers:
        arguments["optimizer"] = copy.copy(arguments["optimizer"])
        arguments["optimizer"].observers = ()
    setup = {
        "arguments": arguments,
        "log": log,
        "bounded": _has_budget(fleet),
        "watched": bool(observers),
        "adapter": dspy.settings.get("adapter"),
    }
    try:
        return Pipe.packed(setup), observers
    except Exception as refused:
        raise InputError(
            f"{refused}; expected a program, an optimizer and an LM that can be sent to another process; {instead}"
        ) from refused


def _has_budget(ledger: Ledger | None) -> bool:
    while ledger is not None:
        if ledger.budget != Budget():
            return True
        ledger = ledger.parent
    return False
