"""The fleet's workers as processes of this machine, where threads would share one interpreter lock: the parent's side.

A worker whose parent is gone ends at once; until then it holds the lock of the fleet's folder too.
"""

from __future__ import annotations

import copy
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import dspy

from persona_dspy.errors import BudgetExceeded, InputError, RunError, StoreError
from persona_dspy.fleet.pipe import Pipe
from persona_dspy.fleet.user import History, UserResult, UserWork, unpacked
from persona_dspy.lm import Budget, CallLog, Ledger

__all__ = ["on_processes"]

_MAX_ATTEMPTS = 3  # workers that may die under one user before it counts as the user's failure
_POLL = 0.5  # seconds between two checks whether the fleet was stopped
_GRACE = 60.0  # seconds that workers have to finish their LM calls


def on_processes(
    work: UserWork,
    todo: Iterator[History],
    *,
    fleet: Ledger,
    workers: int,
    processes: int,
    log: CallLog | None,
    shared: Sequence[int] = (),
) -> Generator[UserResult]:
    """Results in no fixed order; each process works on its share of the ``workers`` users at once. A process that dies
    is replaced and its users tried again, the last time alone: answers that were kept are not paid again.

    Args:
        shared: file descriptors that workers keep open: the lock of the fleet's folder.

    Raises:
        InputError: program, optimizer or LM cannot be sent to another process.
        RunError: a process ended before it was ready to work.
        StoreError: as ``UserWork.run``.
    """
    arguments = work.arguments()
    observers = tuple(getattr(arguments["optimizer"], "observers", ()))
    setup = {
        "arguments": arguments,
        "log": log,
        "bounded": _has_budget(fleet),
        "watched": bool(observers),
        "adapter": dspy.settings.get("adapter"),
    }
    if observers:
        arguments["optimizer"] = copy.copy(arguments["optimizer"])
        arguments["optimizer"].observers = ()
    try:
        packed_setup = Pipe.packed(setup)
    except Exception as refused:
        raise InputError(
            f"processes={processes!r}: {refused}; expected a program, an optimizer and an LM that can be sent to "
            "another process; type processes=1 for threads of this one"
        ) from refused
    shares = [workers // processes + (n < workers % processes) for n in range(processes)]
    scheduler = _Scheduler(packed_setup, fleet, observers, shared)
    try:
        scheduler.start_workers(shares)
        yield from scheduler.results(todo)
    finally:
        scheduler.shut_down()


def _has_budget(ledger: Ledger | None) -> bool:
    while ledger is not None:
        if ledger.budget != Budget():
            return True
        ledger = ledger.parent
    return False


class _Worker:
    """A worker process, in the parent: its pipe, its users and its reserved LM calls."""

    isolated = False  # works on one user at a time, each of whom other workers died under
    ready = False  # it has the fleet's program
    read_error = ""  # why one of its messages could not be unpickled

    def __init__(
        self, packed_setup: bytes, threads: int, inbox: queue.Queue[Any], fleet: Ledger, shared: Sequence[int]
    ):
        self.threads, self.fleet, self.inbox = threads, fleet, inbox
        self.busy: dict[int, tuple[History, int]] = {}
        self.reserved = 0
        parent_end, worker_end = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, *(f"-W{w}" for w in sys.warnoptions), "-m", "persona_dspy.fleet.worker"]
        with worker_end:
            self.process = subprocess.Popen(
                [*command, str(worker_end.fileno()), str(threads)],
                pass_fds=[worker_end.fileno(), *shared],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._pipe = Pipe(parent_end.detach())
        self._reader = threading.Thread(target=self._read, daemon=True, name="fleet-reader")
        self._reader.start()
        self.post(packed_setup)

    @property
    def capacity(self) -> int:
        """How many more users it may be sent: one a thread, and a few that queue."""
        return 0 if self.isolated else self.threads + max(1, self.threads // 4) - len(self.busy)

    def post(self, message: bytes) -> None:
        with suppress(OSError):  # it is dead: the reader reports it
            self._pipe.post(message)

    def send(self, kind: str, *values: Any) -> None:
        self.post(Pipe.packed(kind, *values))

    def _read(self) -> None:
        try:
            with suppress(EOFError, OSError):
                while True:
                    self._handle(*self._pipe.receive())
        except Exception as refused:
            self.read_error = f": {type(refused).__name__}: {refused}"
            self.process.kill()
            raise
        finally:
            for _ in range(self.reserved):
                self.fleet.settle()
            self.inbox.put((self, "gone", []))

    def _handle(self, kind: str, *values: Any) -> None:
        if kind == "check":
            self._check(*values)
        elif kind == "spent":
            self._spent(*values)
        elif kind == "ready":
            self.ready = True
        else:
            self.inbox.put((self, kind, values))

    def _check(self, ticket: int, calls: int, tokens: int) -> None:
        try:
            self.fleet.check(calls, tokens=tokens)
            self.reserved += calls
            why = ""
        except BudgetExceeded as spent:
            why = str(spent)
        self.send("checked", ticket, why)

    def _spent(self, by_role: dict[str, Any], released: int) -> None:
        for role, usage in by_role.items():
            self.fleet.add(role, usage)
        for _ in range(released):
            self.fleet.settle()
        self.reserved -= released

    def end(self, patience: float) -> None:
        """Give it ``patience`` seconds to finish its LM calls, then kill it."""
        self.send("end")
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5.0)
        self._pipe.close()


class _Scheduler:
    """Assigns users to workers, replaces dead workers, retries their users."""

    def __init__(self, packed_setup: bytes, fleet: Ledger, observers: Sequence[Any], shared: Sequence[int]) -> None:
        self.packed_setup, self.fleet, self.observers, self.shared = packed_setup, fleet, observers, shared
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.workers: list[_Worker] = []
        self.isolation_queue: list[History] = []
        self.last_number, self.stop_sent = 0, False

    def start_workers(self, shares: Sequence[int]) -> None:
        for threads in shares:
            self.workers.append(_Worker(self.packed_setup, threads, self.inbox, self.fleet, self.shared))
            if self.stop_sent:
                self.workers[-1].send("stop", self.fleet.stopping)

    def results(self, todo: Iterator[History]) -> Generator[UserResult]:
        for history in todo:
            if self.fleet.ended or self.fleet.stopping:
                break
            while self._least_loaded().capacity <= 0:
                yield from self._next()
            self._send(self._least_loaded(), history, 1)
        while self.isolation_queue or any(worker.busy for worker in self.workers):
            yield from self._next()

    def _least_loaded(self) -> _Worker:
        return max(self.workers, key=lambda w: w.capacity / w.threads)

    def _send(self, worker: _Worker, history: History, attempt: int) -> None:
        self.last_number += 1
        worker.busy[self.last_number] = (history, attempt)
        worker.send("user", self.last_number, history)

    def _retry_isolated(self) -> None:
        """Retry users whose workers died, one at a time in a separate process: a user who kills workers then fails no
        other user."""
        if not self.isolation_queue:
            return
        isolated = next((worker for worker in self.workers if worker.isolated), None)
        if isolated is None:
            self.start_workers([1])
            isolated = self.workers[-1]
            isolated.isolated = True
        if not isolated.busy:
            self._send(isolated, self.isolation_queue.pop(0), _MAX_ATTEMPTS)

    def _next(self) -> Generator[UserResult]:
        self._retry_isolated()
        if self.fleet.stopping and not self.stop_sent:
            self.stop_sent = True
            for worker in self.workers:
                worker.send("stop", self.fleet.stopping)
        try:
            worker, kind, values = self.inbox.get(timeout=_POLL)
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
        elif kind == "stop":
            self.fleet.stop(values[0])
        elif kind == "failed":
            name, message = values
            raise (
                StoreError(message) if name == "StoreError" else RunError(f"a fleet's worker failed: {name}: {message}")
            )
        elif kind == "gone" and worker in self.workers:
            yield from self._replace(worker)

    def _replace(self, dead: _Worker) -> Generator[UserResult]:
        self.workers.remove(dead)
        code = dead.process.wait()
        dead.end(0.0)
        if not dead.ready and not self.fleet.stopping:
            raise RunError(
                f"a fleet's worker process ended with exit code {code} before it was ready; expected one that starts: "
                "what it said is on stderr; type processes=1 (--processes 1) for threads of this process"
            )
        if not dead.isolated and (dead.busy or not self.fleet.stopping):
            self.start_workers([dead.threads])
        for history, attempt in dead.busy.values():
            if attempt + 1 < _MAX_ATTEMPTS:
                self._send(self.workers[-1], history, attempt + 1)
                continue
            if attempt < _MAX_ATTEMPTS:
                self.isolation_queue.append(history)
                continue
            error = f"{attempt} worker processes died under this user, the last with exit code {code}{dead.read_error}"
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
