"""Files to user histories: a file of any size is read with one user in memory.

Forms, told apart by content: JSON lines, or a JSON array, of interactions; LaMP's official ``questions.json`` with
``outputs.json`` beside it (one question a user); OPPU-style ``users.json`` (several questions a user).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from persona_dspy.core import Interaction, time_order
from persona_dspy.data import rows
from persona_dspy.data.interaction_rows import (
    BadRow,
    Question,
    Rules,
    UniqueIds,
    UserHistory,
    array_user,
    line_interaction,
    text_id,
)
from persona_dspy.data.joining import join_users
from persona_dspy.data.lamp import get_task, task_of_row
from persona_dspy.data.tasks import Place, Task
from persona_dspy.data.user_rows import FirstRows, UserRows
from persona_dspy.errors import InputError, UnknownUser

__all__ = ["BadRow", "Question", "UserHistory", "detect_task", "outputs_path", "read_users"]


def read_users(
    path: str | Path,
    *,
    task: Task | str | None = None,
    limit: int | None = None,
    users: Collection[str] | None = None,
    skip_bad_rows: bool = False,
    bad_rows: list[BadRow] | None = None,
    group: bool = False,
) -> Iterator[UserHistory]:
    """Histories of a file's users, one at a time, in the file's order.

    A file of any size is read with one user in memory. A user's rows may be scattered over JSON lines: where they
    are is kept in a temporary file. Interactions come in time order; where times are equal or missing, in file order.

    Args:
        path: the file; ``outputs.json`` is looked for beside a ``questions.json``.
        task: a task or its name; by default the one ``outputs.json`` names. JSON lines need none; with one, responses
            are checked against it.
        limit: so many users at most.
        users: only these. Rows of others are not checked beyond being JSON.
        skip_bad_rows: pass over what cannot be used (a JSON line, a profile item, a question) instead of raising.
        bad_rows: a list that gets one ``BadRow`` for each thing passed over.
        group: several rows of an array may be one user's; they are joined (``join_users``). JSON lines always are.

    Raises:
        DataError: from the call itself where the file or its task cannot be told; while iterating for a row. Broken
            JSON inside an array is raised even with ``skip_bad_rows``: nothing after it can be found.
        UnknownUser: while iterating, at the end: one of ``users`` is not in the file.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "mine.jsonl")
        >>> _ = path.write_text('{"user_id": "u1", "query": "Alien", "response": "horror", "time": "2026-01-03"}')
        >>> [(u.user_id, len(u.interactions)) for u in read_users(path)]
        [('u1', 1)]
    """
    if limit is not None and limit < 0:
        raise InputError(f"limit {limit!r}: expected 0 or more users, or None for all")
    path = Path(path)
    rules = Rules(skip_bad_rows, bad_rows)
    wanted = None if users is None else frozenset([users] if isinstance(users, str) else users)
    form = rows.file_form(path)
    file_task = detect_task(path, task)
    if form == "lines":
        histories = _from_lines(path, file_task, wanted, rules)
    elif _is_flat(path):
        histories = _from_flat(path, file_task, wanted, rules)
    elif file_task is None:
        raise Place(file=str(path)).error("task", task, "a LaMP task", "Name it, such as --task lamp-2m")
    else:
        histories = _from_array(path, file_task, wanted, rules, group)
        histories = join_users(histories) if group else histories
    return islice(_all_wanted(histories, wanted, path), limit)


def detect_task(path: str | Path, task: Task | str | None = None) -> Task | None:
    """The task of a file: ``task`` where it is one or names one; else by ``outputs.json`` beside it; else by the form
    of its first row; else None.

    A signature such as ``"description -> tag"`` names no task (see ``infer_task``). "LaMP_2" is told apart by what
    the first profile holds.

    Raises:
        InputError: an unknown name. DataError: an unreadable ``outputs.json``.
    """
    if isinstance(task, Task):
        return task
    path = Path(path)
    if task and "->" not in task:
        return get_task(task)
    outputs = outputs_path(path)
    if rows.file_form(path) == "lines":
        return None
    if not outputs.exists():
        return next((task_of_row(row) for _, row in rows.array_rows(path)), None)
    name, _ = rows.read_golds(outputs)
    if "".join(c for c in name.casefold() if c.isalnum()) != "lamp2":
        return get_task(name)
    for _, row in rows.array_rows(path):
        profile = row.get("profile") if isinstance(row, dict) else None
        keys = set(profile[0]) if isinstance(profile, list) and profile and isinstance(profile[0], dict) else set()
        if keys & {"tag", "category"}:
            return get_task("lamp-2m" if "tag" in keys else "lamp-2n")
    return None


def outputs_path(path: Path) -> Path:
    """Where the golds of a questions file are: ``dev_questions.json`` -> ``dev_outputs.json``."""
    name = path.name.replace("questions", "outputs") if "questions" in path.name else "outputs.json"
    return path.with_name(name)


def _all_wanted(histories: Iterator[UserHistory], wanted: frozenset[str] | None, path: Path) -> Iterator[UserHistory]:
    missing = set(wanted or ())
    for user in histories:
        missing.discard(user.user_id)
        yield user
        if wanted and not missing:
            return
    if missing:
        raise UnknownUser(
            f"user {sorted(missing)[0]!r}: not in {path}; expected the id of a user with usable rows there"
        )


def _from_lines(path: Path, task: Task | None, wanted: frozenset[str] | None, rules: Rules) -> Iterator[UserHistory]:
    # First every row is checked and its place noted, so that a bad last row stops the work before it starts.
    with closing(UserRows()) as places, rows.open_data(path) as file:
        for number, offset, line in rows.numbered_lines(path):
            at = Place(file=str(path), line=number)
            user_id = rules.attempt(partial(_checked_line, line, task, wanted, at))
            if user_id:
                places.add(user_id, number, offset)
        for own in places.by_user():
            ids, interactions, user_id = UniqueIds(), list[Interaction](), ""
            for number, offset in own:
                file.seek(offset)
                at = Place(file=str(path), line=number)
                row = rows.json_line(file.readline(), at)
                user_id = text_id(row, "user_id", at)
                new = rules.attempt(partial(_admitted, row, task, ids, at))
                if new:
                    interactions.append(new)
            yield _history(path, user_id, interactions)


def _is_flat(path: Path) -> bool:
    """Whether a JSON array holds interactions, as JSON lines do, and no users."""
    _, first = next(rows.array_rows(path), (0, None))
    return isinstance(first, dict) and "profile" not in first and "response" in first


def _from_flat(path: Path, task: Task | None, wanted: frozenset[str] | None, rules: Rules) -> Iterator[UserHistory]:
    with closing(UserRows()) as own_rows:
        for position, row in rows.array_rows(path):
            at = Place(file=str(path), row_id=f"#{position}")
            user_id = rules.attempt(partial(_checked_row, row, task, wanted, at))
            if user_id:
                own_rows.add(user_id, position, json.dumps(row))
        for own in own_rows.by_user():
            ids, interactions, user_id = UniqueIds(), list[Interaction](), ""
            for position, text in own:
                row, at = json.loads(text), Place(file=str(path), row_id=f"#{position}")
                user_id = text_id(row, "user_id", at)
                new = rules.attempt(partial(_admitted, row, task, ids, at))
                if new:
                    interactions.append(new)
            yield _history(path, user_id, interactions)


def _checked_row(row: Any, task: Task | None, wanted: frozenset[str] | None, at: Place) -> str | None:
    if not isinstance(row, dict):
        raise at.error(None, row, 'an object such as {"user_id": "u1", "query": "...", "response": "..."}')
    user_id = text_id(row, "user_id", at)
    return line_interaction(row, task, at).user_id if wanted is None or user_id in wanted else None


def _history(path: Path, user_id: str, interactions: list[Interaction]) -> UserHistory:
    undated = sum(i.time is None for i in interactions)
    if 0 < undated < len(interactions):
        order = "by their neighbours' times" if 2 * undated < len(interactions) else "as the file has them"
        told = f"{undated} of {len(interactions)} interactions have no time; they are put {order}"
        warnings.warn(f"{path}: user {user_id!r}: {told}", stacklevel=2)
    ordered = [interactions[place] for place in time_order([i.time for i in interactions])]
    return UserHistory(user_id=user_id, interactions=tuple(ordered))


def _admitted(row: dict[str, Any], task: Task | None, ids: UniqueIds, at: Place) -> Interaction:
    return ids.admit(line_interaction(row, task, at), "id" in row, at)


def _checked_line(line: bytes | None, task: Task | None, wanted: frozenset[str] | None, at: Place) -> str | None:
    row = rows.json_line(line, at)
    user_id = text_id(row, "user_id", at)
    if wanted is not None and user_id not in wanted:
        return None
    return line_interaction(row, task, at).user_id


def _from_array(
    path: Path, task: Task, wanted: frozenset[str] | None, rules: Rules, group: bool
) -> Iterator[UserHistory]:
    golds: dict[str, Any] | None = None
    with closing(FirstRows()) as first_rows:
        for position, row in rows.array_rows(path):
            if golds is None and isinstance(row, dict) and "input" in row and not {"output", "gold"} & set(row):
                golds = _official_golds(path)
            at = Place(file=str(path), row_id=f"#{position}")
            user = rules.attempt(partial(array_user, row, task, golds, wanted, at, rules))
            if user is None:
                continue
            first = position if group else first_rows.first(user.user_id, position)
            if first == position:
                yield user
            else:
                rules.attempt(partial(_repeated, str(path), user.user_id, first, position))


def _repeated(file: str, user_id: str, first: int, again: int) -> None:
    hint = "Join them: type --group, or read_users(..., group=True)"
    raise Place(file=file, row_id=user_id).error("user_id", f"rows {first} and {again}", "each user in one row", hint)


def _official_golds(path: Path) -> dict[str, Any] | None:
    """Golds by question id; None for a test split, whose golds LaMP keeps to itself."""
    outputs = outputs_path(path)
    if outputs.exists():
        return rows.read_golds(outputs)[1]
    if "test" in path.stem.casefold():
        return None
    hint = "Put it beside the questions file (persona-dspy data pull fetches both); a test split has 'test' in its name"
    raise Place(file=str(outputs)).error(None, "no such file", f"the golds of {path.name}", hint)
