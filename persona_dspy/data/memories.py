"""What other products remember of a user - exports of mem0, LangMem and ChatGPT, or plain lines - as lines for a
persona."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from persona_dspy.core import one_line
from persona_dspy.data.rows import MAX_LINE, open_data
from persona_dspy.data.tasks import Place
from persona_dspy.errors import DataError

__all__ = ["Memories", "read_memories"]

_LISTS = ("results", "memories", "items")
_TEXTS = ("memory", "content", "value", "text")
_FORMS = (
    'memories of one user: mem0\'s {"results": [{"memory": "..."}]}, LangMem\'s [{"value": {"content": "..."}}], '
    'ChatGPT\'s [{"content": "..."}], or plain text with one a line'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memories:
    """What a file remembers of one user.

    Args:
        lines: each memory on one line, in the order of the file, each once.
        others: how many memories of other users were passed over.
        disabled: how many the user had switched off.
        unnamed: how many were passed over since they name no user, where others of the file do.
    """

    lines: tuple[str, ...]
    others: int = 0
    disabled: int = 0
    unnamed: int = 0


def read_memories(source: str | Path, user_id: str) -> Memories:
    """The memories of one user in a file.

    JSON or JSON lines as mem0 (``get_all``), LangMem (items of its store, or what a memory manager returns) and ChatGPT
    (``memory.json`` of a data export) write them, or plain text with a memory a line, such as a list copied from a
    settings page. Fields of a profile become a line each. Where rows name users (``user_id``, ``namespace``), those of
    others and those that name nobody are passed over; nothing is taken where none of them names this user.

    Raises:
        DataError: the file is missing or no such file, a row has no memory, none is this user's, or the user is named
            in a part of the namespaces that all rows share while another part tells them apart.

    Example:
        >>> import json, tempfile
        >>> rows = [{"memory": "Is vegetarian", "user_id": "ana"}, {"memory": "Lives in Rome", "user_id": "bo"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "mem0.json"
        ...     _ = file.write_text(json.dumps({"results": rows}))
        ...     read_memories(file, "ana")
        Memories(lines=('Is vegetarian',), others=1, disabled=0, unnamed=0)
    """
    path = Path(source)
    at = Place(file=str(path))
    lines: dict[str, None] = {}
    others = disabled = unnamed = 0
    names: dict[str, None] = {}
    rows = list(_rows(_text(path, at), at))
    _check_namespaces([row["namespace"] for _, row in rows if _has_namespace(row)], user_id, at)
    some_named = any(_owner(row, user_id) is not None for _, row in rows)
    for row_at, row in rows:
        owner = _owner(row, user_id)
        if owner is not None and owner != user_id:
            names[owner] = None
            others += 1
        elif isinstance(row, dict) and row.get("enabled") is False:
            disabled += 1
        elif owner is None and some_named:
            unnamed += 1
        else:
            lines |= dict.fromkeys(_lines(row, row_at))
    if not lines:
        if names:
            hint = f"Type --user {next(iter(names))!r}, or give the user's own file without these ids"
            raise at.error("user_id", ", ".join(list(names)[:5]), f"memories of {user_id!r}", hint)
        raise at.error(None, "no memories" + (f" but {disabled} switched off" if disabled else ""), _FORMS)
    return Memories(lines=tuple(lines), others=others, disabled=disabled, unnamed=unnamed)


def _text(path: Path, at: Place) -> str:
    with open_data(path) as file:
        content = file.read(MAX_LINE + 1)
    if content[:2] == b"PK":
        raise at.error(None, "a ZIP archive", "the file in it", "Unpack it: ChatGPT's memories are in memory.json")
    if len(content) > MAX_LINE:
        raise at.error(None, f"more than {MAX_LINE:,} bytes", "memories of one user")
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise at.error(None, content[error.start : error.start + 8], "UTF-8 text") from None


def _rows(text: str, at: Place) -> Iterator[tuple[Place, Any]]:
    if text[:1] not in ("[", "{"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield Place(file=at.file, line=number), line.strip().lstrip("-*•").strip()
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield from _json_lines(text, at, error)
        return
    rows = value if isinstance(value, list) else _listed(value, at)
    for number, row in enumerate(rows, 1):
        yield at.inside(f"[{number}]."), row


def _json_lines(text: str, at: Place, whole: Exception) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row_at = Place(file=at.file, line=number)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = whole if number == 1 else error  # the first line is no value by itself: the file was one
                raise row_at.error(None, line[:80], f"JSON ({reason})") from None
            yield row_at, row


def _listed(value: dict[str, Any], at: Place) -> Sequence[Any]:
    """The rows of an object that is no row itself."""
    if value.get("schema", "") and "sections" in value:
        raise at.error(None, "a persona JSON", _FORMS, "Type the same without --memories and --user")
    listed = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), None)
    return [value] if listed is None else cast("list[Any]", listed)


def _owner(row: Any, user_id: str) -> str | None:
    """Whose memory a row is, as it says; None where it does not."""
    if not isinstance(row, dict):
        return None
    if _has_namespace(row):
        return user_id if user_id in row["namespace"] else "/".join(map(str, row["namespace"]))
    return None if row.get("user_id") is None else str(row["user_id"])


def _has_namespace(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("namespace"), list)


def _check_namespaces(namespaces: Sequence[list[Any]], user_id: str, at: Place) -> None:
    """Raises ``DataError`` where all of them name the user in the same part while another part differs: then that one
    may be the user, and this a word such as ``memories``."""
    for place in range(min(map(len, namespaces), default=0)):
        rest = {json.dumps(parts[:place] + parts[place + 1 :]): parts for parts in namespaces}
        if len(rest) > 1 and all(parts[place] == user_id for parts in namespaces):
            shown = ", ".join("/".join(map(str, parts)) for parts in list(rest.values())[:5])
            columns = list(zip(*rest.values(), strict=False))
            other = next((column[0] for column in columns if len(set(map(str, column))) > 1), None)
            own = f"where all are of {user_id!r}, give the file without its namespaces"
            hint = (
                f"Type --user {str(other)!r}, or another of them; {own}"
                if other is not None
                else own[0].upper() + own[1:]
            )
            raise at.error("namespace", shown, f"a part that tells users apart, which {user_id!r} does not", hint)


def _lines(row: Any, at: Place) -> list[str]:
    """A memory as one line; a profile as a line for each of its fields."""
    value = row
    while isinstance(value, dict):
        inner = next((value[name] for name in _TEXTS if isinstance(value.get(name), str | dict)), None)
        if inner is None:
            if value is row:
                raise _no_memory(row, at)
            fields = {k: v for k, v in value.items() if v not in (None, "", [], {}) and k != "kind"}
            if not fields:
                raise at.error(None, row, _FORMS)
            return [one_line(f"{name.replace('_', ' ')}: {_field(v)}") for name, v in fields.items()]
        value = inner
    line = one_line(value) if isinstance(value, str) else ""
    if not line:
        raise at.error(None, row, _FORMS)
    return [line]


def _field(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_field, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _no_memory(row: dict[str, Any], at: Place) -> DataError:
    chat = "mapping" in row or "messages" in row or "query" in row
    hint = "Conversations and interactions are read by persona-dspy ingest FILE" if chat else ""
    return at.error(None, f"a row with {', '.join(map(str, list(row)[:6])) or 'nothing'}", _FORMS, hint)
