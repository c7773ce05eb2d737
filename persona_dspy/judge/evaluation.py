"""From a data file and the names of systems to a table, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import dspy

from persona_dspy.data import Task
from persona_dspy.judge.experiment import Evaluation, Experiment
from persona_dspy.judge.options import EvaluationOptions
from persona_dspy.judge.people import Source
from persona_dspy.judge.results import Judged
from persona_dspy.judge.variant import SYSTEMS
from persona_dspy.lm import Budget

__all__ = ["evaluate"]


def evaluate(  # noqa: PLR0913 - keyword-only, each with a default
    source: Source,
    *,
    task: Task | str | None = None,
    systems: Sequence[str] = SYSTEMS,
    lm: str | dspy.LM | None = None,
    users: int | str | Sequence[str] | None = None,
    queries: int | None = None,
    out: str | Path = "evaluation",
    workers: int | None = None,
    budget: Budget | None = None,
    on_row: Callable[[Judged], None] | None = None,
    skip_bad_rows: bool = False,
    unanswered: bool = False,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Compare systems on users' held-out queries: scores with intervals over users, tests, and what they cost.

    Answers are kept in ``out`` one by one: the same call goes on where it ended, and asks nothing twice. A folder that
    holds answers under other settings is refused.

    Args:
        source: a data file (JSON lines, LaMP ``questions.json``, OPPU-style ``users.json``), users or interactions.
        task: ``"lamp-3"``, say; by default the file's own, or inferred from each user's history.
        systems: names of rows, such as ``"persona"``, ``"rag"``, ``"icl@k=40"``, ``"persona@no-memory"``.
        lm: a name (asked at temperature 0), an LM object as it is, or None for the configured one.
        users: how many at most, ``"longest:100"`` for those with the longest histories, or ids.
        queries: so many a user at most, the earliest.
        out: the folder.
        workers, budget, on_row: see ``Experiment.run``.
        skip_bad_rows: pass over rows that cannot be used, instead of raising.
        unanswered: ask queries whose answer the file withholds too; ``predictions`` has what came out.
        **options: ``EvaluationOptions``: k, retrieval, recent, epochs, gate, actions, knowledge, seed, ...

    Raises:
        DataError, InputError, UnknownUser: the input; before anything is paid.
        ModelError: the LM does not answer.

    Example:
        >>> import tempfile
        >>> from persona_dspy.testing import SyntheticUser, rule_following_lm
        >>> past = [i for n in range(3) for i in SyntheticUser(seed=n).interactions(16)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = evaluate(past, systems=["direct", "rag"], lm=rule_following_lm(heeds_turns=True), out=folder)
        >>> found.complete, [s.system for s in found.table], len(found.to_pandas())
        (True, ['direct', 'rag', 'majority', 'nearest'], 48)
    """
    experiment = Experiment(
        source,
        task=task,
        systems=systems,
        lm=lm,
        users=users,
        queries=queries,
        out=out,
        skip_bad_rows=skip_bad_rows,
        unanswered=unanswered,
        **options,
    )
    return experiment.run(workers=workers, budget=budget, on_row=on_row)
