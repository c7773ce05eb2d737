"""Tells a model what is asked of it: what counts, and what past turns are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persona_dspy.core import FieldsKind, ResponseKind, remember

__all__ = ["described", "judged_by", "with_order_told", "with_task_told"]

_TURNS = (
    "Earlier turns, where there are any, are this user's own past: what was asked, and what this user really answered. "
    "They were chosen for being {}. "
    "Notes on the user, where there are any, tell tendencies; recent past turns that are like the query weigh more. "
    "What counts is how this user would answer, not what is right in general."
)
_CHOSEN = "like what is asked now, or recent"
_VARIED = (
    "like what is asked now and unlike each other, so rare answers are seen in them more often than this user gives "
    "them"
)
_IN_ORDER = (
    " Earlier turns stand oldest first; where several later ones disagree with earlier ones, the user has changed: "
    "the later ones hold."
)


def judged_by(kind: ResponseKind) -> str:
    """How an answer of this kind is compared with the user's own, in a sentence; of several fields, each in one."""
    if isinstance(kind, FieldsKind):
        return "\n".join(f"{name}: {judged_by(one)}" for name, one in kind.fields)
    if kind.name == "label":
        return (
            "An answer counts only if it is exactly the user's own; where several would be true, give the one that "
            "this user would give."
        )
    if kind.name == "rating":
        return (
            f"Answer from {kind.low:g} to {kind.high:g}; what counts is how far it is from the user's own answer, so "
            "in doubt give the value that would be least far off on average."
        )
    return "The nearer the answer comes to the user's own, in what it says and how it says it, the better."


@remember(maxsize=256)
def with_task_told(signature: Any, kind: ResponseKind) -> Any:
    """A user's signature whose instructions say, after the user's own words, what past turns are and what counts.

    Example:
        >>> import dspy
        >>> told = with_task_told(dspy.Signature("film -> tag", "Tag the film."), ResponseKind(name="text"))
        >>> told.instructions.splitlines()[0]
        'Tag the film.'
    """
    turns = _TURNS.format(_VARIED if kind.name == "label" else _CHOSEN)
    return signature.with_instructions(f"{signature.instructions}\n{turns} {judged_by(kind)}")


@remember(maxsize=256)
def with_order_told(signature: Any) -> Any:
    """The signature with a sentence that past turns stand oldest first."""
    return signature.with_instructions(signature.instructions + _IN_ORDER)


def described(
    signature: Any, query: str, response: str, kind: ResponseKind, outputs: Mapping[str, Any] | None = None
) -> str:
    """A program's task, for an LM that reflects on its answers.

    Args:
        outputs: of several responses the fields by name; None for one that is known by its name alone.

    Example:
        >>> import dspy
        >>> kind = ResponseKind(name="label", labels=("horror", "comedy"))
        >>> asked = dspy.Signature("film -> tag", "Tag the film.")
        >>> described(asked, "film", "tag", kind).splitlines()[:2]
        ['Tag the film.', 'Given: film. To be answered: tag, one of: horror, comedy.']
    """
    inputs = ", ".join(_field(name, field) for name, field in signature.input_fields.items()) or query
    fields = outputs or {response: signature.output_fields.get(response)}
    kinds = dict(kind.fields) if isinstance(kind, FieldsKind) else {}
    asked = "; ".join(_asked(name, field, kinds.get(name, kind)) for name, field in fields.items())
    form = "\nThe answer is written as one object of these fields." if kinds else ""
    return f"{signature.instructions}\nGiven: {inputs}. To be answered: {asked}.{form}\n{judged_by(kind)}"


def _asked(name: str, field: Any, kind: ResponseKind) -> str:
    asked = name if field is None else _field(name, field)
    return f"{asked}, one of: {', '.join(kind.labels)}" if kind.labels and kind.name == "label" else asked


def _field(name: str, field: Any) -> str:
    description = str((field.json_schema_extra or {}).get("desc") or "")
    return name if not description or description == f"${{{name}}}" else f"{name} ({description})"
