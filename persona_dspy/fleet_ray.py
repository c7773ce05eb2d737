"""A fleet on a Ray cluster: the same work for each user, in processes on other machines. Owns: workers, their deaths,
the one account they share.

Not here: what is done for a user (fleet_user.py), what is kept (fleet.py: the driver keeps it). Answers of LM calls go
where ``log`` says: its folder has to be on a disk that all workers see.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import dspy

from persona_dspy.call_folder import CallLog
from persona_dspy.errors import BudgetExceeded, InputError, RunError
from persona_dspy.fleet_user import History, UserResult, UserWork, packed, unpacked
from persona_dspy.ledger import Budget, Ledger
from persona_dspy.records import Usage

__all__ = ["on_ray"]

_TRIES = 3  # workers that may die under one user before it counts as the user's failure


def on_ray(
    work: UserWork, todo: Iterator[History], *, fleet: Ledger, workers: int, log: CallLog | None
) -> Generator[UserResult]:
    """Results in no fixed order; at most ``workers`` users are out at once. A worker that dies is replaced and its user
    tried again: answers that were kept are not paid again.

    Raises:
        InputError: Ray is not installed.
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
    hire_purse: Any = ray.remote(_Purse)
    purse = hire_purse.options(num_cpus=0, max_concurrency=64).remote(fleet.budget)
    plain = ray.put((work.given(), log, dspy.settings.get("adapter")))
    hire: Any = ray.remote(_Worker)
    crew = _Crew(ray, lambda: hire.options(num_cpus=1, max_restarts=0).remote(plain, purse), fleet, purse)
    try:
        yield from crew.results(todo, workers)
    finally:
        ray.get(purse.stop.remote("interrupted"))
        crew.dismiss()
        ray.kill(purse)
        if started:
            ray.shutdown()


class _Crew:
    """The driver's side: who works on whom."""

    def __init__(self, ray: Any, hire: Any, fleet: Ledger, purse: Any) -> None:
        self.ray, self.hire, self.fleet, self.purse = ray, hire, fleet, purse
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, History, int]] = {}

    def results(self, todo: Iterator[History], workers: int) -> Generator[UserResult]:
        for history in todo:
            if self.fleet.exceeded:
                break
            while len(self.busy) >= workers:
                yield from self._next()
            self._send(history, 1)
        while self.busy:
            yield from self._next()

    def _send(self, history: History, attempt: int) -> None:
        worker = self.idle.pop() if self.idle else self.hire()
        self.busy[worker.run.remote(history)] = (worker, history, attempt)

    def _next(self) -> Generator[UserResult]:
        if self.fleet.stopping:
            self.ray.get(self.purse.stop.remote(self.fleet.stopping))
        done, _ = self.ray.wait(list(self.busy), timeout=1.0)
        for reference in done:
            worker, history, attempt = self.busy.pop(reference)
            try:
                result, by_role, exceeded = self.ray.get(reference)
            except self.ray.exceptions.RayActorError as death:
                if attempt < _TRIES:
                    self._send(history, attempt + 1)
                    continue
                error = f"{attempt} workers died under this user: {str(death).splitlines()[0][:200]}"
                yield UserResult(user_id=history.user_id, document=None, error=error, kind="RayActorError")
                continue
            except self.ray.exceptions.RayTaskError as failure:
                raise failure.cause if isinstance(failure.cause, RunError) else failure from None
            self.idle.append(worker)
            for role, usage in by_role.items():
                self.fleet.add(role, usage)
            self.fleet.exceeded = self.fleet.exceeded or exceeded
            yield unpacked(result)

    def dismiss(self) -> None:
        for worker in [*self.idle, *(w for w, _, _ in self.busy.values())]:
            self.ray.kill(worker)


class _Purse:
    """The fleet's budget as an actor: workers ask it before each LM call."""

    def __init__(self, budget: Budget) -> None:
        self.ledger = Ledger(budget=budget)

    def check(self, calls: int, tokens: int) -> str:
        """Empty, or why not."""
        try:
            self.ledger.check(calls, tokens=tokens)
        except BudgetExceeded as spent:
            return str(spent)
        return ""

    def settle(self, role: str, usage: Usage) -> None:
        self.ledger.add(role, usage)

    def release(self) -> None:
        self.ledger.settle()

    def exceeded(self) -> str:
        return self.ledger.exceeded

    def stop(self, why: str) -> None:
        self.ledger.stop(why)


class _SharedLedger(Ledger):
    """A worker's account for one user, which asks the purse."""

    def __init__(self, ray: Any, purse: Any) -> None:
        super().__init__()
        self._ray, self._purse = ray, purse

    def check(self, calls: int = 1, *, tokens: int = 0) -> None:
        why = self._ray.get(self._purse.check.remote(calls, tokens))
        if why:
            self.exceeded = why
            raise BudgetExceeded(why)
        super().check(calls, tokens=tokens)

    def settle(self) -> None:
        super().settle()
        self._purse.release.remote()

    def add(self, named: str, usage: Usage) -> None:
        super().add(named, usage)
        self._purse.settle.remote(named, usage)

    def stop(self, why: str) -> None:
        super().stop(why)
        self._purse.stop.remote(why)


class _Worker:
    """A Ray actor: one user after the other."""

    def __init__(self, plain: Any, purse: Any) -> None:
        given, self.log, self.adapter = plain
        self.work, self.purse = UserWork(**given), purse

    def run(self, history: History) -> tuple[dict[str, Any], dict[str, Usage], str]:
        import ray

        ledger = _SharedLedger(ray, self.purse)
        with dspy.context(adapter=self.adapter):
            result = self.work.run(history, fleet=ledger, log=self.log)
        return packed(result), ledger.by_role, ledger.exceeded
