"""Systems x users -> answers, one row each.

Protocol: a user's history comes before the user's queries in time; alignment and every other preparation see the
history alone; a query is asked of a system once, and its answer changes nothing.
"""

from __future__ import annotations

import contextvars
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from persona_dspy.core import answer_text
from persona_dspy.data import Question
from persona_dspy.errors import BudgetExceeded, ModelError
from persona_dspy.judge.people import Case
from persona_dspy.judge.results import Judged, Results
from persona_dspy.judge.systems import Prepared, Setting
from persona_dspy.judge.variant import Variant
from persona_dspy.lm import Ledger

__all__ = ["RUBBISH", "ask_all"]

RUBBISH = 8
"""So many answers of an LM, none of which can be read, end an evaluation."""


def ask_all(
    people: Sequence[Case],
    chosen: Sequence[Variant],
    setting: Setting,
    results: Results,
    *,
    workers: int = 2,
    ledger: Ledger | None = None,
    on_row: Callable[[Judged], None] | None = None,
) -> bool:
    """Ask every system every query that ``results`` has no answer to; returns whether all are answered now.

    Users come one after the other with all their systems, ``workers`` at once, so that a run cut short has whole
    pairs. An answer that cannot be parsed is a row with ``parsed=False``; an LM that fails raises.

    Args:
        ledger: counts all calls of this run; where its budget ends, work stops between two of them; a rerun goes on.
        on_row: told of each new row.

    Raises:
        ModelError: the first answers cannot be read, not one of ``RUBBISH``. They are not kept.
        Whatever the LM raises; rows written so far stay, and what runs beside it ends at its next LM call.
    """
    run = _Run(setting, results, ledger or Ledger(), on_row or _nothing)
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
                run.ledger.stop("interrupted")  # what runs ends at its next LM call
                for job in jobs:
                    job.cancel()
                raise
            run.end()
    return all(
        {q.id for q in person.queries} <= results.answered(variant.name, person.user_id) for person, variant in work
    )


def _nothing(row: Judged) -> None:
    pass


class _Run:
    def __init__(self, setting: Setting, results: Results, ledger: Ledger, on_row: Callable[[Judged], None]) -> None:
        self.setting, self.results, self.ledger, self.on_row = setting, results, ledger, on_row
        self._unread: list[Judged] = []  # answers of an LM of which none was read by now
        self._was_read = any(r.kind == "answer" and r.calls and r.parsed for r in results.rows)
        self._lock = threading.Lock()

    def end(self) -> None:
        """Keep the few answers that could not be read where there are no others."""
        unread, self._unread = self._unread, []
        for row in unread:
            self._keep(row)

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
        program = Prepared(variant, self.setting, person.task, history, person.user_id)
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
        score = None if self.setting.metric is None or question.gold is None else 0.0  # of what cannot be read
        ledger.check(0)
        with ledger.recording():
            try:
                prediction = program(question.query, question.metadata.get("options", ()))
                answer = answer_text(prediction[program.task.response_field])
                score = program.score(question, prediction)
            except AdapterParseError:
                parsed = False
        fields: dict[str, Any] = {"query_id": question.id, "gold": question.gold or "", "answer": answer}
        fields["score"] = score
        self._row(program, ledger, began, parsed=parsed and bool(answer), **fields)

    def _account(self, program: Prepared) -> Ledger:
        return Ledger(user_id=program.user_id, parent=self.ledger)

    def _row(self, program: Prepared, ledger: Ledger, began: float, **what: Any) -> None:
        row = Judged.of(
            ledger.usage, time.monotonic() - began, system=program.variant.name, user_id=program.user_id, **what
        )
        if row.kind != "answer" or not row.calls:
            self._keep(row)
            return
        with self._lock:
            self._was_read = self._was_read or row.parsed
            self._unread.append(row)
            if not self._was_read and len(self._unread) >= RUBBISH:
                raise ModelError(
                    f"the first {len(self._unread)} answers of the LM cannot be read, the last one "
                    f"{row.answer[:100]!r} of {row.system!r}; expected answers in the form that is asked for. Look at "
                    "one of them: persona-dspy ask; is it the right model, and are max_tokens enough?"
                )
            rows, self._unread = (self._unread, []) if self._was_read else ([], self._unread)
        for one in rows:
            self._keep(one)

    def _keep(self, row: Judged) -> None:
        self.results.add(row)
        self.on_row(row)
