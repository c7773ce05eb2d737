"""What a row of a data file says of a user: a JSON line, a row of LaMP's official form, an OPPU-style row."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from persona_dspy.core import Interaction, Signal, can_be_told_apart, time_order
from persona_dspy.data.columns import FIELDS, SAID
from persona_dspy.data.tasks import Place, Task, answered, checked_text, read_time
from persona_dspy.errors import DataError, InputError

__all__ = ["BadRow", "Question", "Rules", "UniqueIds", "UserHistory", "array_user", "line_interaction", "text_id"]

_T = TypeVar("_T")
_ROW = '{"id": "10", "input": "...", "profile": [...]} or {"user_id": "u1", "profile": [...], "query": [...]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A held-out query of a user: what to answer, and the user's own response where it is known.

    ``gold`` is None where withheld. ``metadata["input"]``: the official input as given.
    """

    id: str
    query: str
    gold: str | None = None
    time: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy does not copy or cross processes; a dict does
        return _question_again, (self.id, self.query, self.gold, self.time, dict(self.metadata))


def _question_again(*values: Any) -> Question:
    return Question(**dict(zip(("id", "query", "gold", "time", "metadata"), values, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class UserHistory:
    """One user: past interactions, oldest first (file order where a time is missing), and held-out questions."""

    user_id: str
    interactions: tuple[Interaction, ...] = ()
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row, profile item or question that was left out, and why (the text of its ``DataError``)."""

    file: str
    reason: str
    line: int | None = None
    row_id: str | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """How bad rows are met: raised, or kept in ``bad`` and passed over."""

    skip: bool
    bad: list[BadRow] | None

    def attempt(self, build: Callable[[], _T]) -> _T | None:
        """``build()``, or None where it raised a ``DataError`` that is to be passed over."""
        try:
            return build()
        except DataError as error:
            if not self.skip:
                raise
            if self.bad is not None:
                self.bad.append(BadRow(file=error.file, line=error.line, row_id=error.row_id, reason=str(error)))
            return None


def text_id(row: Mapping[str, Any], key: str, at: Place) -> str:
    """The id under ``key``, as text; space around it is part of it, here as in a store and in the service.

    Raises:
        DataError: missing, blank, or neither text nor a whole number.
    """
    value = row.get(key)
    if isinstance(value, float) and not value.is_integer():  # 7.0 is how some tables write 7
        raise at.error(key, value, "a text or a whole number")
    text = checked_text(value, at, key, "a text or a whole number that is not empty")
    return value if isinstance(value, str) else text


class UniqueIds:
    """Ids within one user: a given id twice is an error, an id made from content gets a suffix."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def admit(self, interaction: Interaction, given: bool, at: Place) -> Interaction:
        unique, copy = interaction.id, 1
        if given and unique in self.seen:
            raise at.error("id", unique, "an id that is unique within the user")
        while unique in self.seen:
            copy += 1
            unique = f"{interaction.id}-{copy}"
        self.seen.add(unique)
        return interaction if copy == 1 else replace(interaction, id=unique, metadata=dict(interaction.metadata))


def line_interaction(row: dict[str, Any], task: Task | None, at: Place) -> Interaction:
    """The interaction on one JSON line; with a ``task``, its response is checked against it. What the user said about
    our draft stands under ``signal``, or as fields of the row (``draft``, ``comment``, ``thumbs``, ...).

    Raises:
        DataError: a field is missing, blank, of the wrong type or unknown.
    """
    unknown = next((key for key in row if key not in (*FIELDS, *SAID, "title")), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, (*FIELDS, *SAID), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f'Put extras under "metadata": {{{unknown!r}: ...}}'
        raise at.error(unknown, row[unknown], f"only the fields {', '.join((*FIELDS, *SAID))}", hint)
    query = checked_text(row.get("query"), at, "query", "what the user was asked, as text")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise at.error("metadata", metadata, "an object such as {}")
    if row.get("title") not in (None, ""):
        metadata = {"title": checked_text(row["title"], at, "title"), **metadata}
    for key, value in metadata.items():
        if isinstance(value, str) and value.strip():
            checked_text(value, at, f"metadata.{key}")
    response, signal = row.get("response"), _signal(row, at)
    text = ""
    if response not in (None, "") or signal is None:
        text = task.parse_response(response, at) if task else answered(response, at)
    return Interaction(
        user_id=text_id(row, "user_id", at),
        query=query,
        response=text,
        time=read_time(row.get("time"), at, "time"),
        id=text_id(row, "id", at) if "id" in row else "",
        metadata=metadata,
        signal=signal,
    )


def _signal(row: Mapping[str, Any], at: Place) -> Signal | None:
    """What the row says beside an answer: under ``signal``, or by the fields' own names."""
    said = {name: row[name] for name in SAID if row.get(name) is not None}
    nested = row.get("signal") or {}
    if not isinstance(nested, dict):
        raise at.error("signal", nested, 'an object such as {"draft": "...", "comment": "too long", "thumbs": "down"}')
    try:
        signal = Signal.of(nested | said)
    except InputError as error:
        value, _, expected = str(error).partition(": expected ")
        raise at.error("signal", nested | said, expected or value) from None
    if signal.options and not can_be_told_apart(signal.options):
        raise at.error("options", list(signal.options), 'two different texts or more, such as ["tea", "coffee"]')
    return signal or None


def array_user(
    row: Any, task: Task, golds: dict[str, Any] | None, wanted: frozenset[str] | None, at: Place, rules: Rules
) -> UserHistory | None:
    """The user on one row of a LaMP official (``input``) or OPPU-style (``query``) array.

    Args:
        golds: by question id, for official rows. An OPPU-style row holds its own.
        wanted: user ids; None is returned for a user not among them.
        rules: for single profile items and questions.

    Raises:
        DataError: the row itself cannot be used.
    """
    if not isinstance(row, dict):
        raise at.error(None, row, _ROW)
    user_id = text_id(row, _user_key(row), at)
    if wanted is not None and user_id not in wanted:
        return None
    at = replace(at, row_id=user_id)
    profile = row.get("profile")
    if not isinstance(profile, list):
        raise at.error("profile", profile, "a list of the user's past items")
    if "query" in row:
        questions = _questions(row["query"], task, at, rules)
    elif "input" in row:
        questions = (_question(row, task, golds, at),)
    elif "user_id" in row:
        questions = ()
    else:
        raise at.error("input", None, _ROW)
    return UserHistory(user_id=user_id, interactions=_profile(profile, user_id, task, at, rules), questions=questions)


def _user_key(row: Mapping[str, Any]) -> str:
    """The key of a row's user; LongLaMP's rows have no id, and name the user by what the user is."""
    return next((key for key in ("user_id", "id", "name", "reviewerId", "author") if key in row), "id")


def _questions(asked: Any, task: Task, at: Place, rules: Rules) -> tuple[Question, ...]:
    if not isinstance(asked, list):
        raise at.error("query", asked, 'a list such as [{"id": "10", "input": "...", "gold": "..."}]')
    questions: dict[str, Question] = {}

    def build(number: int, row: Any) -> None:
        inner = at.inside(f"query[{number}].")
        question = _question(row, task, None, inner)
        if question.id in questions:
            raise inner.error("id", question.id, "an id that is unique within the user")
        questions[question.id] = question

    for number, row in enumerate(asked):
        rules.attempt(partial(build, number, row))
    return tuple(questions.values())


def _question(row: Any, task: Task, golds: Mapping[str, Any] | None, at: Place) -> Question:
    """``golds``: by question id, every one known; None where the row itself holds its gold, or none."""
    if not isinstance(row, dict):
        raise at.error(None, row, 'an object such as {"id": "10", "input": "...", "gold": "..."}')
    question_id = text_id(row, "id" if "id" in row or "profile" not in row else _user_key(row), at)
    query = task.parse_input(row.get("input"), at)
    if golds is not None and question_id not in golds:
        raise at.error("id", question_id, "an id that outputs.json has a gold for")
    own = next((row[key] for key in ("gold", "output") if row.get(key) is not None), None)
    gold = own if golds is None else golds[question_id]
    return Question(
        id=question_id,
        query=query,
        gold=None if gold is None else task.parse_response(gold, at, "gold" if golds is None else "output"),
        time=read_time(row.get("date"), at, "date"),
        metadata={"input": row["input"]},
    )


def _dated(value: object, at: Place) -> tuple[datetime | None]:
    return (read_time(value, at, "date"),)


def _profile(items: list[Any], user_id: str, task: Task, at: Place, rules: Rules) -> tuple[Interaction, ...]:
    dated: list[tuple[datetime | None, Place, Any]] = []
    for number, item in enumerate(items):
        inner = at.inside(f"profile[{number}].")
        value = item.get("date") if isinstance(item, dict) else None
        time = rules.attempt(partial(_dated, value, inner))
        if time:
            dated.append((time[0], inner, item))
    dated = [dated[place] for place in time_order([time for time, _, _ in dated])]
    ids, interactions = UniqueIds(), list[Interaction]()

    def build(item: Any, inner: Place) -> Interaction:
        interaction = task.interaction(item, user_id, earlier=interactions, at=inner)
        return ids.admit(interaction, item.get("id") not in (None, ""), inner)

    for _, inner, item in dated:
        new = rules.attempt(partial(build, item, inner))
        if new:
            interactions.append(new)
    return tuple(interactions)
