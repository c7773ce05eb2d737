"""Joins the rows of a user that a stream of histories holds apart, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from persona_dspy.core import Interaction, in_time_order
from persona_dspy.data.interaction_rows import Question, UniqueIds, UserHistory
from persona_dspy.data.tasks import Place
from persona_dspy.data.user_rows import UserRows
from persona_dspy.errors import InputError

__all__ = ["join_users"]


def join_users(histories: Iterable[UserHistory]) -> Iterator[UserHistory]:
    """Each user once, with the interactions and questions of all the user's histories; users in order of first row.

    All histories are read before the first is yielded. They wait in a temporary file without a name, not in memory, and
    the file is gone with the iterator. Interactions come in time order, or in the order given where a time is missing.
    One that is given twice, with the same id and content, is taken once.

    Raises:
        DataError: two interactions or questions of a user have one id and differ.
        InputError: metadata that is no JSON.

    Example:
        >>> def of(user, query):
        ...     return UserHistory(user_id=user, interactions=(Interaction(user_id=user, query=query, response="a"),))
        >>> [(u.user_id, len(u.interactions)) for u in join_users([of("u1", "x"), of("u2", "x"), of("u1", "y")])]
        [('u1', 2), ('u2', 1)]
    """
    with closing(UserRows()) as rows:
        for number, history in enumerate(histories, 1):
            rows.add(history.user_id, number, _body(history))
        for parts in rows.by_user():
            yield _joined([(number, _history(json.loads(body))) for number, body in parts])


def _joined(parts: list[tuple[int, UserHistory]]) -> UserHistory:
    if len(parts) == 1:
        return parts[0][1]
    ids, interactions, questions = UniqueIds(), dict[str, Interaction](), dict[str, Question]()
    for position, part in parts:
        at = Place(file="users to join", row_id=part.user_id).inside(f"row {position}: ")
        for item in part.interactions:
            if interactions.get(item.id) == item:
                continue
            admitted = ids.admit(item, replace(item, id="", metadata={}).id != item.id, at)
            interactions[admitted.id] = admitted
        for question in part.questions:
            if questions.setdefault(question.id, question) != question:
                raise at.error("id", question.id, "a question that is asked once, or in the same words")
    return UserHistory(
        user_id=parts[0][1].user_id,
        interactions=tuple(in_time_order(interactions.values())),
        questions=tuple(questions.values()),
    )


def _body(history: UserHistory) -> str:
    plain = {f.name: getattr(history, f.name) for f in fields(history)}
    plain |= {name: [_plain(value) for value in plain[name]] for name in ("interactions", "questions")}
    try:
        return json.dumps(plain)
    except TypeError as refused:
        raise InputError(f"user {history.user_id!r}: {refused}; expected metadata of JSON values") from None


def _plain(value: Interaction | Question) -> dict[str, Any]:
    plain = {f.name: getattr(value, f.name) for f in fields(value)}
    plain |= {"time": value.time.isoformat() if value.time else None, "metadata": dict(value.metadata)}
    if plain.get("signal") is not None:
        plain["signal"] = plain["signal"].to_dict()
    return plain


def _history(plain: dict[str, Any]) -> UserHistory:
    interactions = tuple(Interaction(**_timed(item)) for item in plain.pop("interactions"))
    questions = tuple(Question(**_timed(item)) for item in plain.pop("questions"))
    return UserHistory(interactions=interactions, questions=questions, **plain)


def _timed(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "time": datetime.fromisoformat(plain["time"]) if plain["time"] else None}
