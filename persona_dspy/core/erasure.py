"""What every place that keeps something of users can do: forget one, and say what was removed and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Erasure", "Forgets", "Removal"]


class Removal(Protocol):
    """What ``forget`` returns."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How many of each kind were removed, by a name for people; kinds of which there was none are left out."""
        ...

    @property
    def note(self) -> str:
        """What could not be looked into, or is left for somebody else to do; empty where there is nothing."""
        ...


class Forgets(Protocol):
    """A place that keeps something of users: a store, a tracker, a cache. It alone knows where and how."""

    def forget(self, user_id: str) -> Removal:
        """Remove everything kept of a user; of an unknown user nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What was removed of a user in one place, by kind; ``note``: what is left to do there, or empty."""

    place: str
    removed: Mapping[str, int] = field(default_factory=dict[str, int])
    note: str = ""

    @property
    def counts(self) -> Mapping[str, int]:
        """``removed``, without the kinds of which there was none."""
        return {kind: count for kind, count in self.removed.items() if count}

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {"place": self.place, "removed": dict(self.removed), "note": self.note}
