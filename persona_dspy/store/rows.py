"""Values as rows of the store: keys, interactions, persona documents. Pure functions and frozen values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeGuard

from persona_dspy.core import Interaction, Signal, says_disliked
from persona_dspy.errors import InputError

__all__ = [
    "DueUser",
    "Forgotten",
    "Lease",
    "Observed",
    "StoredPersona",
    "UserState",
    "body_of",
    "checked_key",
    "document_of",
    "interactions_of",
    "to_json",
]

_KEY_BYTES = 1200
_NOTHING: Mapping[str, Any] = MappingProxyType({})
# the slots of a frozen value, set directly: object.__setattr__ looks each of them up, a fifth of a load's time
_put_user, _put_query, _put_response, _put_time, _put_id, _put_metadata, _put_signal = (
    vars(Interaction)[name].__set__ for name in ("user_id", "query", "response", "time", "id", "metadata", "signal")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPersona:
    """One immutable version of a user's persona.

    Args:
        version: its number; ``parent`` is the one it came from, None at the start of a chain.
        created: when the store took it, ISO, UTC.
        text: the persona document, JSON as it was given.
        alignment_text: the record of the alignment that made it, JSON, or None.
        current: whether the user's pointer is on it.
    """

    user_id: str
    version: int
    parent: int | None
    created: str
    text: str
    alignment_text: str | None = None
    current: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """The persona document, parsed."""
        return json.loads(self.text)

    @property
    def alignment(self) -> dict[str, Any] | None:
        """The alignment record, parsed."""
        return None if self.alignment_text is None else json.loads(self.alignment_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """What the store said of a user at one moment. A write that is given it is refused where it rests on something
    that is no longer so: ``UserForgotten``, ``VersionConflict``.

    Args:
        life: how many times the user was forgotten before.
        uid: the user's number; None = nothing is kept of the user.
        version: the current version; None = none yet.
        next_seq: the number that the next interaction gets; it grows with each one.
    """

    user_id: str
    life: int
    uid: int | None
    version: int | None
    next_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What ``Store.observe`` did: ``new`` interactions kept; ``due``: all that wait for the user's next alignment."""

    new: int
    due: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DueUser:
    """A user with interactions that wait for an alignment: how many, who holds the lease (0 = nobody) and how often
    the holder has said that it is alive, how many alignments failed since the last that did not."""

    user_id: str
    new: int
    holder: int
    beats: int
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to align one user, held by one process at a time; ``new``: the interactions that it is for."""

    user_id: str
    uid: int
    holder: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What ``Store.forget`` removed: rows per table, and whether the files hold none of the text any more.

    ``scrubbed`` is False on PostgreSQL, which keeps dead rows until ``VACUUM`` and its log until it is recycled, and
    on SQLite while a reader still looks at the old state (``is_read``): call ``forget`` again once it is gone.
    """

    user_id: str
    removed: Mapping[str, int]
    scrubbed: bool
    is_read: bool = False

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows removed, by what they are to people; tables that held none are left out."""
        return {table.removeprefix("persona_"): rows for table, rows in self.removed.items() if rows}

    @property
    def note(self) -> str:
        """What is left to do, or empty."""
        if self.is_read:
            return (
                "another process reads the store, or a compaction was cut off: text of who was forgotten is still in "
                "its files; run forget again once the reader is gone (after a compaction that was cut off: "
                "Store.compact())"
            )
        return "" if self.scrubbed or not self.counts else "dead rows stay on disk until the database is vacuumed"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {**asdict(self), "removed": dict(self.removed)}


def checked_key(value: object, name: str) -> str:
    """A user id, interaction id or encoder name that both databases keep byte for byte.

    Any text up to 1,200 bytes of UTF-8; not blank, without NUL (PostgreSQL has none) and lone surrogates (UTF-8 has
    none): refused on either database, so that a store can move from one to the other. Nothing is normalised: ids that
    differ in case, accents' code points or trailing blanks are different.

    Raises:
        InputError: another value.
    """
    reason = ""
    if not isinstance(value, str) or not value.strip():
        reason = "a string that is not blank"
    elif "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        reason = "text without NUL and lone surrogates"
    elif len(value.encode()) > _KEY_BYTES:
        reason = f"at most {_KEY_BYTES} bytes of UTF-8, got {len(value.encode())}; use a hash of it"
    if reason:
        shown = repr(value)
        raise InputError(f"{name} {shown if len(shown) <= 80 else shown[:77] + '...'}: expected {reason}")
    return str(value)


def to_json(value: object, what: str) -> str:
    """Compact JSON with sorted keys; equal values give equal text. NUL and lone surrogates come out escaped.

    Raises:
        InputError: a value JSON has no form for.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return text if text.isascii() or _encodable(text) else json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what}: expected JSON-safe values (text, numbers, lists, dicts): {error}") from None


def _encodable(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def body_of(interaction: Interaction) -> str:
    """The episode's row: everything but whose it is."""
    content: dict[str, Any] = {"query": interaction.query, "response": interaction.response}
    if interaction.time is not None:
        content["time"] = interaction.time.isoformat()
    if interaction.metadata:
        content["metadata"] = dict(interaction.metadata)
    if interaction.signal is not None:
        content["signal"] = interaction.signal.to_dict()
    return to_json(content, f"interaction {interaction.id!r}, metadata {sorted(map(str, interaction.metadata))}")


def interactions_of(user_id: str, rows: Sequence[Any]) -> list[Interaction]:
    """Interactions from rows whose first columns are id and body, in the order of the rows."""
    contents = json.loads("[" + ",".join(row[1] for row in rows) + "]")  # one parse is four times as fast as many
    return [_stored(user_id, row[0], content) for row, content in zip(rows, contents, strict=True)]


def _stored(user_id: str, key: str, content: dict[str, Any]) -> Interaction:
    """An interaction that was checked when it was written: not checked again, which would take most of a load; unless
    it may hold a dislike that was written before there were signals."""
    if "signal" not in content and "metadata" in content and says_disliked(content["metadata"]):
        return Interaction(user_id=user_id, id=key, **content)
    interaction = object.__new__(Interaction)
    _put_user(interaction, user_id)
    _put_query(interaction, content["query"])
    _put_response(interaction, content["response"])
    _put_time(interaction, datetime.fromisoformat(content["time"]) if "time" in content else None)
    _put_id(interaction, key)
    _put_metadata(interaction, MappingProxyType(content["metadata"]) if "metadata" in content else _NOTHING)
    _put_signal(interaction, Signal.of(content["signal"]) if "signal" in content else None)
    return interaction


def document_of(user_id: str, persona: str | Mapping[str, Any]) -> tuple[str, int, int | None]:
    """A persona document as (JSON text, version, parent).

    Raises:
        InputError: not a JSON object, another user's, or ``version``/``parent`` are not what they should be.
    """
    if isinstance(persona, str):
        try:
            document: Any = json.loads(persona)
        except ValueError as error:
            raise InputError(f"persona of {user_id!r}: expected a JSON object: {error}") from None
        text = persona if _encodable(persona) and "\0" not in persona else to_json(document, f"persona of {user_id!r}")
    else:
        document, text = dict(persona), to_json(dict(persona), f"persona of {user_id!r}")
    if not isinstance(document, dict):
        raise InputError(f"persona of {user_id!r}: expected a JSON object, got {type(document).__name__}")
    version, parent = document.get("version"), document.get("parent")
    if document.get("user_id", user_id) != user_id:
        raise InputError(f"persona says user_id {document['user_id']!r}: expected {user_id!r}")
    if not _is_number(version) or not (parent is None or (_is_number(parent) and parent != version)):
        raise InputError(
            f"persona of {user_id!r}: version {version!r}, parent {parent!r}: expected a version of 0 or more, "
            "below 2**31, and another one or null as parent"
        )
    return text, version, parent


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
