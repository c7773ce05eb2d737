"""A user's history, in whatever form it was given, as a memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from persona_dspy.core import SIGNAL_FIELDS, Interaction, answer_text
from persona_dspy.errors import InputError
from persona_dspy.memory import EpisodicMemory

__all__ = ["apart", "as_interaction", "memory_of"]

_FIELDS = tuple(f.name for f in fields(Interaction))


def memory_of(history: Iterable[Any] | EpisodicMemory, user_id: str | None = None) -> EpisodicMemory:
    """The memory of a history: interactions, or dictionaries of their fields. A memory is itself.

    Equal interactions without an id of their own happened several times: each is kept.

    Raises:
        InputError: something else, or interactions of several users.

    Example:
        >>> len(memory_of([{"query": "ok?", "response": "yes"}, {"query": "ok?", "response": "yes"}], user_id="u1"))
        2
    """
    if isinstance(history, EpisodicMemory):
        return history
    if isinstance(history, str | bytes | Mapping | Interaction):
        raise InputError(f"history {history!r}: expected a list of interactions, such as [Interaction(...)]")
    return EpisodicMemory(apart([as_interaction(item, user_id) for item in history]), user_id=user_id)


def as_interaction(item: Any, user_id: str | None) -> Interaction:
    """One item of a history.

    Raises:
        InputError: neither an interaction nor a dictionary of its fields.
    """
    if isinstance(item, Interaction):
        return item
    if not isinstance(item, Mapping):
        raise InputError(f"history item {item!r}: expected an Interaction, or {{'query': ..., 'response': ...}}")
    said = {name: item[name] for name in SIGNAL_FIELDS if item.get(name) is not None}
    if said:
        nested: Mapping[str, Any] = item.get("signal") or {}
        item = {name: value for name, value in item.items() if name not in SIGNAL_FIELDS} | {
            "signal": {**nested, **said}
        }
    unknown = [name for name in item if name not in _FIELDS]
    needed = ("query",) if item.get("signal") else ("query", "response")
    missing = [name for name in needed if item.get(name) is None]
    if unknown or missing or (user_id is None and not item.get("user_id")):
        raise InputError(
            f"history item {dict(item)!r}: expected 'query' and 'response' (or 'signal'), 'user_id' where "
            f"none is given beside it, and of other fields only {', '.join(_FIELDS[3:])}"
        )
    values: dict[str, Any] = {
        **item,
        "user_id": item.get("user_id") or user_id,
        "response": answer_text(item.get("response")) if item.get("response") is not None else "",
    }
    return Interaction(**{name: value for name, value in values.items() if value is not None})


def apart(interactions: list[Interaction], taken: Iterable[str] = ()) -> list[Interaction]:
    """Interactions whose ids were made from their content, told apart where the content is equal.

    Args:
        taken: ids that others have.
    """
    ids, told_apart = set(taken), list[Interaction]()
    for interaction in interactions:
        number, new = 1, interaction
        while new.id in ids and interaction.id == replace(interaction, id="").id:
            number += 1
            new = replace(interaction, id=f"{interaction.id}-{number}")
        ids.add(new.id)
        told_apart.append(new)
    return told_apart
