"""What a tracker is, and the one that writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from persona_dspy.core import PersonaDocument, user_key

__all__ = ["Ended", "NullTracker", "Tracker", "is_off", "prompt_name"]

Ended = Literal["FINISHED", "FAILED", "KILLED"]
"""How a batch ended: all was done that was to be done, an error, an interruption."""


class Tracker(Protocol):
    """One batch of users: ``begin`` once, ``user`` for each finished or failed user from any thread, ``end`` once."""

    def begin(self, params: Mapping[str, Any]) -> None: ...

    def user(self, user_id: str, document: PersonaDocument | None, error: str = "") -> None: ...

    def systems(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The systems of an evaluation, a row each, ``system`` among its keys."""
        ...

    def end(self, metrics: Mapping[str, float], ended: Ended = "FINISHED") -> None: ...

    def abandon(self) -> None:
        """Mark the batch as killed at once, without waiting for anything."""
        ...

    @property
    def where(self) -> str:
        """What to type to see the runs, or empty."""
        ...


class NullTracker:
    """Writes nothing."""

    def begin(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def user(self, user_id: str, document: PersonaDocument | None, error: str = "") -> None:
        """Nothing."""

    def systems(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def end(self, metrics: Mapping[str, float], ended: Ended = "FINISHED") -> None:
        """Nothing."""

    def abandon(self) -> None:
        """Nothing."""

    @property
    def where(self) -> str:
        return ""


def is_off(uri: str | None) -> bool:
    """Whether a ``--tracking-uri`` says that nothing is tracked, in any case: ``off``, ``OFF``.

    Example:
        >>> is_off("OFF"), is_off("sqlite:///off.db"), is_off(None)
        (True, False, False)
    """
    return uri is not None and uri.strip().casefold() == "off"


def prompt_name(user_id: str) -> str:
    """A user's name in the Prompt Registry: a hash, since names there are seen by all.

    Example:
        >>> prompt_name("u1")
        'persona-53199585bddea28e67fe7143a42baef7'
    """
    return f"persona-{user_key(user_id)}"
