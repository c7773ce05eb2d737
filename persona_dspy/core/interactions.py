"""Frozen values that flow through the system, and the checks they pass."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, date, datetime
from hashlib import sha256
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from persona_dspy.core.signals import Signal, says_disliked
from persona_dspy.errors import InputError

__all__ = ["Episode", "Feedback", "Interaction", "Usage", "answered", "in_time_order", "parse_time", "time_order"]

_log = logging.getLogger(__name__)
_EMPTY: Mapping[str, Any] = MappingProxyType({})


_NO_TIME = {"", "nat", "nan", "na", "n/a", "<na>", "null", "none"}
_EPOCHS = ((1e8, 1e11, 1.0), (1e11, 1e14, 1e3), (1e14, 1e17, 1e6), (1e17, 1e19, 1e9))  # least, most, units a second


def parse_time(value: object) -> datetime | None:
    """A time from an ISO date or date-time, a bare year (``"1995"`` or ``1995``), seconds since 1970 (or milli-,
    micro-, nanoseconds), a ``date``/``datetime``; None for None and what tables write for none (NaN, NaT, NA).

    Returns an aware UTC ``datetime``; naive values are taken as UTC. Numbers below 1e8 are no seconds.

    Raises:
        InputError: the value is none of these.

    Example:
        >>> parse_time("2026-01-03").isoformat(), parse_time(1767398400).isoformat()
        ('2026-01-03T00:00:00+00:00', '2026-01-03T00:00:00+00:00')
    """
    text = str(value).strip()
    if value is None or text.casefold() in _NO_TIME:
        return None
    try:
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=UTC)
        if text.isdigit() and len(text) == 4:
            return datetime(int(text), 1, 1, tzinfo=UTC)
        if (seconds := _epoch_seconds(text)) is not None and not isinstance(value, bool):
            return datetime.fromtimestamp(seconds, UTC)
        return parse_time(datetime.fromisoformat(text))
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"time {value!r}: expected an ISO date such as '2026-01-31', a year such as 1995 or seconds since 1970"
        ) from None


def _epoch_seconds(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return next((number / units for least, most, units in _EPOCHS if least <= number < most), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One thing the user really did: answered a query, or made something of our draft of an answer.

    A signal is not an answer. Where the user gave no text of their own - only a comment, thumbs or a rating on our
    draft - ``response`` is empty: such an interaction is never shown as a past turn, counted, summarised or scored
    against. Text that the user edited is the ``response`` (what we wrote is the signal's ``draft``), and so is the
    draft that the user chose. What was judged without a ``draft`` beside it is the draft.

    Args:
        user_id: whose it is; any non-empty string.
        query: what was asked; not blank.
        response: what this user really answered, or made of our draft; empty only beside a signal.
        time: when; anything ``parse_time`` takes. None = unknown, then order is the order given.
        id: unique within the user; by default a hash of query, response, time and signal.
        metadata: JSON-safe extras (title, venue, other input fields of the program, ...).
        signal: what the user said about our draft; a dictionary of its fields is read.

    Raises:
        InputError: a blank field or an unreadable time; a signal that says nothing, where there is no response.

    Example:
        >>> Interaction(user_id="u1", query="Alien (1979)", response="horror", time="2026-01-03").time.year
        2026
        >>> liked = Interaction(user_id="u1", query="Where is it?", signal={"draft": "On its way.", "thumbs": "up"})
        >>> liked.answered, liked.signal.draft
        (False, 'On its way.')
    """

    user_id: str
    query: str
    response: str = ""
    time: datetime | None = None
    id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    signal: Signal | None = None

    def __post_init__(self) -> None:
        for name in ("user_id", "query"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"Interaction.{name} {value!r}: expected a non-empty string")
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        self._settle_signal()
        object.__setattr__(self, "time", parse_time(self.time))
        if not self.id:
            stamp = self.time.isoformat() if self.time else ""
            parts = [self.query, self.response, stamp, *([self.signal.to_json()] if self.signal else [])]
            object.__setattr__(self, "id", sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12])

    @property
    def answered(self) -> bool:
        """Whether there is an answer of the user's own, or one that the user chose."""
        return bool(self.response)

    def amended(self, signal: Signal, response: str = "", metadata: Mapping[str, Any] = _EMPTY) -> Interaction:
        """This interaction with what the user said later of the same draft; a response given before stays where none is
        given now, unless what is said now rules it out. ``metadata`` is added.

        Example:
            >>> given = Interaction(user_id="u1", query="q", id="tr-1", signal={"draft": "Dear Sir"})
            >>> given.amended(Signal(thumbs="down")).amended(Signal(comment="too stiff"), "Hi").response
            'Hi'
        """
        said = self.signal.updated(signal) if self.signal is not None else signal
        answer = response or signal.preferred or self.response
        return replace(self, signal=said, response=answer, metadata={**self.metadata, **metadata})

    def _settle_signal(self) -> None:
        """What was the user's answer and what was ours; see the class."""
        response: Any = self.response
        signal = Signal.of(self.signal) if self.signal is not None else None
        if not isinstance(response, str) or not (response.strip() or signal):
            raise InputError(f"Interaction.response {response!r}: expected a non-empty string, or a signal")
        if signal is None and says_disliked(self.metadata):
            _log.warning(
                "metadata %s: taken as a dislike of the response, which is kept as our draft; give "
                "drafts by signal= or program.feedback(...)",
                sorted(self.metadata),
            )
            comment = self.metadata.get("comment")
            signal = Signal(thumbs="down", comment=comment if isinstance(comment, str) else "")
        if signal is not None:
            if signal.judged and not signal.draft and response.strip():
                signal, response = replace(signal, draft=response), ""
            response = response if response.strip() else signal.preferred
            response = "" if signal.rules_out(response) else response
        object.__setattr__(self, "signal", signal or None)
        object.__setattr__(self, "response", response)

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy does not copy or cross processes; a dict does
        values = (self.user_id, self.query, self.response, self.time, self.id, dict(self.metadata), self.signal)
        return _remake, values


def _remake(*values: Any) -> Interaction:
    names = ("user_id", "query", "response", "time", "id", "metadata", "signal")
    return Interaction(**dict(zip(names, values, strict=True)))


def answered(interactions: Iterable[Interaction]) -> list[Interaction]:
    """Those with an answer of the user's own, in the order given: what may be shown, counted and scored against.

    Example:
        >>> answered([Interaction(user_id="u", query="q", signal={"draft": "a", "thumbs": "down"})])
        []
    """
    return [interaction for interaction in interactions if interaction.response]


def in_time_order(interactions: Iterable[Interaction]) -> list[Interaction]:
    """Interactions of one user, oldest first: by time if all have one, else in the order given (stable)."""
    items = list(interactions)
    if all(i.time is not None for i in items):
        items.sort(key=lambda i: i.time)  # type: ignore[arg-type,return-value]
    return items


def time_order(times: Sequence[datetime | None]) -> list[int]:
    """Places of what a log says happened at ``times``, oldest first.

    By time; where some have none, each of them right after what it came after in the order given, that is read from its
    old end: a log may be written newest first. Where half or more have none, the order given.

    Example:
        >>> day = [datetime(2026, 1, n, tzinfo=UTC) for n in range(1, 5)]
        >>> time_order([day[3], None, day[1], day[0]])
        [3, 2, 1, 0]
    """
    places = list(range(len(times)))
    dated = [time for time in times if time is not None]
    if 2 * len(dated) <= len(times):
        return places
    if len(dated) < len(times) and dated[0] > dated[-1] and all(a >= b for a, b in pairwise(dated)):
        places.reverse()
    latest, keys = min(dated), dict[int, datetime]()
    for place in places:
        latest = keys[place] = times[place] or latest
    return sorted(places, key=lambda place: keys[place])


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """An interaction in memory, as recalled: its position in the user's time order and the score it was found by.

    ``position`` counts from 0 = oldest; ``score`` is comparable within one recall only, higher is nearer.
    """

    interaction: Interaction
    position: int
    score: float = 0.0

    @property
    def id(self) -> str:
        return self.interaction.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """The textual loss of one simulated interaction: ``score`` in [0, 1], higher is better; ``text`` says what the
    persona should change, or is empty where nothing was wrong (paper section 3, test-time alignment)."""

    interaction_id: str
    score: float
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What LM calls cost. ``calls`` were sent to an engine; ``cache_hits`` were not. ``usd`` is None where unknown.

    Adds up: ``Usage(calls=1) + Usage(calls=2) == Usage(calls=3)``.

    Example:
        >>> (Usage(calls=1, input_tokens=9) + Usage(calls=2, output_tokens=3)).tokens
        12
    """

    __pydantic_config__ = {"extra": "forbid"}  # as a field of records that are read from JSON

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_hits: int = 0
    failures: int = 0
    seconds: float = 0.0
    usd: float | None = None

    @property
    def tokens(self) -> int:
        """Input plus output tokens."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        usd = None if self.usd is None and other.usd is None else (self.usd or 0.0) + (other.usd or 0.0)
        counts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "usd"}
        return Usage(**counts, usd=usd)

    def __sub__(self, other: Usage) -> Usage:
        usd = None if self.usd is None else self.usd - (other.usd or 0.0)
        counts = {f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self) if f.name != "usd"}
        return Usage(**counts, usd=usd)

    def rounded(self) -> Usage:
        """The same with seconds rounded to a millisecond, as records keep it."""
        return replace(self, seconds=round(self.seconds, 3))

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-safe form, seconds rounded to a millisecond."""
        return asdict(self.rounded())
