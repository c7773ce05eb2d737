"""A worker process of a fleet: ``python -m persona_dspy.fleet.worker FD THREADS``, started by fleet_processes.py only.

Owns: threads that work on users, the account that asks the parent's. Not here: anything that is kept but LM answers.
Where the parent is gone, nobody can take a result: the process ends at once, as if killed with it.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import gc
import os
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import dspy

from persona_dspy.core import Usage
from persona_dspy.errors import BudgetExceeded
from persona_dspy.fleet.pipe import Pipe
from persona_dspy.fleet.user import History, UserWork, packed
from persona_dspy.lm import Ledger

__all__ = ["main"]

_EVERY = 0.5  # seconds between two reports of what was spent, where no budget needs them at once


class _Parent:
    """The pipe to the parent; without a parent there is nothing left to do."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    def send(self, *message: Any) -> None:
        try:
            self.pipe.send(*message)
        except OSError:
            os._exit(1)

    def receive(self) -> Any:
        try:
            return self.pipe.receive()
        except (EOFError, OSError):
            os._exit(1)


class _Account(Ledger):
    """This process's account. Under a budget it asks the parent before each LM call; else it reports now and then."""

    def __init__(self, parent: _Parent, *, bounded: bool) -> None:
        super().__init__()
        self._up, self._bounded = parent, bounded
        self._asked: dict[int, tuple[threading.Event, list[str]]] = {}
        self._fresh: dict[str, Usage] = {}
        self._guard, self._number = threading.Lock(), 0
        self._tickets = threading.Lock()  # never held while sending: whoever hears the parent takes it

    def check(self, calls: int = 1, *, tokens: int = 0) -> None:
        super().check(calls, tokens=tokens)
        if not self._bounded:
            return
        answered, said = threading.Event(), []
        with self._tickets:
            self._number += 1
            ticket = self._number
            self._asked[ticket] = (answered, said)
        self._up.send("check", ticket, calls, tokens)
        answered.wait()
        if said[0]:
            super()._release(calls)
            self.exceeded = said[0]
            raise BudgetExceeded(said[0])

    def checked(self, ticket: int, why: str) -> None:
        """The parent's answer."""
        with self._tickets:
            answered, said = self._asked.pop(ticket)
        said.append(why)
        answered.set()

    def add(self, named: str, usage: Usage) -> None:
        super().add(named, usage)
        with self._guard:
            self._fresh[named] = self._fresh.get(named, Usage()) + usage

    def settle(self) -> None:
        super().settle()
        if self._bounded:
            self.tell(1)

    def tell(self, released: int = 0) -> None:
        """Report what was spent since the last time."""
        with self._guard:  # sent inside: what is told before a result arrives before it
            fresh, self._fresh = self._fresh, {}
            if fresh or released:
                self._up.send("spent", fresh, released)

    def stop(self, why: str) -> None:
        super().stop(why)
        self._up.send("stop", why)

    def stopped_by_parent(self, why: str) -> None:
        super().stop(why)


def main(descriptor: int, threads: int) -> None:
    """Work on users until the parent says so or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    parent = _Parent(Pipe(descriptor))
    (order,) = parent.receive()
    given, account = order["given"], _Account(parent, bounded=order["bounded"])
    if order["watched"]:
        given["optimizer"] = copy.copy(given["optimizer"])
        given["optimizer"].observers = (functools.partial(parent.send, "event"),)
    work, log = UserWork(**given), order["log"]
    parent.send("ready")
    gc.collect()
    gc.freeze()  # what was imported stays: looking through it again and again takes a tenth of the time

    def one(number: int, history: History) -> None:
        result = work.run(history, fleet=account, log=log)
        account.tell()
        parent.send("result", number, packed(result), account.exceeded)

    def ended_well(work: Future[None]) -> None:
        failure = None if work.cancelled() else work.exception()
        if failure is not None:
            parent.send("failed", type(failure).__name__, str(failure))

    def take(number: int, history: History) -> None:
        pool.submit(contextvars.copy_context().run, one, number, history).add_done_callback(ended_well)

    ended = threading.Event()
    threading.Thread(target=lambda: _report(account, ended), daemon=True).start()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fleet")
    with dspy.context(adapter=order["adapter"]):
        _serve(parent, account, take)
    pool.shutdown(wait=False, cancel_futures=True)
    threading.Thread(target=lambda: _serve(parent, account, None), daemon=True).start()  # answers to checks
    pool.shutdown(wait=True)
    ended.set()
    account.tell()


def _serve(parent: _Parent, account: _Account, take: Any) -> None:
    """Hear the parent, until it says ``end``; where that was said (no ``take``), until it is gone.

    Must not wait for anything that waits for the parent: each would fill the other's pipe and wait for good.
    """
    while True:
        kind, *values = parent.receive()
        if kind == "user" and take is not None:
            take(*values)
        elif kind == "checked":
            account.checked(*values)
        elif kind == "stop":
            account.stopped_by_parent(*values)
        elif kind == "end" and take is not None:
            return


def _report(account: _Account, ended: threading.Event) -> None:
    while not ended.wait(_EVERY):
        account.tell()


def _failed(*failure: Any) -> None:
    """Ends the process: threads that wait for the parent's answer would keep one alive that hears none."""
    sys.__excepthook__(*failure)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.excepthook = _failed
    main(int(sys.argv[1]), int(sys.argv[2]))
