"""A fleet on a Ray cluster: the same work for each user, in processes on other machines. Owns: workers, their deaths,
the one account they share.

Not here: what is done for a user (fleet_user.py), what is kept (fleet.py: the driver keeps it). Answers of LM calls go
where ``log`` says: its folder has to be on a disk that all workers see.
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

_TRIES = 3  # workers that may die under one user before it counts as the user's failure
_LOOK = 1.0  # seconds between two looks whether the fleet is to stop
_PATIENCE = 60.0  # seconds that workers get to end their LM calls


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
        crew = _crew(ray, work, fleet, log)
        try:
            yield from crew.results(todo, workers)
        finally:
            crew.dismiss()
    finally:
        if started:
            ray.shutdown()


def _crew(ray: Any, work: UserWork, fleet: Ledger, log: CallLog | None) -> _Crew:
    try:
        plain = ray.put((work.given(), log, dspy.settings.get("adapter")))
    except Exception as refused:
        raise InputError(
            f"engine 'ray': {refused}; expected a program, an optimizer and an LM that can be sent to another process; "
            "type engine='local' (--engine local) for threads of this one"
        ) from refused
    purse = ray.remote(_Purse).options(num_cpus=0).remote([(one.budget, one.by_role) for one in _chain(fleet)])
    hire = ray.remote(_Worker).options(num_cpus=1, max_restarts=0)
    return _Crew(ray, partial(hire.remote, plain, purse), fleet, purse)


def _chain(ledger: Ledger | None) -> list[Ledger]:
    """The account and those above it."""
    return [] if ledger is None else [ledger, *_chain(ledger.parent)]


def _reason(death: Exception) -> str:
    """First and last line of what Ray says."""
    lines = [line.strip() for line in str(death).splitlines() if line.strip()] or [type(death).__name__]
    return " ... ".join(line[:200] for line in dict.fromkeys((lines[0], lines[-1])))


class _Crew:
    """The driver's side: who works on whom. A worker is known by its number."""

    def __init__(self, ray: Any, hire: Any, fleet: Ledger, purse: Any) -> None:
        self.ray, self.hire, self.fleet, self.purse = ray, hire, fleet, purse
        self.actors: dict[int, Any] = {}
        self.starting: dict[Any, int] = {}
        self.idle: list[int] = []
        self.busy: dict[Any, tuple[int, History, int]] = {}
        self.waiting: deque[tuple[History, int]] = deque()
        self.hired, self.told, self.over = 0, False, False

    def results(self, todo: Iterator[History], workers: int) -> Generator[UserResult]:
        for history in todo:
            self.waiting.append((history, 1))
            yield from self._next(0.0)
            while len(self.busy) + len(self.waiting) >= workers:
                yield from self._next(_LOOK)
            if self.over:
                break
        while self.busy or self.waiting:
            yield from self._next(_LOOK)

    def _next(self, patience: float) -> Generator[UserResult]:
        self._count()
        self._tell()
        yield from self._turned_away()
        self._seat()
        under_way = [*self.starting, *self.busy]
        done, _ = self.ray.wait(under_way, timeout=patience) if under_way else ([], [])
        for reference in done:
            if reference in self.starting:
                self._started(reference)
            else:
                yield from self._ended(reference)

    def _ask(self, reference: Any, patience: float | None = None) -> Any:
        try:
            return self.ray.get(reference, timeout=patience)
        except self.ray.exceptions.RayError as gone:
            raise RunError(
                f"engine 'ray': the fleet's account is gone: {_reason(gone)}; expected it to last, on a node with the "
                "same persona-dspy. What was finished is kept: type the same command with --resume"
            ) from gone

    def _count(self, patience: float | None = None) -> None:
        """Add what workers spent; stop the fleet where one of them did."""
        fresh, stopped = self._ask(self.purse.news.remote(), patience)
        for role, usage in fresh.items():
            self.fleet.add(role, usage)
        if stopped and not self.told:
            self.told = True
            self.fleet.stop(stopped)

    def _refused(self) -> str:
        """Why the account, or one above it, lets no further call begin; or empty. Leaves no mark on any of them."""
        marks = [(ledger, ledger.exceeded) for ledger in _chain(self.fleet)]
        try:
            self.fleet.check(0)
        except BudgetExceeded as spent:
            for ledger, mark in marks:
                ledger.exceeded = mark
            return self.fleet.stopping or str(spent)
        return ""

    def _tell(self) -> None:
        """Workers end before their next LM call where the driver's account refuses it."""
        why = "" if self.told else self._refused()
        if why:
            self.told = True
            self.purse.stop.remote(why)

    def _turned_away(self) -> Generator[UserResult]:
        """Users who wait when no user is begun any more."""
        while self.waiting:
            try:
                self.fleet.check(0)
                if not self.fleet.ended:
                    return
                said = f"stopped: {self.fleet.ended}"
            except BudgetExceeded as spent:
                said = str(spent)
            self.over = True
            history, _ = self.waiting.popleft()
            yield UserResult(
                user_id=history.user_id, document=None, error=said, kind=BudgetExceeded.__name__, stopped=True
            )

    def _seat(self) -> None:
        """Hand users who wait to workers who do not work; hire for the rest."""
        while self.waiting and self.idle:
            number, (history, attempt) = self.idle.pop(), self.waiting.popleft()
            self.busy[self.actors[number].run.remote(history)] = (number, history, attempt)
        while len(self.waiting) > len(self.starting):
            self.hired += 1
            self.actors[self.hired] = self.hire(self.hired)
            self.starting[self.actors[self.hired].ready.remote()] = self.hired

    def _started(self, reference: Any) -> None:
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

    def _ended(self, reference: Any) -> Generator[UserResult]:
        number, history, attempt = self.busy.pop(reference)
        self._count()
        try:
            result, exceeded = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as failure:
            raise failure.cause if isinstance(failure.cause, RunError) else failure from None
        except self.ray.exceptions.RayError as death:
            self._bury(number)
            if attempt < _TRIES:
                self.waiting.append((history, attempt + 1))
                return
            error = f"{attempt} workers died under this user: {_reason(death)}"
            yield UserResult(user_id=history.user_id, document=None, error=error, kind="RayActorError")
            return
        self.idle.append(number)
        self.fleet.exceeded = self.fleet.exceeded or exceeded
        yield unpacked(result)

    def _bury(self, number: int) -> None:
        """One that is only out of reach would go on with a user whom another takes over."""
        self.ray.kill(self.actors.pop(number))
        self.purse.bury.remote(number)

    def dismiss(self) -> None:
        """Whoever is under way ends before the next LM call."""
        self.told = True
        under_way = {number for number, _, _ in self.busy.values()}
        try:
            for number in set(self.actors) - under_way:
                self.ray.kill(self.actors.pop(number))
            with suppress(RunError):
                self._ask(self.purse.stop.remote("interrupted"), _PATIENCE)
                if self.busy:
                    self.ray.wait(list(self.busy), num_returns=len(self.busy), timeout=_PATIENCE)
                self._count(_PATIENCE)
        finally:
            for actor in (*self.actors.values(), self.purse):
                self.ray.kill(actor)


class _Purse:
    """The fleet's account as an actor: workers ask it before each LM call.

    Args:
        accounts: bounds of the fleet's account and of those above it, each with what was spent before.
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
        self.buried: set[int] = set()
        self.fresh: dict[str, Usage] = {}

    def check(self, worker: int, calls: int, tokens: int) -> str:
        """Empty, or why not."""
        if worker in self.buried:
            return "stopped: another worker has taken over"
        try:
            self.ledger.check(calls, tokens=tokens)
        except BudgetExceeded as spent:
            return str(spent)
        self.reserved[worker] += calls
        return ""

    def settle(self, worker: int) -> None:
        if self.reserved[worker] > 0:
            self.reserved[worker] -= 1
            self.ledger.settle()

    def bury(self, worker: int) -> None:
        """It is dead: what it had reserved is free again."""
        while self.reserved[worker] > 0:
            self.settle(worker)
        self.buried.add(worker)

    def add(self, role: str, usage: Usage) -> None:
        self.ledger.add(role, usage)
        self.fresh[role] = self.fresh.get(role, Usage()) + usage

    def news(self) -> tuple[dict[str, Usage], str]:
        """What was spent since this was asked last, and why all stop, if they do."""
        fresh, self.fresh = self.fresh, {}
        return fresh, self.ledger.stopping

    def stop(self, why: str) -> None:
        self.ledger.stop(why)

    def heard(self) -> None:
        """Answers once all that was said before is counted."""


class _SharedLedger(Ledger):
    """A worker's account for one user, which asks the purse. Ray keeps the order of what one worker says to it."""

    def __init__(self, ray: Any, purse: Any, number: int) -> None:
        super().__init__()
        self._ray, self._purse, self._number = ray, purse, number

    def check(self, calls: int = 1, *, tokens: int = 0) -> None:
        super().check(calls, tokens=tokens)
        why = self._ray.get(self._purse.check.remote(self._number, calls, tokens))
        if why:
            super()._release(calls)
            self.exceeded = why
            raise BudgetExceeded(why)

    def settle(self) -> None:
        super().settle()
        self._purse.settle.remote(self._number)

    def add(self, named: str, usage: Usage) -> None:
        super().add(named, usage)
        self._purse.add.remote(named, usage)

    def stop(self, why: str) -> None:
        super().stop(why)
        self._purse.stop.remote(why)

    def told(self) -> None:
        """Wait until the purse has counted all of it."""
        self._ray.get(self._purse.heard.remote())


class _Worker:
    """A Ray actor: one user after the other."""

    def __init__(self, plain: Any, purse: Any, number: int) -> None:
        given, self.log, self.adapter = plain
        self.work, self.purse, self.number = UserWork(**given), purse, number

    def ready(self) -> None:
        """Answers once this has started."""

    def run(self, history: History) -> tuple[dict[str, Any], str]:
        import ray

        ledger = _SharedLedger(ray, self.purse, self.number)
        with dspy.context(adapter=self.adapter):
            result = self.work.run(history, fleet=ledger, log=self.log)
        ledger.told()
        return packed(result), ledger.exceeded
