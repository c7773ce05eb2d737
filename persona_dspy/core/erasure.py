"""What every place that keeps something of users can do: forget one, and say what was removed and what is left."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any, ParamSpec, Protocol, TypeVar

__all__ = ["Erasure", "Forgets", "Removal", "clear_remembered_texts", "remember", "remember_short_texts"]

_SHORT = 200  # characters: labels, titles; a user's mails and documents are read anew
_Takes = ParamSpec("_Takes")
_Gives = TypeVar("_Gives")
_REMEMBERED: list[Callable[[], None]] = []  # what empties each cache


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


def remember(maxsize: int) -> Callable[[Callable[_Takes, _Gives]], Callable[_Takes, _Gives]]:
    """Decorates a function of hashable values in which texts of a user may be, such as labels in a signature: what it
    gave for the latest ``maxsize`` is kept in this process, until somebody is forgotten.

    Example:
        >>> @remember(maxsize=2)
        ... def choices(labels: tuple[str, ...]) -> str:
        ...     return "|".join(labels)
        >>> choices(("tea", "milk"))
        'tea|milk'
    """

    def decorate(read: Callable[_Takes, _Gives]) -> Callable[_Takes, _Gives]:
        remembered = lru_cache(maxsize)(read)
        _REMEMBERED.append(remembered.cache_clear)
        return wraps(read)(remembered)  # type: ignore[return-value]  # lru_cache has no types of arguments

    return decorate


def remember_short_texts(maxsize: int) -> Callable[[Callable[[str], _Gives]], Callable[[str], _Gives]]:
    """``remember`` for a function of one text: longer ones than 200 characters are read anew each time.

    Example:
        >>> @remember_short_texts(maxsize=2)
        ... def shout(text: str) -> str:
        ...     return text.upper()
        >>> shout("tea")
        'TEA'
    """

    def decorate(read: Callable[[str], _Gives]) -> Callable[[str], _Gives]:
        remembered = remember(maxsize)(read)

        @wraps(read)
        def read_or_recall(text: str) -> _Gives:
            return remembered(text) if len(text) <= _SHORT else read(text)

        return read_or_recall

    return decorate


def clear_remembered_texts() -> None:
    """Empties every cache of ``remember`` and ``remember_short_texts``: nobody knows whose texts are in them. Python's
    own caches of types and patterns go too: a user's labels stand in ``Literal[...]``, the id in a pattern."""
    for clear in [*_REMEMBERED, *getattr(typing, "_cleanups", ()), re.purge]:
        clear()
