"""Options: what can be answered to one query, where that differs from query to query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dspy

from persona_dspy.core import Interaction, Signal, can_be_told_apart, match_label, one_line, remember
from persona_dspy.errors import InputError

__all__ = ["OPTIONS", "answered_from", "narrowed_to", "options_of", "shown_options"]

_MOST = 60  # estimated tokens of an option: it stands in the system message, in a schema and in the answer

OPTIONS = "options"
"""The argument of a call that holds them, whether or not it is an input of the signature."""


def options_of(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that a call gives, each on one line and without marks of prompts; () where it gives none.

    Raises:
        InputError: not a list of texts, fewer than two, a blank one, or two that look the same.

    Example:
        >>> options_of({"query": "Which drink?", "options": ["tea", "coffee"]})
        ('tea', 'coffee')
    """
    given: Any = inputs.get(OPTIONS)
    if given is None:
        return ()
    listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    texts = [_as_label(str(option)) for option in given] if listed else []
    if not can_be_told_apart(texts):
        raise InputError(f"options {given!r}: expected two different texts or more, such as options=['tea', 'coffee']")
    return tuple(texts)


def _as_label(option: str) -> str:
    """An option as it stands in a system message: one line, short, without tags that an adapter reads as fields."""
    return one_line(option, _MOST).replace("<", "‹").replace(">", "›")


@remember(maxsize=256)
def narrowed_to(signature: Any, options: tuple[str, ...]) -> Any:
    """The signature whose response is one of ``options``; itself where there are none, or its type is not text."""
    response, field = next(iter(signature.output_fields.items()))
    if not options or field.annotation is not str:
        return signature
    return signature.with_updated_fields(response, type_=Literal[options])


def answered_from(prediction: dspy.Prediction, field: str, inputs: Mapping[str, Any]) -> None:
    """Writes the answer as the caller's own option has it."""
    if not isinstance(answer := prediction.get(field), str):
        return
    for option in inputs.get(OPTIONS) or ():
        if isinstance(option, str) and match_label(answer, (_as_label(option),)) is not None:
            prediction[field] = option
            return


def shown_options(interaction: Interaction) -> str:
    """What could be chosen then, as a line of data; empty where any answer could be given."""
    signal: Signal | None = interaction.signal
    return f"could be chosen: {'; '.join(map(one_line, signal.options))}" if signal and signal.options else ""
