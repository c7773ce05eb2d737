"""Which program the command line runs for a task."""

from __future__ import annotations

import csv
from typing import Any

from persona_dspy.data import Task
from persona_dspy.errors import InputError

__all__ = ["agent_for", "forgettable", "named_users", "which_users"]


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
