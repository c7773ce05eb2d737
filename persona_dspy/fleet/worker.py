"""What a fleet's worker does in a process of its own: users from a channel, results into it. It writes nothing but LM
answers.

``python -m persona_dspy.fleet.worker FD SLOTS`` is started by ``on_processes`` only. It ends at once when its parent is
gone, since nobody can take a result.
"""

from __future__ import annotations

import contextvars
import copy
import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import dspy

from persona_dspy.core import Usage
from persona_dspy.errors import BudgetExceeded
from persona_dspy.fleet.pipe import Pipe
from persona_dspy.fleet.scheduler import Channel
from persona_dspy.fleet.user import History, UserWork, packed
from persona_dspy.lm import Ledger, Pace, set_turns

__all__ = ["Questions", "WorkerLedger", "WorkerTurns", "main", "work_on_users"]

_REPORT_INTERVAL = 0.5  # seconds between two reports of what was spent, where no budget needs them at once


class WorkerTurns:
    """The pace of one LM, as a worker's calls see it: once a rate limit was met anywhere in the fleet, the fleet's
    process gives the turns. Whether the LM is down each worker finds out by itself."""

    def __init__(self, channel: Channel, questions: Questions, key: str) -> None:
        self._channel, self._questions, self._key = channel, questions, key
        self._own = Pace()
        self.limited = False

    def turn(self) -> tuple[bool, float]:
        begins, seconds = self._own.turn()
        return self._questions.ask("turn", self._key) if begins and self.limited else (begins, seconds)

    def paused(self) -> bool:
        return self.limited and self._questions.ask("paused", self._key)

    def answered(self) -> None:
        self._own.answered()
        if self.limited:
            self._channel.send("answered", self._key)

    def refused(self, *, began: float, retry_after: float | None = None) -> None:
        others = 0.0 if self.limited else self._own.begun_rate()
        self._channel.send("refused", self._key, time.monotonic() - began, retry_after, others)

    def failed(self, *, began: float, retry_after: float | None = None) -> None:
        self._own.failed(began=began, retry_after=retry_after)


class Questions:
    """What a worker asks the fleet's process and waits for, from any thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: dict[int, tuple[threading.Event, list[Any]]] = {}
        self._tickets, self._last = threading.Lock(), 0  # not held while sending: who reads the channel takes it

    def ask(self, kind: str, *values: Any) -> Any:
        """Send a message and wait for its answer."""
        arrived, answer = threading.Event(), list[Any]()
        with self._tickets:
            self._last += 1
            ticket = self._last
            self._waiting[ticket] = (arrived, answer)
        self._channel.send(kind, ticket, *values)
        arrived.wait()
        return answer[0]

    def answered(self, ticket: int, value: Any) -> None:
        """The answer to the question with this ticket is there."""
        with self._tickets:
            arrived, answer = self._waiting.pop(ticket)
        answer.append(value)
        arrived.set()


class WorkerLedger(Ledger):
    """A worker's ledger. Under a budget it asks the fleet's process before each LM call; else it reports regularly."""

    def __init__(self, channel: Channel, questions: Questions, *, bounded: bool) -> None:
        super().__init__()
        self._channel, self._questions, self._bounded = channel, questions, bounded
        self._unreported: dict[str, Usage] = {}
        self._guard = threading.Lock()

    def check(self, calls: int = 1, *, tokens: int = 0) -> None:
        super().check(calls, tokens=tokens)
        if not self._bounded:
            return
        refusal = self._questions.ask("check", calls, tokens)
        if refusal:
            super()._release(calls)
            self.exceeded = refusal
            raise BudgetExceeded(refusal)

    def add(self, role: str, usage: Usage) -> None:
        super().add(role, usage)
        with self._guard:
            self._unreported[role] = self._unreported.get(role, Usage()) + usage

    def settle(self) -> None:
        super().settle()
        if self._bounded:
            self.report_usage(1)

    def report_usage(self, released: int = 0) -> None:
        """Report the usage since the last report."""
        with self._guard:  # sent inside the lock: usage reported before a result arrives before it
            unreported, self._unreported = self._unreported, {}
            if unreported or released:
                self._channel.send("spent", unreported, released)

    def stop(self, why: str) -> None:
        super().stop(why)
        self._channel.send("stop", why)

    def stopped_by_fleet(self, why: str) -> None:
        super().stop(why)


def work_on_users(channel: Channel, setup: dict[str, Any], slots: int) -> None:
    """Work on users, ``slots`` at once, until ``end`` is received (see scheduler.py for the messages)."""
    arguments, questions = setup["arguments"], Questions(channel)
    account = WorkerLedger(channel, questions, bounded=setup["bounded"])
    turns = lru_cache(maxsize=64)(partial(WorkerTurns, channel, questions))
    set_turns(turns)
    if setup["watched"]:
        arguments["optimizer"] = copy.copy(arguments["optimizer"])
        arguments["optimizer"].observers = (partial(channel.send, "event"),)
    work, log, in_flight = UserWork(**arguments), setup["log"], threading.Semaphore(slots)
    channel.send("ready")
    gc.collect()
    gc.freeze()  # what was imported stays: looking through it again and again takes a tenth of the time

    def run_user(number: int, history: History) -> None:
        result = work.run(history, fleet=account, log=log, in_flight=in_flight)
        account.report_usage()
        channel.send("result", number, packed(result), account.exceeded)

    def report_failure(work: Future[None]) -> None:
        failure = None if work.cancelled() else work.exception()
        if failure is not None:
            channel.send("failed", type(failure).__name__, str(failure))

    def take(number: int, history: History) -> None:
        pool.submit(contextvars.copy_context().run, run_user, number, history).add_done_callback(report_failure)

    ended = threading.Event()
    threading.Thread(target=lambda: _report_regularly(account, ended), daemon=True).start()
    pool = ThreadPoolExecutor(work.users_at_once(slots), thread_name_prefix="fleet")
    with dspy.context(adapter=setup["adapter"]):
        _serve(channel, (account, questions, turns), take)
    pool.shutdown(wait=False, cancel_futures=True)
    answers = partial(_serve, channel, (account, questions, turns), None)
    threading.Thread(target=answers, daemon=True).start()
    pool.shutdown(wait=True)
    ended.set()
    account.report_usage()


def _serve(channel: Channel, own: tuple[WorkerLedger, Questions, Any], take: Any) -> None:
    """Handle messages until ``end``; after that (``take`` is None) for good.

    Must not wait for anything that waits for the fleet's process: each would fill the other's pipe and wait for good.
    """
    account, questions, turns = own
    while True:
        kind, *values = channel.receive()
        if kind == "user" and take is not None:
            take(*values)
        elif kind == "answer":
            questions.answered(*values)
        elif kind == "stop":
            account.stopped_by_fleet(*values)
        elif kind == "limited":
            turns(*values).limited = True
        elif kind == "end" and take is not None:
            return


def _report_regularly(account: WorkerLedger, ended: threading.Event) -> None:
    while not ended.wait(_REPORT_INTERVAL):
        account.report_usage()


class _ParentPipe:
    """The pipe to the parent; the process exits when the parent is gone."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def send(self, *message: Any) -> None:
        try:
            self._pipe.send(*message)
        except OSError:
            os._exit(1)

    def receive(self) -> tuple[Any, ...]:
        try:
            return self._pipe.receive()
        except (EOFError, OSError):
            os._exit(1)


def main(descriptor: int, slots: int) -> None:
    """Work on users until the parent sends ``end`` or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    parent = _ParentPipe(Pipe(descriptor))
    (setup,) = parent.receive()
    work_on_users(parent, setup, slots)


def _exit_on_error(*failure: Any) -> None:
    """Ends the process: threads waiting for the parent's answer would keep it alive although nobody reads the pipe."""
    sys.__excepthook__(*failure)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.excepthook = _exit_on_error
    main(int(sys.argv[1]), int(sys.argv[2]))
