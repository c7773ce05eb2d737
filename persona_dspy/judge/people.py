"""The users of an evaluation: their task, their history, and the held-out queries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from pathlib import Path
from typing import Any

from persona_dspy.core import AnswerSurvey, Interaction, answered, in_time_order, number_of, own_labels
from persona_dspy.data import BadRow, Question, Task, UserHistory, is_typed, users_task
from persona_dspy.errors import DataError, InputError
from persona_dspy.judge.results import data_hash

__all__ = ["Case", "Source", "cases", "longest", "named_users", "read_people", "scored_as"]

Source = str | Path | Iterable[UserHistory] | Iterable[Interaction]
"""What ``read_users`` reads (a data file, a dataset), or users, or interactions of any users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One user as the judge sees it: the task, the history, oldest first, and the held-out queries with known answers.

    Where a file has no task, what kind answers are is decided over all users' histories; a user's labels are those of
    the user's own.
    """

    user_id: str
    task: Task
    history: tuple[Any, ...]
    queries: tuple[Question, ...]


def cases(
    users: Iterable[UserHistory],
    task: Task | None = None,
    *,
    queries: int | None = None,
    unanswered: bool = False,
    text: str | None = None,
) -> list[Case]:
    """Users with their held-out queries: the file's own where it has any, else the latest quarter (1 to 8) of the
    user's interactions, which then leave the history. Users with nothing to ask are left out.

    Args:
        queries: at most so many a user, the earliest.
        unanswered: ask the file's queries whose answer is withheld too (a benchmark's test split).
        text: where the file names no task, what was typed of it, such as ``"film -> tag"``.

    Example:
        >>> from persona_dspy import Interaction
        >>> past = tuple(Interaction(user_id="u", query=f"q{n}", response="a") for n in range(8))
        >>> [(len(c.history), len(c.queries)) for c in cases([UserHistory(user_id="u", interactions=past)])]
        [(6, 2)]
    """
    split: list[tuple[str, tuple[Any, ...], tuple[Question, ...]]] = []
    survey = AnswerSurvey()
    for user in users:
        history: tuple[Interaction, ...] = user.interactions
        answers_given = answered(history)
        asked = tuple(q for q in user.questions if unanswered or q.gold is not None)
        if not user.questions and len(answers_given) > 1:
            late = answers_given[-max(1, min(8, len(answers_given) // 4)) :]
            history = history[: next(n for n, i in enumerate(history) if i is late[0])]
            asked = tuple(
                Question(id=i.id, query=i.query, gold=i.response, time=i.time, metadata=_offered(i)) for i in late
            )
        if asked and (task or history):
            split.append((user.user_id, history, asked[:queries]))
            survey.add(i.response for i in answered(history))
    answers = None if task or is_typed(text) else survey.kind()
    return [
        Case(user_id=user_id, task=users_task(task, text, history, answers), history=history, queries=asked)
        for user_id, history, asked in split
    ]


def _offered(interaction: Interaction) -> dict[str, Any]:
    signal = interaction.signal
    return {"options": list(signal.options)} if signal is not None and signal.options else {}


def longest(users: Iterable[UserHistory], n: int) -> list[UserHistory]:
    """The ``n`` users with the longest histories, as the paper chooses them; of equals the first. ``n`` are in memory.

    Example:
        >>> from persona_dspy import Interaction
        >>> users = [
        ...     UserHistory(user_id=u, interactions=(Interaction(user_id=u, query="q", response="a"),) * n)
        ...     for u, n in (("a", 1), ("b", 3), ("c", 2))
        ... ]
        >>> [u.user_id for u in longest(users, 2)]
        ['b', 'c']
    """
    return nlargest(n, users, key=lambda user: len(user.interactions))


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
    golds = [str(q.gold) for p in people for q in p.queries if q.gold is not None]
    if first.rating:
        ends = [end for p in people if p.task.rating for end in p.task.rating]
        ends += [gold for text in golds if (gold := number_of(text)) is not None]
        return replace(first, rating=(min(ends), max(ends)))
    if first.labels is None:
        return first
    return replace(first, labels=own_labels([*(label for p in people for label in p.task.labels or ()), *golds]))


def read_people(
    source: Source,
    task: Task | str | None,
    users: int | str | Sequence[str] | None,
    queries: int | None,
    unanswered: bool,
    bad_rows: list[BadRow] | None,
    columns: Mapping[str, str] | None = None,
) -> tuple[Task, list[Case], str]:
    """The task that scores, the users, and the data's hash. ``bad_rows``: a list that gets what is passed over; None =
    nothing is, the first bad row raises. ``columns``: as in ``read_users``."""
    from persona_dspy.data import detect_task, is_dataset, read_users, task_from_text

    most, wanted, by_length = _which(users)
    limit = None if by_length else most
    text = task if isinstance(task, str) else None
    typed = task_from_text(text) if text is not None else None  # also where it leaves the kind open: it may be wrong
    named = typed if is_typed(text) else None
    if isinstance(source, str | Path) or is_dataset(source):
        known = named or detect_task(source, task)
        same: dict[str, Any] = {"task": known, "limit": limit, "users": wanted, "columns": columns}
        histories = read_users(source, skip_bad_rows=bad_rows is not None, bad_rows=bad_rows, **same)
        where, digest = str(source), data_hash(source, columns)
    else:
        known = named if isinstance(task, str) else task
        given = _histories(source)
        histories = iter([u for u in given if wanted is None or u.user_id in wanted][:limit])
        where, digest = "source", _hash_of(given)
    if by_length and most is not None:
        histories = iter(longest(histories, most))
    people = cases(histories, known, queries=queries, unanswered=unanswered, text=text)
    if not people:
        expected = "users with queries whose answers are known (outputs.json beside a questions.json), or with 2 "
        expected += "interactions; where answers are withheld: --predict FILE, or evaluate(..., unanswered=True)"
        raise DataError(where, expected=expected, value="none")
    return scored_as(people), people, digest


def named_users(users: int | str | Sequence[str] | None) -> Sequence[str] | None:
    """The user ids in ``evaluate``'s ``users``; None where it is a number, ``"longest:N"`` or None."""
    return _which(users)[1]


def _which(users: int | str | Sequence[str] | None) -> tuple[int | None, Sequence[str] | None, bool]:
    """How many, which, and whether those with the longest histories."""
    if isinstance(users, str):
        kind, _, count = users.partition(":")
        if kind == "longest" and count.isdecimal() and int(count):
            return int(count), None, True
        return None, [users], False
    if isinstance(users, int) or users is None:
        return users, None, False
    return None, list(users), False


def _histories(source: Iterable[UserHistory] | Iterable[Interaction]) -> list[UserHistory]:
    users: dict[str, list[Interaction]] = {}
    given: list[UserHistory] = []
    for item in source:
        if isinstance(item, UserHistory):
            given.append(item)
        elif isinstance(item, Interaction):  # type: ignore[reportUnnecessaryIsInstance]
            users.setdefault(item.user_id, []).append(item)
        else:
            raise InputError(f"source item {item!r}: expected Interaction or UserHistory, or the path of a data file")
    return given + [UserHistory(user_id=u, interactions=tuple(in_time_order(past))) for u, past in users.items()]


def _hash_of(users: Sequence[UserHistory]) -> str:
    digest = hashlib.sha256()
    for user in users:
        past = [
            (i.id, i.query, i.response, str(i.time), *([i.signal.to_dict()] if i.signal else []))
            for i in user.interactions
        ]
        asked = [(q.id, q.query, q.gold) for q in user.questions]
        digest.update(json.dumps([user.user_id, past, asked]).encode())
    return digest.hexdigest()[:16]
