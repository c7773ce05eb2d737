"""A program's other inputs as JSON-safe values beside an interaction, and back: what they were, what a turn shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from pydantic import BaseModel, ValidationError

from persona_dspy.core import answer_text, count_tokens

__all__ = ["json_safe", "other_inputs", "shown_input", "typed_input"]


def other_inputs(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Of a program's inputs those named, as JSON-safe values; images, audio and files are left out.

    Example:
        >>> other_inputs({"title": "Alien", "history": dspy.History(messages=[]), "x": 1}, ["title", "history"])
        {'title': 'Alien', 'history': {'messages': []}}
    """
    values: dict[str, Any] = {}
    for name in names:
        value = inputs.get(name)
        if value is None or isinstance(value, dspy.Type):
            continue
        plain = json_safe(value)
        try:
            json.dumps(plain)
        except (TypeError, ValueError, RecursionError):
            plain = answer_text(value)
        values[name] = plain
    return values


def json_safe(value: Any) -> Any:
    """A pydantic value, such as ``dspy.History``, as JSON values; any other as it is."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def typed_input(annotation: Any, value: Any) -> Any:
    """The value of an input as the program takes it: a conversation as ``dspy.History``, an object as its model.

    Example:
        >>> typed_input(dspy.History, [{"question": "Who?", "answer": "Me."}]).messages
        [{'question': 'Who?', 'answer': 'Me.'}]
        >>> typed_input(int, 3)
        3
    """
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return value
    if annotation is dspy.History and isinstance(value, list | tuple):
        value = {"messages": list(value)}  # type: ignore[reportUnknownArgumentType]
    if isinstance(value, Mapping):
        try:
            return annotation.model_validate(dict(value))  # type: ignore[reportUnknownArgumentType]
        except ValidationError:
            return value  # the program says what is wrong with it
    return value


def shown_input(annotation: Any, value: Any, *, tokens: int) -> Any:
    """The value of an input in a past turn: of a conversation the latest messages that ``tokens`` have room for, at
    least one, as data that is guarded as any other.

    Example:
        >>> shown_input(dspy.History, {"messages": [{"q": "a " * 50}, {"q": "b"}]}, tokens=10)
        [{'q': 'b'}]
    """
    typed = typed_input(annotation, value)
    if not isinstance(typed, dspy.History):
        return value
    messages: list[dict[str, Any]] = []
    for message in reversed(typed.messages):
        tokens -= count_tokens(json.dumps(message, default=str, ensure_ascii=False))
        if messages and tokens < 0:
            break
        messages.insert(0, message)
    return messages
