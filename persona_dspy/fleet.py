"""Compiling personas for many users. Owns: ``compile_users`` and what becomes of one user's failure.

Not here: how one user is aligned (optimizers), where results are kept (store.py, export.py).
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from persona_dspy.agent import PersonalProgram
from persona_dspy.alignment import Alignment
from persona_dspy.errors import BudgetExceeded
from persona_dspy.export import PersonaDocument
from persona_dspy.ledger import Budget, Ledger
from persona_dspy.records import Interaction
from persona_dspy.tracking import NullTracker, Tracker

__all__ = ["History", "Optimizer", "UserResult", "compile_users"]


class History(Protocol):
    """A user and the user's interactions, oldest first (``histories.UserHistory`` is one)."""

    @property
    def user_id(self) -> str: ...

    @property
    def interactions(self) -> tuple[Interaction, ...]: ...


class Optimizer(Protocol):
    """What aligns one user's program: ``PersonaAlignment`` or anything with its ``compile``."""

    def compile(self, student: Any, *, trainset: Any) -> PersonalProgram: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UserResult:
    """One user's outcome: the document that was made, or the error that ended this user's work and no other's."""

    user_id: str
    document: PersonaDocument | None
    error: str = ""
    seconds: float = 0.0

    @property
    def alignment(self) -> Alignment | None:
        return self.document.alignment if self.document else None


def compile_users(
    program: PersonalProgram | Callable[[History], PersonalProgram],
    histories: Iterable[History],
    optimizer: Optimizer,
    *,
    workers: int = 1,
    budget: Budget | None = None,
    tracker: Tracker | None = None,
    task: str | None = None,
) -> Iterator[UserResult]:
    """Align one user after the other (``workers`` at once) and give each result as soon as it is there.

    Users stream in: at most ``2 * workers`` are held. One user's exception becomes that user's ``error``.

    Args:
        program: a PersonaAgent (or personalized program) to be bound to each user, or a function that makes the
            user's program from the history (where the answer's type is the user's own).
        budget: over the whole fleet; once it is spent, users not yet begun end with that error.
    """
    tracker = tracker or NullTracker()
    ledger = Ledger(budget=budget)

    def one(history: History) -> UserResult:
        began = time.monotonic()
        try:
            student = (
                program.for_user(history.user_id, history.interactions)
                if isinstance(program, PersonalProgram)
                else program(history)
            )
            ledger.check(0)
            with ledger.recording():
                aligned = optimizer.compile(student, trainset=student.examples())
            document = PersonaDocument.of(
                aligned.persona.value, alignment=aligned.alignment, task=task, model=aligned.lm_name()
            )
        except BudgetExceeded as spent:
            return UserResult(user_id=history.user_id, document=None, error=str(spent))
        except Exception as failure:  # noqa: BLE001 - one user's failure must not stop the fleet
            error = f"{type(failure).__name__}: {failure}"
            tracker.user(history.user_id, None, error)
            return UserResult(user_id=history.user_id, document=None, error=error, seconds=time.monotonic() - began)
        tracker.user(history.user_id, document)
        return UserResult(user_id=history.user_id, document=document, seconds=time.monotonic() - began)

    with ThreadPoolExecutor(workers) as pool:
        waiting: set[Future[UserResult]] = set()
        for history in histories:
            waiting.add(pool.submit(contextvars.copy_context().run, one, history))
            if len(waiting) >= 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
