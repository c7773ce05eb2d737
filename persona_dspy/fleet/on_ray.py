"""A fleet's workers as Ray actors, on this or other machines.

An actor runs what a worker process runs; Ray carries its messages. LM answers are written to the folder of ``log``: it
has to be on a disk that all workers see.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

from persona_dspy.agent import keys_pickled
from persona_dspy.errors import InputError, to_install
from persona_dspy.fleet.pipe import Pipe
from persona_dspy.fleet.scheduler import RemoteWorker, Scheduler, packed_setup, shares
from persona_dspy.fleet.user import History, UserResult, UserWork
from persona_dspy.fleet.worker import work_on_users
from persona_dspy.lm import CallLog, Ledger

__all__ = ["on_ray"]


def on_ray(
    work: UserWork,
    todo: Iterator[History],
    *,
    fleet: Ledger,
    workers: int,
    processes: int | None,
    log: CallLog | None,
) -> Generator[UserResult]:
    """Results as ``Scheduler.results`` gives them. ``processes`` actors of one CPU each share the ``workers`` users at
    once; None = as many as the cluster has CPUs. Actors that the cluster has no room for wait while the others work.

    Raises:
        InputError: Ray is not installed, or program, optimizer or LM cannot be sent to a worker.
        RunError, StoreError: as ``Scheduler.results``.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError(f"engine 'ray': expected the package ray; {to_install('ray')}") from None
    instead = "type engine='local' (--engine local) for this machine alone"
    setup, observers = packed_setup(work, fleet, log, instead)
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, configure_logging=False
        )
    try:
        cpus = processes or int(ray.cluster_resources().get("CPU", 1)) or 1
        with keys_pickled():
            placed = ray.put(setup)
        start_worker = partial(ActorWorker, ray, placed)
        scheduler = Scheduler(start_worker, shares(workers, cpus), fleet, observers)
        try:
            yield from scheduler.results(todo)
        finally:
            scheduler.shut_down()
    finally:
        if started:
            ray.shutdown()


class ActorWorker(RemoteWorker):
    """A worker in a Ray actor. One that works alone needs no CPU of its own: the idle ones hold all there are."""

    def __init__(
        self, ray: Any, setup: Any, slots: int, inbox: queue.Queue[Any], fleet: Ledger, *, alone: bool = False
    ) -> None:
        options = {"num_cpus": 0 if alone else 1, "max_restarts": 0, "concurrency_groups": {"put": 1, "take": 1}}
        self._ray, self._actor = ray, ray.remote(**options)(FleetActor).remote(setup, slots)
        self._channel = _ActorChannel(ray, self._actor)
        super().__init__(self._channel, slots, inbox, fleet, alone=alone)
        self.start_reading()

    def kill(self) -> None:
        self._ray.kill(self._actor)

    def wait(self, patience: float) -> str:
        self._channel.ended.wait(patience)
        self.kill()
        return self.end_reason or "killed"

    def start_hint(self) -> str:
        return (
            "expected the same persona-dspy on each node, and a program, an optimizer and an LM that can be imported "
            "there; type engine='local' (--engine local) for this machine alone"
        )


class _ActorChannel:
    """Messages to and from an actor. A concurrency group of one thread keeps their order; a ``take`` that waits
    does not keep a ``put`` from being heard."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ended = threading.Event()
        self._ray, self._taken = ray, list[tuple[Any, ...]]()
        self._put, self._take = (getattr(actor, name).options(concurrency_group=name) for name in ("put", "take"))

    def send(self, *message: Any) -> None:
        self._put.remote(*message)

    def receive(self) -> tuple[Any, ...]:
        try:
            while not self._taken:
                self._taken = self._ray.get(self._take.remote())
        except self._ray.exceptions.RayError as death:
            self.ended.set()
            raise EOFError(_reason(death)) from death
        message = self._taken.pop(0)
        if message[0] == "ended":
            self.ended.set()
            raise EOFError("ended")
        return message


def _reason(death: Exception) -> str:
    """First and last line of Ray's error."""
    lines = [line.strip() for line in str(death).splitlines() if line.strip()] or [type(death).__name__]
    return " ... ".join(line[:200] for line in dict.fromkeys((lines[0], lines[-1])))


class FleetActor:
    """The worker's side, in an actor: a channel of two queues, and the thread that works on users."""

    def __init__(self, setup: bytes, slots: int) -> None:
        self._inbox: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._outbox: queue.Queue[tuple[Any, ...]] = queue.Queue()
        (values,) = Pipe.unpacked(setup)
        threading.Thread(target=self._work, args=(values, slots), daemon=True, name="fleet-worker").start()

    def put(self, *message: Any) -> None:
        """Take a message of the fleet's process."""
        self._inbox.put(message)

    def take(self) -> list[tuple[Any, ...]]:
        """The worker's messages since the last call, oldest first; waits for one."""
        messages = [self._outbox.get()]
        while not self._outbox.empty():
            messages.append(self._outbox.get())
        return messages

    def send(self, *message: Any) -> None:
        self._outbox.put(message)

    def receive(self) -> tuple[Any, ...]:
        return self._inbox.get()

    def _work(self, setup: dict[str, Any], slots: int) -> None:
        try:
            work_on_users(self, setup, slots)
        except BaseException as failure:
            self.send("failed", type(failure).__name__, str(failure))
            raise
        finally:
            self.send("ended")
