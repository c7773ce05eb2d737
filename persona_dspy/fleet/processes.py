"""A fleet over several processes of this machine, since one interpreter lock bounds what threads can do. Owns: the
parent's side: who works on whom, one account, workers that die.

Not here: a worker's own side (fleet_worker.py), what is done for a user (fleet_user.py), what is kept (fleet.py: the
parent keeps it). A worker that finds its parent gone ends at once; it shares the lock of the fleet's folder till then.
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

_TRIES = 3  # workers that may die under one user before it counts as the user's failure
_LOOK = 0.5  # seconds between two looks whether the fleet is to stop
_PATIENCE = 60.0  # seconds that workers get to end their LM calls


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
    given = work.given()
    observers = tuple(getattr(given["optimizer"], "observers", ()))
    order = {
        "given": given,
        "log": log,
        "bounded": _bounded(fleet),
        "watched": bool(observers),
        "adapter": dspy.settings.get("adapter"),
    }
    if observers:
        given["optimizer"] = copy.copy(given["optimizer"])
        given["optimizer"].observers = ()
    try:
        plain = Pipe.packed(order)
    except Exception as refused:
        raise InputError(
            f"processes={processes!r}: {refused}; expected a program, an optimizer and an LM that can be sent to "
            "another process; type processes=1 for threads of this one"
        ) from refused
    shares = [workers // processes + (n < workers % processes) for n in range(processes)]
    crew = _Crew(plain, fleet, observers, shared)
    try:
        crew.hire(shares)
        yield from crew.results(todo)
    finally:
        crew.dismiss()


def _bounded(ledger: Ledger | None) -> bool:
    while ledger is not None:
        if ledger.budget != Budget():
            return True
        ledger = ledger.parent
    return False


class _Worker:
    """A process as the parent sees it."""

    alone = False  # for one user at a time, under whom workers died before
    ready = False  # it has the fleet's program
    unread = ""  # why a message of it could not be read here

    def __init__(self, plain: bytes, threads: int, inbox: queue.Queue[Any], fleet: Ledger, shared: Sequence[int]):
        self.threads, self.fleet, self.inbox = threads, fleet, inbox
        self.busy: dict[int, tuple[History, int]] = {}
        self.reserved = 0
        mine, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, *(f"-W{w}" for w in sys.warnoptions), "-m", "persona_dspy.fleet.worker"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(threads)],
                pass_fds=[theirs.fileno(), *shared],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._pipe = Pipe(mine.detach())
        self._reader = threading.Thread(target=self._read, daemon=True, name="fleet-reader")
        self._reader.start()
        self.tell(plain)

    @property
    def room(self) -> int:
        """How many more users it may hold: its share, and a few that wait."""
        return 0 if self.alone else self.threads + max(1, self.threads // 4) - len(self.busy)

    def tell(self, message: bytes) -> None:
        with suppress(OSError):  # it is dead, and the reader says so
            self._pipe.post(message)

    def send(self, kind: str, *values: Any) -> None:
        self.tell(Pipe.packed(kind, *values))

    def _read(self) -> None:
        try:
            with suppress(EOFError, OSError):
                while True:
                    self._hear(*self._pipe.receive())
        except Exception as refused:
            self.unread = f": {type(refused).__name__}: {refused}"
            self.process.kill()
            raise
        finally:
            for _ in range(self.reserved):
                self.fleet.settle()
            self.inbox.put((self, "gone", []))

    def _hear(self, kind: str, *values: Any) -> None:
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
        """Let it finish its LM calls for so many seconds, then see it out."""
        self.send("end")
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5.0)
        self._pipe.close()


class _Crew:
    """Who works on whom."""

    def __init__(self, plain: bytes, fleet: Ledger, observers: Sequence[Any], shared: Sequence[int]) -> None:
        self.plain, self.fleet, self.observers, self.shared = plain, fleet, observers, shared
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.workers: list[_Worker] = []
        self.suspects: list[History] = []
        self.number, self.told = 0, False

    def hire(self, shares: Sequence[int]) -> None:
        for threads in shares:
            self.workers.append(_Worker(self.plain, threads, self.inbox, self.fleet, self.shared))
            if self.told:
                self.workers[-1].send("stop", self.fleet.stopping)

    def results(self, todo: Iterator[History]) -> Generator[UserResult]:
        for history in todo:
            if self.fleet.ended or self.fleet.stopping:
                break
            while self._freest().room <= 0:
                yield from self._next()
            self._send(self._freest(), history, 1)
        while self.suspects or any(worker.busy for worker in self.workers):
            yield from self._next()

    def _freest(self) -> _Worker:
        return max(self.workers, key=lambda w: w.room / w.threads)

    def _send(self, worker: _Worker, history: History, attempt: int) -> None:
        self.number += 1
        worker.busy[self.number] = (history, attempt)
        worker.send("user", self.number, history)

    def _try_alone(self) -> None:
        """Users under whom workers died, but not alone: one after the other in a process of its own, so that none of
        them fails for another's sake."""
        if not self.suspects:
            return
        lone = next((worker for worker in self.workers if worker.alone), None)
        if lone is None:
            self.hire([1])
            lone = self.workers[-1]
            lone.alone = True
        if not lone.busy:
            self._send(lone, self.suspects.pop(0), _TRIES)

    def _next(self) -> Generator[UserResult]:
        self._try_alone()
        if self.fleet.stopping and not self.told:
            self.told = True
            for worker in self.workers:
                worker.send("stop", self.fleet.stopping)
        try:
            worker, kind, values = self.inbox.get(timeout=_LOOK)
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
            name, said = values
            raise StoreError(said) if name == "StoreError" else RunError(f"a fleet's worker failed: {name}: {said}")
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
        if not dead.alone and (dead.busy or not self.fleet.stopping):
            self.hire([dead.threads])
        for history, attempt in dead.busy.values():
            if attempt + 1 < _TRIES:
                self._send(self.workers[-1], history, attempt + 1)
                continue
            if attempt < _TRIES:
                self.suspects.append(history)
                continue
            error = f"{attempt} worker processes died under this user, the last with exit code {code}{dead.unread}"
            yield UserResult(user_id=history.user_id, document=None, error=error, kind="WorkerDied")

    def dismiss(self) -> None:
        """Whoever is under way ends before the next LM call; all have the same time for the one they are at."""
        for worker in self.workers:
            if worker.busy:
                worker.send("stop", "interrupted")
        for worker in self.workers:
            worker.send("end")
        deadline = time.monotonic() + _PATIENCE
        for worker in self.workers:
            worker.end(max(0.0, deadline - time.monotonic()))
