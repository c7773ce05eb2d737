"""Signal: what a user made of our draft short of, or beside, an answer of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from persona_dspy.errors import InputError

__all__ = ["SIGNAL_FIELDS", "Signal", "can_be_told_apart", "says_disliked", "thumbs_of"]

_DOWN = frozenset(
    [
        "down",
        "thumbs_down",
        "thumbsdown",
        "thumbs-down",
        "-1",
        "-1.0",
        "0",
        "0.0",
        "false",
        "no",
        "👎",
        ":-1:",
        "negative",
        "dislike",
        "disliked",
        "bad",
        "rejected",
    ]
)
_UP = frozenset(
    [
        "up",
        "thumbs_up",
        "thumbsup",
        "thumbs-up",
        "1",
        "1.0",
        "+1",
        "true",
        "yes",
        "👍",
        ":+1:",
        "positive",
        "like",
        "liked",
        "good",
        "accepted",
    ]
)
_THUMBS_DOWN = frozenset(["down", "thumbs_down", "thumbsdown", "thumbs-down", "👎", ":-1:", "dislike", "disliked"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What a user said about our draft, or chose among drafts. JSON-safe; every field may be left out.

    Args:
        draft: what we answered; of several response fields an object, kept as JSON, as in ``preferred``, ``rejected``.
        version: of the persona that the draft was given under; None = not known.
        comment: the user's own words about the draft ("too long").
        thumbs: "up" or "down"; True, False, 1, -1 and the two emoji are read as those.
        rating: of the draft, on ``scale``.
        scale: lowest and highest rating; (1, 5) where only a rating is given.
        preferred: the draft that the user chose.
        rejected: drafts that the user passed over; one text is a list of one.
        options: what could be chosen for this query.
        trace: id of the trace in which the draft was given; also that of MLflow's trace.

    Raises:
        InputError: a field of the wrong type, or a rating off its scale.

    Example:
        >>> signal = Signal(draft="We are so sorry! ...", comment="too long", thumbs=False)
        >>> signal.thumbs, signal.disliked
        ('down', True)
        >>> Signal.of(signal.to_dict()) == signal
        True
    """

    draft: str = ""
    version: int | None = None
    comment: str = ""
    thumbs: Literal["up", "down"] | None = None
    rating: float | None = None
    scale: tuple[float, float] | None = None
    preferred: str = ""
    rejected: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    trace: str = ""

    def __post_init__(self) -> None:
        for name in ("draft", "comment", "preferred", "trace"):
            value: Any = getattr(self, name)
            object.__setattr__(self, name, "" if value is None else _text(name, value))
        object.__setattr__(self, "thumbs", thumbs_of(self.thumbs))
        for name in ("rejected", "options"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        version: Any = self.version
        if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 0):
            raise InputError(f"Signal.version {version!r}: expected the number of a persona version, 0 or more")
        object.__setattr__(self, "scale", _scale(self.scale, self.rating))
        if self.rating is not None:
            object.__setattr__(self, "rating", _rating(self.rating, self.scale))

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return any(getattr(self, f.name) not in ("", None, ()) for f in fields(self))

    @property
    def judged(self) -> bool:
        """Whether the user judged the draft: by comment, thumbs or rating."""
        return bool(self.comment) or self.thumbs is not None or self.rating is not None

    @property
    def approval(self) -> float | None:
        """How much the user liked the draft, in [0, 1], higher is better: thumbs, else the rating on its scale; None
        where there is neither."""
        if self.thumbs is not None:
            return float(self.thumbs == "up")
        if self.rating is None or self.scale is None:
            return None
        low, high = self.scale
        return (self.rating - low) / (high - low)

    @property
    def disliked(self) -> bool:
        """Whether the user was against the draft: thumbs down, or a rating below the middle of its scale."""
        return self.approval is not None and self.approval < 0.5

    def rules_out(self, text: str) -> bool:
        """Whether ``text`` is what the user was against: a rejected draft, or the draft that was disliked.

        Example:
            >>> Signal(draft="Dear Sir", thumbs="down").rules_out(" dear sir")
            True
        """
        plain = _plain(text)
        if plain in {_plain(one) for one in self.rejected}:
            return plain != _plain(self.preferred)
        return self.disliked and bool(self.draft) and plain == _plain(self.draft)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form; what was not said is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value not in ("", None, ())
        }

    def to_json(self) -> str:
        """Compact JSON with sorted keys: equal signals give equal text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @classmethod
    def of(cls, value: Signal | Mapping[str, Any]) -> Signal:
        """A signal from a dictionary of its fields; a signal is itself.

        Raises:
            InputError: an unknown field, or a value that it cannot have.
        """
        if isinstance(value, Signal):
            return value
        unknown: list[Any] = list(value) if not isinstance(value, Mapping) else [n for n in value if n not in _NAMES]  # type: ignore[reportUnnecessaryIsInstance]
        if unknown:
            raise InputError(f"signal with {unknown[:5]!r}: expected only the fields {', '.join(_NAMES)}")
        return cls(**dict(value))

    def updated(self, later: Signal) -> Signal:
        """This signal with what ``later`` says in its place, field by field: a user may come back to a draft. Thumbs
        and ratings are one judgement: the later one counts.

        Example:
            >>> Signal(draft="a", thumbs="up", comment="fine").updated(Signal(thumbs="down")).to_dict()
            {'draft': 'a', 'comment': 'fine', 'thumbs': 'down'}
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        said = {name: getattr(later, name) for name in values if getattr(later, name) not in ("", None, ())}
        if "thumbs" in said or "rating" in said:
            values |= {"thumbs": None, "rating": None, "scale": None}
        return Signal(**values | said)


SIGNAL_FIELDS = _NAMES = tuple(f.name for f in fields(Signal))
"""The names of a signal's fields, as they stand in files."""


def can_be_told_apart(options: Sequence[str]) -> bool:
    """Whether one of the options can be chosen: two or more, none blank, and no two that look the same.

    Example:
        >>> can_be_told_apart(["tea", "coffee"]), can_be_told_apart(["tea", "Tea "]), can_be_told_apart(["tea"])
        (True, False, False)
    """
    plain = {_plain(option) for option in options}
    return len(options) > 1 and len(plain) == len(options) and "" not in plain


def says_disliked(metadata: Mapping[str, Any]) -> bool:
    """Whether metadata says that the response beside it was disliked: a thumb that points down, or the like.

    Example:
        >>> says_disliked({"thumbs": "down"}), says_disliked({"thumbs": "up"}), says_disliked({"title": "Up"})
        (True, False, False)
    """
    if any(name in metadata and _word(metadata[name]) in _DOWN for name in ("thumbs", "thumb", "thumbs_up")):
        return True
    if "thumbs_down" in metadata and _word(metadata["thumbs_down"]) in _UP:
        return True
    return any(_word(metadata.get(name)) in _THUMBS_DOWN for name in ("feedback", "reaction", "vote"))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _word(value: object) -> str:
    return "_".join(str(value).split()).casefold()


def _text(name: str, value: Any) -> str:
    if isinstance(value, Mapping) and value and name in ("draft", "preferred", "rejected"):
        return json.dumps(dict(value), ensure_ascii=False)
    if not isinstance(value, str):
        raise InputError(f"Signal.{name} {value!r}: expected text")
    return value if value.strip() else ""


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts: Sequence[Any] = [value] if isinstance(value, str | Mapping) else [] if value is None else value
    if isinstance(texts, list | tuple):
        texts = [_text(name, text) if isinstance(text, Mapping) else text for text in texts]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"Signal.{name} {value!r}: expected texts, such as ['one', 'another']")
    return tuple(text for text in texts if text.strip())


def thumbs_of(value: object) -> Literal["up", "down"] | None:
    """Which way a thumb points, in any of its spellings; None for none.

    Raises:
        InputError: no thumb.

    Example:
        >>> thumbs_of(True), thumbs_of("👎"), thumbs_of(None)
        ('up', 'down', None)
    """
    if value is None or value == "":
        return None
    plain = _word(value)
    if plain in _UP or plain in _DOWN:
        return "up" if plain in _UP else "down"
    raise InputError(f"Signal.thumbs {value!r}: expected 'up' or 'down'")


def _scale(scale: Any, rating: Any) -> tuple[float, float] | None:
    if scale is None:
        return None if rating is None else (1.0, 5.0)
    try:
        low, high = (float(end) for end in scale)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"Signal.scale {scale!r}: expected lowest and highest rating, such as (1, 5)") from None
    if not low < high or not math.isfinite(high - low):
        raise InputError(f"Signal.scale {scale!r}: expected lowest before highest rating, such as (1, 5)")
    return low, high


def _rating(value: Any, scale: tuple[float, float] | None) -> float:
    low, high = scale or (1.0, 5.0)
    number = None if isinstance(value, bool) else value
    if not isinstance(number, int | float) or not low <= number <= high:
        raise InputError(
            f"Signal.rating {value!r}: expected a number from {low:g} to {high:g}; another scale: scale=(0, 100)"
        )
    return float(number)
