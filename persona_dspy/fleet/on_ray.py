"""The fleet's workers as Ray actors, on this or other machines. All share one ledger, which is an actor too.

LM answers are written to the folder of ``log``: it has to be on a disk that all workers see.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import dspy

from persona_dspy.core import Usage
from persona_dspy.errors import BudgetExceeded, InputError, RunError
from persona_dspy.fleet.user import History, UserResult, UserWork, packed, unpacked
from persona_dspy.lm import Budget, CallLog, Ledger

__all__ = ["on_ray"]

_MAX_ATTEMPTS = 3  # workers that may die under one user before it counts as the user's failure
_POLL = 1.0  # seconds between two checks whether the fleet was stopped
_GRACE = 60.0  # seconds that workers have to finish their LM calls


def on_ray(
    work: UserWork, todo: Iterator[History], *, fleet: Ledger, workers: int, log: CallLog | None
) -> Generator[UserResult]:
    """Results in no fixed order; at most ``workers`` users are held at once, each by a worker that has started: as many
    work as the cluster has CPUs for. A worker that dies is replaced and its user tried again: answers that were kept
    are not paid again.

    Raises:
        InputError: Ray is not installed, or program, optimizer or LM cannot be sent to a worker.
        RunError: a worker could not start, or the shared account is gone.
        StoreError: as ``UserWork.run``.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("engine 'ray': expected the package ray; type: pip install 'persona-dspy[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, configure_logging=False
        )
    try:
        scheduler = _scheduler(ray, work, fleet, log)
        try:
            yield from scheduler.results(todo, workers)
        finally:
            scheduler.shut_down()
    finally:
        if started:
            ray.shutdown()


def _scheduler(ray: Any, work: UserWork, fleet: Ledger, log: CallLog | None) -> _Scheduler:
    try:
        shared_work = ray.put((work.arguments(), log, dspy.settings.get("adapter")))
    except Exception as refused:
        raise InputError(
            f"engine 'ray': {refused}; expected a program, an optimizer and an LM that can be sent to another process; "
            "type engine='local' (--engine local) for threads of this one"
        ) from refused
    ledger_actor = (
        ray.remote(_LedgerActor).options(num_cpus=0).remote([(one.budget, one.by_role) for one in _with_parents(fleet)])
    )
    start_worker = ray.remote(_Worker).options(num_cpus=1, max_restarts=0)
    return _Scheduler(ray, partial(start_worker.remote, shared_work, ledger_actor), fleet, ledger_actor)


def _with_parents(ledger: Ledger | None) -> list[Ledger]:
    """The ledger, then its parent, and so on up."""
    return [] if ledger is None else [ledger, *_with_parents(ledger.parent)]


def _reason(death: Exception) -> str:
    """First and last line of Ray's error."""
    lines = [line.strip() for line in str(death).splitlines() if line.strip()] or [type(death).__name__]
    return " ... ".join(line[:200] for line in dict.fromkeys((lines[0], lines[-1])))


class _Scheduler:
    """Runs in the driver: assigns users to workers, replaces dead workers, retries their users. Worker = its number."""

    def __init__(self, ray: Any, start_worker: Any, fleet: Ledger, ledger_actor: Any) -> None:
        self.ray, self.start_worker, self.fleet, self.ledger_actor = ray, start_worker, fleet, ledger_actor
        self.actors: dict[int, Any] = {}
        self.starting: dict[Any, int] = {}
        self.idle: list[int] = []
        self.busy: dict[Any, tuple[int, History, int]] = {}
        self.waiting: deque[tuple[History, int]] = deque()
        self.started_workers, self.stop_sent, self.ended = 0, False, False

    def results(self, todo: Iterator[History], workers: int) -> Generator[UserResult]:
        for history in todo:
            self.waiting.append((history, 1))
            yield from self._next(0.0)
            while len(self.busy) + len(self.waiting) >= workers:
                yield from self._next(_POLL)
            if self.ended:
                break
        while self.busy or self.waiting:
            yield from self._next(_POLL)

    def _next(self, patience: float) -> Generator[UserResult]:
        self._collect_usage()
        self._send_stop()
        yield from self._reject_waiting()
        self._assign()
        pending = [*self.starting, *self.busy]
        done, _ = self.ray.wait(pending, timeout=patience) if pending else ([], [])
        for reference in done:
            if reference in self.starting:
                self._on_started(reference)
            else:
                yield from self._on_finished(reference)

    def _get(self, reference: Any, patience: float | None = None) -> Any:
        try:
            return self.ray.get(reference, timeout=patience)
        except self.ray.exceptions.RayError as gone:
            raise RunError(
                f"engine 'ray': the fleet's account is gone: {_reason(gone)}; expected it to last, on a node with the "
                "same persona-dspy. What was finished is kept: type the same command with --resume"
            ) from gone

    def _collect_usage(self, patience: float | None = None) -> None:
        """Add the workers' usage to the fleet's ledger; stop the fleet if a worker stopped it."""
        unreported, stopped = self._get(self.ledger_actor.take_unreported.remote(), patience)
        for role, usage in unreported.items():
            self.fleet.add(role, usage)
        if stopped and not self.stop_sent:
            self.stop_sent = True
            self.fleet.stop(stopped)

    def _budget_refusal(self) -> str:
        """Why the fleet's ledger or a parent refuses the next call; "" if none does. Leaves ``exceeded`` as it was."""
        before = [(ledger, ledger.exceeded) for ledger in _with_parents(self.fleet)]
        try:
            self.fleet.check(0)
        except BudgetExceeded as spent:
            for ledger, exceeded in before:
                ledger.exceeded = exceeded
            return self.fleet.stopping or str(spent)
        return ""

    def _send_stop(self) -> None:
        """Stop the workers before their next LM call once the driver's ledger refuses it."""
        why = "" if self.stop_sent else self._budget_refusal()
        if why:
            self.stop_sent = True
            self.ledger_actor.stop.remote(why)

    def _reject_waiting(self) -> Generator[UserResult]:
        """Yield a stopped result for each waiting user once the fleet has ended."""
        while self.waiting:
            try:
                self.fleet.check(0)
                if not self.fleet.ended:
                    return
                reason = f"stopped: {self.fleet.ended}"
            except BudgetExceeded as spent:
                reason = str(spent)
            self.ended = True
            history, _ = self.waiting.popleft()
            yield UserResult(
                user_id=history.user_id, document=None, error=reason, kind=BudgetExceeded.__name__, stopped=True
            )

    def _assign(self) -> None:
        """Give waiting users to idle workers; start a worker for each user left over."""
        while self.waiting and self.idle:
            number, (history, attempt) = self.idle.pop(), self.waiting.popleft()
            self.busy[self.actors[number].run.remote(history)] = (number, history, attempt)
        while len(self.waiting) > len(self.starting):
            self.started_workers += 1
            self.actors[self.started_workers] = self.start_worker(self.started_workers)
            self.starting[self.actors[self.started_workers].ready.remote()] = self.started_workers

    def _on_started(self, reference: Any) -> None:
        number = self.starting.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as death:
            raise RunError(
                f"engine 'ray': a worker could not start: {_reason(death)}; expected the same persona-dspy on each "
                "node, and a program, an optimizer and an LM that can be imported there; type engine='local' "
                "(--engine local) for threads of this process"
            ) from death
        self.idle.append(number)

    def _on_finished(self, reference: Any) -> Generator[UserResult]:
        number, history, attempt = self.busy.pop(reference)
        self._collect_usage()
        try:
            result, exceeded = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as failure:
            raise failure.cause if isinstance(failure.cause, RunError) else failure from None
        except self.ray.exceptions.RayError as death:
            self._discard(number)
            if attempt < _MAX_ATTEMPTS:
                self.waiting.append((history, attempt + 1))
                return
            error = f"{attempt} workers died under this user: {_reason(death)}"
            yield UserResult(user_id=history.user_id, document=None, error=error, kind="RayActorError")
            return
        self.idle.append(number)
        self.fleet.exceeded = self.fleet.exceeded or exceeded
        yield unpacked(result)

    def _discard(self, number: int) -> None:
        """Kill a worker and revoke its calls: an unreachable one must not go on with a retried user."""
        self.ray.kill(self.actors.pop(number))
        self.ledger_actor.revoke.remote(number)

    def shut_down(self) -> None:
        """Stop workers before their next LM call, then end them."""
        self.stop_sent = True
        pending = {number for number, _, _ in self.busy.values()}
        try:
            for number in set(self.actors) - pending:
                self.ray.kill(self.actors.pop(number))
            with suppress(RunError):
                self._get(self.ledger_actor.stop.remote("interrupted"), _GRACE)
                if self.busy:
                    self.ray.wait(list(self.busy), num_returns=len(self.busy), timeout=_GRACE)
                self._collect_usage(_GRACE)
        finally:
            for actor in (*self.actors.values(), self.ledger_actor):
                self.ray.kill(actor)


class _LedgerActor:
    """The fleet's ledger as an actor: workers ask it before each LM call.

    Args:
        accounts: budget and usage so far of the fleet's ledger and of each of its parents, in this order.
    """

    def __init__(self, accounts: Sequence[tuple[Budget, dict[str, Usage]]]) -> None:
        above: Ledger | None = None
        for budget, spent in reversed(accounts):
            ledger = Ledger(budget=budget)
            for role, usage in spent.items():
                ledger.add(role, usage)
            ledger.parent, above = above, ledger
        self.ledger = above or Ledger()
        self.reserved: Counter[int] = Counter()
        self.revoked: set[int] = set()
        self.unreported: dict[str, Usage] = {}

    def check(self, worker: int, calls: int, tokens: int) -> str:
        """Reserve the calls; "", or the reason for refusing them."""
        if worker in self.revoked:
            return "stopped: another worker has taken over"
        try:
            self.ledger.check(calls, tokens=tokens)
        except BudgetExceeded as spent:
            return str(spent)
        self.reserved[worker] += calls
        return ""

    def settle(self, worker: int, usages: Sequence[tuple[str, Usage]] = ()) -> None:
        """Give back one reservation and count what its call used, in one message: between two, another worker's check
        would see the call twice."""
        for role, usage in usages:
            self.add(role, usage)
        if self.reserved[worker] > 0:
            self.reserved[worker] -= 1
            self.ledger.settle()

    def revoke(self, worker: int) -> None:
        """Release what a dead worker had reserved and refuse its further calls."""
        while self.reserved[worker] > 0:
            self.settle(worker)
        self.revoked.add(worker)

    def add(self, role: str, usage: Usage) -> None:
        self.ledger.add(role, usage)
        self.unreported[role] = self.unreported.get(role, Usage()) + usage

    def take_unreported(self) -> tuple[dict[str, Usage], str]:
        """Usage since the last call of this, and the reason for stopping (or "")."""
        unreported, self.unreported = self.unreported, {}
        return unreported, self.ledger.stopping

    def stop(self, why: str) -> None:
        self.ledger.stop(why)

    def flush(self) -> None:
        """Returns once every earlier message of the caller is counted."""


class _RemoteLedger(Ledger):
    """A worker's ledger for one user, which asks the ledger actor. Ray keeps the order of one worker's messages."""

    def __init__(self, ray: Any, ledger_actor: Any, number: int) -> None:
        super().__init__()
        self._ray, self._ledger_actor, self._number = ray, ledger_actor, number
        self._unsent: list[tuple[str, Usage]] = []  # of calls that are still reserved

    def check(self, calls: int = 1, *, tokens: int = 0) -> None:
        super().check(calls, tokens=tokens)
        why = self._ray.get(self._ledger_actor.check.remote(self._number, calls, tokens))
        if why:
            super()._release(calls)
            self.exceeded = why
            raise BudgetExceeded(why)

    def settle(self) -> None:
        super().settle()
        self._ledger_actor.settle.remote(self._number, self._take_unsent())

    def add(self, role: str, usage: Usage) -> None:
        super().add(role, usage)
        with self._lock:
            self._unsent.append((role, usage))
            reserved = self._reserved > 0
        if not reserved:
            self._send()

    def _take_unsent(self) -> list[tuple[str, Usage]]:
        with self._lock:
            unsent, self._unsent = self._unsent, []
        return unsent

    def _send(self) -> None:
        for named, usage in self._take_unsent():
            self._ledger_actor.add.remote(named, usage)

    def stop(self, why: str) -> None:
        super().stop(why)
        self._ledger_actor.stop.remote(why)

    def flush(self) -> None:
        """Wait until the ledger actor has counted everything."""
        self._send()
        self._ray.get(self._ledger_actor.flush.remote())


class _Worker:
    """A Ray actor that works on one user at a time."""

    def __init__(self, shared_work: Any, ledger_actor: Any, number: int) -> None:
        arguments, self.log, self.adapter = shared_work
        self.work, self.ledger_actor, self.number = UserWork(**arguments), ledger_actor, number

    def ready(self) -> None:
        """Returns once the actor has started."""

    def run(self, history: History) -> tuple[dict[str, Any], str]:
        import ray

        ledger = _RemoteLedger(ray, self.ledger_actor, self.number)
        with dspy.context(adapter=self.adapter):
            result = self.work.run(history, fleet=ledger, log=self.log)
        ledger.flush()
        return packed(result), ledger.exceeded
