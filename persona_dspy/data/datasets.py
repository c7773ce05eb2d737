"""Interactions, users, personas and other values as a Hugging Face dataset: what ``read_users`` reads back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from persona_dspy.core import Persona, PersonaDocument
from persona_dspy.data.interaction_rows import UserHistory
from persona_dspy.errors import InputError

if TYPE_CHECKING:
    import datasets

__all__ = ["to_dataset"]


def to_dataset(values: Iterable[Any]) -> datasets.Dataset:
    """A ``datasets.Dataset`` with a row for each value, in the order given.

    It is held in memory: a cache on disk would keep users' texts where ``forget`` does not look.

    Args:
        values: of one kind. Interactions, or users with their interactions (``read_users``): columns user_id, query,
            response, time (UTC), id; metadata and signal as JSON. Personas or their documents: user_id, version, lines,
            system_prompt, and the whole as JSON under ``persona``. Any other dataclass, such as the answers of an
            evaluation: its fields.

    Raises:
        InputError: no values, or one of another kind.

    Example:
        >>> from persona_dspy import Interaction
        >>> data = to_dataset([Interaction(user_id="u1", query="Alien", response="horror", time="2026-01-03")])
        >>> data[0]["query"], data.column_names[:3]
        ('Alien', ['user_id', 'query', 'response'])
    """
    import datasets

    rows = [row for value in values for row in _rows(value)]
    if not rows:
        raise InputError("to_dataset: no values; expected interactions, users, personas or answers")
    if any(list(row) != list(rows[0]) for row in rows):
        raise InputError("to_dataset: values of several kinds; expected one, such as only interactions")
    try:
        data = datasets.Dataset.from_list(rows)
    except (ValueError, TypeError) as error:  # pyarrow's
        raise InputError(f"to_dataset: {error}; expected values of one type in each field") from None
    if "time" in rows[0]:
        data = data.cast_column("time", datasets.Value("timestamp[us, tz=UTC]"))
    return data


def _rows(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, UserHistory):
        for interaction in value.interactions:
            yield _plain(interaction)
    elif isinstance(value, Persona | PersonaDocument):
        yield _persona_row(value)
    elif is_dataclass(value) and not isinstance(value, type):
        yield _plain(value)
    else:
        raise InputError(f"to_dataset: {value!r}; expected interactions, users, personas or answers")


def _persona_row(value: Persona | PersonaDocument) -> dict[str, Any]:
    persona = value if isinstance(value, Persona) else value.persona()
    return {
        "user_id": persona.user_id,
        "version": value.version,
        "lines": [bullet.sentence for bullet in persona.bullets],
        "system_prompt": persona.render(),
        "persona": value.to_json(),
    }


def _plain(value: Any) -> dict[str, Any]:
    return {field.name: _cell(getattr(value, field.name)) for field in fields(value)}


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float | datetime):
        return value
    value = value.to_dict() if hasattr(value, "to_dict") else dict(value) if isinstance(value, Mapping) else value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
