"""Which program the command line runs for a task."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from persona_dspy.core import Interaction
from persona_dspy.data import Task, get_task, infer_task
from persona_dspy.errors import InputError

__all__ = ["agent_for", "forgettable", "named_users", "task_from_text", "task_text", "users_task", "which_users"]

_TYPED = re.compile(r"^\s*(\w+)\s*->\s*(\w+)\s*:\s*(Literal\[.*\]|rating\[.*\])\s*$", re.DOTALL)


def task_text(task: Task) -> str:
    """A task as one line: a LaMP task's name, else ``query -> tag: Literal['a', 'b']``."""
    if task.name != "custom":
        return task.name
    fields = f"{task.query_field} -> {task.response_field}"
    if task.rating:
        return f"{fields}: rating{list(task.rating)}"
    return f"{fields}: Literal{list(task.labels)}" if task.labels else fields


def task_from_text(text: str, interactions: Sequence[Interaction] = ()) -> Task:
    """Inverse of ``task_text``; a signature without types takes them from the user's interactions."""
    anything = Interaction(user_id="anybody", query="anything", response="anything")
    typed = _TYPED.match(text)
    if not typed:
        return infer_task(interactions or [anything], text) if "->" in text else get_task(text)
    query, response, kind = typed.groups()
    try:
        values = ast.literal_eval(kind[kind.index("[") :])
    except (ValueError, SyntaxError):
        raise InputError(f"task {text!r}: expected a LaMP task or fields such as 'film -> tag'") from None
    plain = infer_task([anything], f"{query} -> {response}")
    if kind.startswith("rating"):
        return replace(plain, rating=(int(values[0]), int(values[1])), metrics=("mae", "rmse"))
    return replace(plain, labels=tuple(str(v) for v in values), metrics=("accuracy", "macro_f1"))


def users_task(known: Task | None, text: str | None, interactions: Sequence[Interaction]) -> Task:
    """The task for one user: the file's, else by this user's own responses (never by another user's)."""
    return known or (task_from_text(text, interactions) if text else infer_task(interactions))


def agent_for(task: Task, **options: Any) -> Any:
    """A PersonaAgent on the task's signature."""
    from persona_dspy.agent import PersonaAgent

    return PersonaAgent(task.signature(), **options)


def forgettable() -> None:
    """Keep DSPy's LM cache of this process in memory only: the one on disk knows no user, so nobody could be forgotten
    from it."""
    import dspy

    dspy.configure_cache(enable_disk_cache=False)


def which_users(users: str | None) -> tuple[int | None, list[str] | None]:
    """``--users`` as (how many at most, which ids); None = no bound, everybody.

    An id with a comma goes into double quotes, as in CSV; one of digits alone gets a comma after it.

    Example:
        >>> which_users("3"), which_users("3,"), which_users('ana, "a,b"')
        ((3, None), (None, ['3']), (None, ['ana', 'a,b']))
    """
    if users is None:
        return None, None
    if users.isdecimal():
        return int(users), None
    return None, named_users(users)


def named_users(users: str) -> list[str]:
    """Ids separated by commas; one with a comma, or a blank at its end, in double quotes, as in CSV.

    Raises:
        InputError: a line break between ids.
    """
    try:
        named = next(csv.reader([users], skipinitialspace=True), [])
    except csv.Error:
        raise InputError(f"--users {users!r}: expected ids with commas between them, such as ana,bram") from None
    return list(dict.fromkeys(user if '"' in users else user.strip() for user in named if user.strip()))
