"""Files to user histories: a file of any size is read with one user in memory.

Forms, told apart by content: rows that are an interaction each, as JSON lines, a JSON array, CSV, Parquet or a Hugging
Face dataset (``flat.py``); LaMP's official ``questions.json`` with
``outputs.json`` beside it (one question a user); OPPU-style ``users.json`` (several questions a user).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from persona_dspy.core import Interaction, time_order
from persona_dspy.data import rows
from persona_dspy.data.columns import Columns
from persona_dspy.data.flat import columns_of, open_flat
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
from persona_dspy.data.tables import is_dataset, split_of
from persona_dspy.data.tasks import Place, Task
from persona_dspy.data.user_rows import FirstRows, UserRows
from persona_dspy.errors import InputError, UnknownUser

__all__ = ["BadRow", "Question", "UserHistory", "detect_task", "outputs_path", "read_users"]


def read_users(
    path: str | Path | Any,
    *,
    task: Task | str | None = None,
    columns: Mapping[str, str] | None = None,
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
        path: the file; ``outputs.json`` is looked for beside a ``questions.json``. Also a folder that
            ``save_to_disk`` wrote, ``folder:train`` for one of its splits, or a ``datasets.Dataset``, ``DatasetDict``
            of one split or ``IterableDataset``.
        columns: field -> column, such as ``{"user_id": "author", "query": "text"}``; a column's name in quotation
            marks is a text that all rows have. By default columns are taken by our own names, else by names that mean
            the same, which a warning says. Other columns are kept in ``metadata``.
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
    rules = Rules(skip_bad_rows, bad_rows)
    wanted = None if users is None else frozenset([users] if isinstance(users, str) else users)
    source, split = (path, None) if is_dataset(path) else split_of(path)
    form = "loaded" if is_dataset(path) else rows.file_form(Path(source))
    file_task = detect_task(source, task)
    if form != "array" or columns or _is_flat(Path(source)):
        histories = _from_flat(source, form, split, columns, file_task, wanted, rules)
        return islice(_all_wanted(histories, wanted, source), limit)
    path = Path(source)
    if file_task is None:
        raise Place(file=str(path)).error("task", task, "a LaMP task", "Name it, such as --task lamp-2m")
    else:
        histories = _from_array(path, file_task, wanted, rules, group)
        histories = join_users(histories) if group else histories
    return islice(_all_wanted(histories, wanted, path), limit)


def detect_task(path: str | Path | Any, task: Task | str | None = None) -> Task | None:
    """The task of a file: ``task`` where it is one or names one; else by ``outputs.json`` beside it; else by the form
    of its first row; else None.

    A signature such as ``"description -> tag"`` names no task (see ``infer_task``). "LaMP_2" is told apart by what
    the first profile holds.

    Raises:
        InputError: an unknown name. DataError: an unreadable ``outputs.json``.
    """
    if isinstance(task, Task):
        return task
    if task and "->" not in task:
        return get_task(task)
    if is_dataset(path) or rows.file_form(Path(path)) != "array":
        return None
    path = Path(path)
    outputs = outputs_path(path)
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


def _all_wanted(histories: Iterator[UserHistory], wanted: frozenset[str] | None, path: Any) -> Iterator[UserHistory]:
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


def _from_flat(
    source: Any,
    form: str,
    split: str | None,
    columns: Mapping[str, str] | None,
    task: Task | None,
    wanted: frozenset[str] | None,
    rules: Rules,
) -> Iterator[UserHistory]:
    # First every row is checked and its place noted, so that a bad last row stops the work before it starts.
    with open_flat(source, form, split) as flat, closing(UserRows()) as places:
        fields = columns_of(flat, columns)
        key = 0
        for number, kept, row in flat.walk():
            users = rules.attempt(partial(_checked, row, fields, task, wanted, flat.at(number)))
            for user_id in users or ():
                key += 1
                places.add(user_id, key, json.dumps([number, kept]))
        for own in places.by_user():
            ids, interactions, user_id = UniqueIds(), list[Interaction](), ""
            for number, kept in map(json.loads, dict.fromkeys(content for _, content in own)):
                at = flat.at(number)
                for row in fields.rows(flat.again(number, kept), at):
                    user_id = text_id(row, "user_id", at)
                    new = rules.attempt(partial(_admitted, row, task, ids, at))
                    interactions += [new] if new else []
            yield _history(Path(flat.at(1).file), user_id, interactions)


def _checked(
    read: Callable[[], Any], fields: Columns, task: Task | None, wanted: frozenset[str] | None, at: Place
) -> set[str]:
    """Whose row it is; nobody's, where the user is not wanted."""
    row = read()
    if not isinstance(row, dict):
        raise at.error(None, row, 'an object such as {"user_id": "u1", "query": "...", "response": "..."}')
    users: set[str] = set()
    for ours in fields.rows(row, at):
        user_id = text_id(ours, "user_id", at)
        if wanted is None or user_id in wanted:
            users.add(line_interaction(ours, task, at).user_id)
    return users


def _is_flat(path: Path) -> bool:
    """Whether a JSON array holds interactions, as JSON lines do, and no users."""
    _, first = next(rows.array_rows(path), (0, None))
    return isinstance(first, dict) and "profile" not in first and task_of_row(first) is None


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
