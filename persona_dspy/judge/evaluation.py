"""Systems x users -> answers, one row each.

Protocol: a user's history comes before the user's queries in time; alignment and every other preparation see the
history alone; a query is asked of a system once, and its answer changes nothing.
"""

from __future__ import annotations

import contextvars
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, floor, isfinite
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from persona_dspy.core import parse_number
from persona_dspy.data import Question, Task, UserHistory, infer_task
from persona_dspy.errors import BudgetExceeded, InputError
from persona_dspy.judge.results import Judged, Results
from persona_dspy.judge.systems import Prepared, Setting
from persona_dspy.judge.variant import Variant
from persona_dspy.lm import Budget, Ledger
from persona_dspy.memory import EpisodicMemory

__all__ = ["Case", "cases", "evaluate", "scored_as"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One user as the judge sees it: the task, the history, oldest first, and the held-out queries with known answers.

    Where a file has no task, each user's is inferred from that user's own history.
    """

    user_id: str
    task: Task
    history: tuple[Any, ...]
    queries: tuple[Question, ...]


def cases(users: Iterable[UserHistory], task: Task | None = None, *, queries: int | None = None) -> list[Case]:
    """Users with their held-out queries: the file's own where it has any, else the latest quarter (1 to 8) of the
    user's interactions, which then leave the history. Users with nothing to ask are left out.

    Args:
        queries: at most so many a user, the earliest.

    Example:
        >>> from persona_dspy import Interaction
        >>> past = tuple(Interaction(user_id="u", query=f"q{n}", response="a") for n in range(8))
        >>> [(len(c.history), len(c.queries)) for c in cases([UserHistory(user_id="u", interactions=past)])]
        [(6, 2)]
    """
    people: list[Case] = []
    for user in users:
        history, asked = user.interactions, tuple(q for q in user.questions if q.gold is not None)
        if not user.questions and len(history) > 1:
            held = max(1, min(8, len(history) // 4))
            history, late = history[:-held], history[-held:]
            asked = tuple(Question(id=i.id, query=i.query, gold=i.response, time=i.time) for i in late)
        if asked and (task or history):
            own = task or infer_task(history)
            people.append(Case(user_id=user.user_id, task=own, history=history, queries=asked[:queries]))
    return people


def scored_as(people: Sequence[Case]) -> Task:
    """The task by which all answers are scored together: the people's own, with every label that any of them has.

    For scoring only: no user's prompt is made from it.

    Raises:
        InputError: users whose answers are of different kinds (labels, ratings, text).
    """
    kinds = sorted({p.task.kind for p in people})
    if len(kinds) != 1:
        raise InputError(
            f"answers of kinds {kinds!r}: expected one kind for all users; name it, such as --task lamp-2m, or choose "
            "users of one kind: --users id,id"
        )
    first = people[0].task
    if first.name != "custom":  # a task of the table: its labels and scale are its own
        return first
    if first.rating:
        ends = [float(end) for p in people if p.task.rating for end in p.task.rating]
        golds = (parse_number(str(q.gold)) for p in people for q in p.queries)
        ends += [gold for gold in golds if gold is not None and isfinite(gold)]
        return replace(first, rating=(floor(min(ends)), ceil(max(ends))))
    if first.labels is None:
        return first
    labels = {label for p in people for label in p.task.labels or ()}
    return replace(first, labels=tuple(sorted(labels | {str(q.gold) for p in people for q in p.queries})))


def evaluate(
    people: Sequence[Case],
    chosen: Sequence[Variant],
    setting: Setting,
    results: Results,
    *,
    workers: int = 2,
    seconds: float | None = None,
    on_row: Callable[[Judged], None] | None = None,
) -> bool:
    """Ask every system every query that ``results`` has no answer to; returns whether all are answered now.

    Users come one after the other with all their systems, ``workers`` at once, so that a run cut short has whole
    pairs. An answer that cannot be parsed is a row with ``parsed=False``; an LM that fails raises.

    Args:
        seconds: end after so long, between two LM calls; a rerun goes on.
        on_row: told of each new row.

    Raises:
        Whatever the LM raises; rows written so far stay, and what runs beside it ends at its next LM call.
    """
    run = _Run(setting, results, Ledger(budget=Budget(seconds=seconds)), on_row or _nothing)
    work = [(person, variant) for person in people for variant in chosen]
    with warnings.catch_warnings():
        # Equal calls of different systems are each made and paid; at temperature 0 DSPy warns of the id for that.
        warnings.filterwarnings("ignore", message="rollout_id has no effect")
        with run.ledger.recording(), ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(contextvars.copy_context().run, run.one_or_stop, *one) for one in work]
            try:
                wait(jobs, return_when=FIRST_EXCEPTION)
                for job in jobs:
                    if job.done():
                        job.result()
            except BaseException:
                run.ledger.stop(
                    "interrupted"
                )  # what runs ends at its next LM call; half a preparation is accounted for
                for job in jobs:
                    job.cancel()
                raise
    return all(
        {q.id for q in person.queries} <= results.answered(variant.name, person.user_id) for person, variant in work
    )


def _nothing(row: Judged) -> None:
    pass


class _Run:
    def __init__(self, setting: Setting, results: Results, ledger: Ledger, on_row: Callable[[Judged], None]) -> None:
        self.setting, self.results, self.ledger, self.on_row = setting, results, ledger, on_row

    def one_or_stop(self, person: Case, variant: Variant) -> None:
        """``one``; where it raises, all that runs beside it ends at its next LM call, before the main thread hears."""
        try:
            self.one(person, variant)
        except BaseException:
            self.ledger.stop("interrupted")
            raise

    def one(self, person: Case, variant: Variant) -> None:
        """All queries of one user to one system."""
        done = self.results.answered(variant.name, person.user_id)
        left = [q for q in person.queries if q.id not in done]
        if not left:
            return
        history = person.history if variant.history is None else person.history[-variant.history :][: variant.history]
        memory = EpisodicMemory(history, user_id=person.user_id)
        program = Prepared(variant, self.setting, person.task, memory)
        lm = dspy.settings.get("lm")
        context: dict[str, Any] = {"lm": lm.copy(rollout_id=variant.name)} if lm is not None else {}
        with suppress(BudgetExceeded), dspy.context(**context):
            if program.needs_preparation:
                self._prepare(program)
            for question in left:
                self._ask(program, question)

    def _prepare(self, program: Prepared) -> None:
        ledger, began = self._account(program), time.monotonic()
        try:
            with ledger.recording():
                note = program.prepare(self.results.folder / "personas")
        except BudgetExceeded:
            if ledger.usage.calls:
                self._row(program, ledger, began, kind="partly")
            raise
        if note != "kept":
            self._row(program, ledger, began, kind="prepared", note=note)

    def _ask(self, program: Prepared, question: Question) -> None:
        ledger, began, answer, parsed = self._account(program), time.monotonic(), "", True
        ledger.check(0)
        with ledger.recording():
            try:
                answer = str(program(question.query))
            except AdapterParseError:
                parsed = False
        fields: dict[str, Any] = {"query_id": question.id, "gold": str(question.gold), "answer": answer}
        self._row(program, ledger, began, parsed=parsed and bool(answer), **fields)

    def _account(self, program: Prepared) -> Ledger:
        return Ledger(user_id=program.user_id, parent=self.ledger)

    def _row(self, program: Prepared, ledger: Ledger, began: float, **what: Any) -> None:
        row = Judged.of(
            ledger.usage, time.monotonic() - began, system=program.variant.name, user_id=program.user_id, **what
        )
        self.results.add(row)
        self.on_row(row)
