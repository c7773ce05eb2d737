"""A fleet's workers as processes of this machine, where threads would share one interpreter lock.

A worker whose parent is gone ends at once; until then it holds the lock of the fleet's folder too.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from persona_dspy.fleet.pipe import Pipe
from persona_dspy.fleet.scheduler import RemoteWorker, Scheduler, packed_setup, shares
from persona_dspy.fleet.user import History, UserResult, UserWork
from persona_dspy.lm import CallLog, Ledger

__all__ = ["on_processes"]


def on_processes(
    work: UserWork,
    todo: Iterator[History],
    *,
    fleet: Ledger,
    workers: int,
    processes: int,
    log: CallLog | None,
    inherited: Sequence[int] = (),
) -> Generator[UserResult]:
    """Results as ``Scheduler.results`` gives them; each process works on its share of the ``workers`` users at once.

    Args:
        inherited: file descriptors that workers keep open: the lock of the fleet's folder.

    Raises:
        InputError: program, optimizer or LM cannot be sent to another process.
        RunError, StoreError: as ``Scheduler.results``.
    """
    setup, observers = packed_setup(work, fleet, log, "type processes=1 (--processes 1) for threads of this process")
    scheduler = Scheduler(partial(ProcessWorker, setup, inherited), shares(workers, processes), fleet, observers)
    try:
        yield from scheduler.results(todo)
    finally:
        scheduler.shut_down()


class ProcessWorker(RemoteWorker):
    """A worker process, at the other end of a pair of sockets."""

    def __init__(
        self,
        setup: bytes,
        inherited: Sequence[int],
        slots: int,
        inbox: queue.Queue[Any],
        fleet: Ledger,
        *,
        alone: bool = False,
    ) -> None:
        parent_end, worker_end = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, *(f"-W{w}" for w in sys.warnoptions), "-m", "persona_dspy.fleet.worker"]
        with worker_end:
            self.process = subprocess.Popen(
                [*command, str(worker_end.fileno()), str(slots)],
                pass_fds=[worker_end.fileno(), *inherited],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._pipe = Pipe(parent_end.detach())
        super().__init__(self._pipe, slots, inbox, fleet, alone=alone)
        self.start_reading()
        with suppress(OSError):  # it is dead: the reader reports it
            self._pipe.post(setup)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, patience: float) -> str:
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"exit code {code}" + (f": {self.end_reason}" if self.end_reason else "")

    def end(self, patience: float) -> str:
        how = super().end(patience)
        self._pipe.close()
        return how

    def start_hint(self) -> str:
        return (
            "expected a process that starts: what it said is on stderr; type processes=1 (--processes 1) for threads "
            "of this process"
        )
