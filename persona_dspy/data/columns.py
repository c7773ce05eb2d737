"""Which column of a table is which field of an interaction: as typed, by our own names, or guessed and said."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from persona_dspy.core import SIGNAL_FIELDS
from persona_dspy.data.tasks import Place
from persona_dspy.errors import InputError

__all__ = ["FIELDS", "SAID", "Columns", "columns_from_text"]

FIELDS = ("user_id", "query", "response", "time", "id", "metadata", "signal")
SAID = tuple(name for name in SIGNAL_FIELDS if name != "trace")
_NEEDED = ("user_id", "query", "response")
_ALIASES = {
    "user_id": "user userid uid username author authorid customer customerid reviewer reviewerid account accountid "
    "person personid member memberid speaker",
    "query": "question prompt input instruction request situation text title description",
    "response": "answer output completion reply label tag target gold choice chosen category score stars expected",
    "time": "timestamp created createdat date datetime when at createtime ts",
}
_CHAT = ("messages", "conversation", "conversations")
_TYPED_AS_JSON = ("rejected", "options", "scale", "metadata", "signal")


@dataclass(frozen=True, slots=True)
class Columns:
    """How a row of a table becomes a row of ours.

    Args:
        names: column -> field.
        constants: field -> the value that all rows have.
        chat: the column that holds a chat, and the field that its assistant's messages are.
        extras: whether other columns are kept as metadata; else they stay as they are, to be named as unknown.
        text: whether all values are text, as in CSV.
    """

    names: Mapping[str, str]
    constants: Mapping[str, str]
    chat: tuple[str, str] | None = None
    extras: bool = False
    text: bool = False

    @classmethod
    def of(
        cls, columns: Sequence[str], typed: Mapping[str, str] | None, at: Place, *, table: bool, text: bool = False
    ) -> Columns:
        """The columns of a table, or the keys of a JSON file's first row.

        Where a field that is needed has no column, one of a name that means it is taken, with a warning that says so.
        JSON rows that hold all that is needed are left alone, so that a misspelt key stays an error.

        Args:
            typed: field -> column, or field -> text in quotation marks that all rows have.

        Raises:
            InputError: ``typed`` names no field of ours. DataError: no such column, or several that may be meant.

        Example:
            >>> Columns.of(["user_id", "query", "response"], None, Place(), table=True).names["query"]
            'query'
        """
        names, constants, chat = _typed(columns, typed or {}, at)
        taken = {*names.values(), *constants}
        own = [c for c in columns if c in (*FIELDS, *SAID) and c not in names and c not in taken]
        names |= {column: column for column in own}
        taken |= set(own)
        said: list[str] = []
        if chat is None and "query" not in taken and (found := next((c for c in columns if c in _CHAT), None)):
            chat = (found, "response")
            said = [
                f"in column {found!r} each message of a user is taken as query, and the assistant's reply as the "
                f"user's own answer: where a model wrote the replies, type --columns draft={found}"
            ]
        spare = [c for c in columns if c not in names and not (chat and c == chat[0])]
        taken |= {"query", chat[1]} if chat else set()
        judged = taken & {*SAID, "signal"} - {"options", "version", "scale", *({"rating"} if table else ())}
        missing = [f for f in _NEEDED if f not in taken and not (f == "response" and judged)]
        guesses = dict(_guess(missing, spare, at, columns)) if missing else {}
        if "response" in missing and "response" not in guesses.values() and "rating" in names and table:
            guesses["rating"] = "response"
        lacking = [name for name in missing if name not in guesses.values()]
        if lacking and not (table or typed or chat):  # the row itself will be refused
            return cls(names, constants)
        if lacking:
            hint = f"Say which: --columns {lacking[0]}=COLUMN"
            if "user_id" in lacking:
                hint += ", or in quotation marks what all rows have: --columns \"user_id='ana'\""
            raise at.error(lacking[0], list(columns), f"a column for {' and '.join(lacking)}", hint)
        if (guesses or typed or table) and "time" not in taken:
            guesses |= _guess(["time"], [c for c in spare if c not in guesses], at, columns)
        names |= guesses
        extras = bool(guesses or typed or table or chat)
        rest = [c for c in spare if c not in guesses] if extras else []
        said += [f"column {column!r} is taken as {name}" for column, name in guesses.items()]
        if said:
            said += [f"kept as metadata: {', '.join(rest)}"] if rest else []
            hint = "To take others: --columns user_id=...,query=...,response=...,time=..."
            warnings.warn(f"{at.file}: {'; '.join(said)}. {hint}", stacklevel=3)
        return cls(names, constants, chat, extras, text)

    def rows(self, row: Mapping[str, Any], at: Place) -> Iterator[dict[str, Any]]:
        """The row in our fields; of a chat, one for each reply.

        Raises:
            DataError: a chat that cannot be read.
        """
        if not self.extras and not self.constants:
            yield dict(row)
            return
        ours: dict[str, Any] = dict(self.constants)
        extras: dict[str, Any] = {}
        for column, value in row.items():
            if _absent(value):
                continue
            if field := self.names.get(column):
                ours[field] = _value(field, value, at, text=self.text)
            elif self.chat is None or column != self.chat[0]:
                extras[column] = _json_safe(value)
        if extras:
            metadata = ours.get("metadata") or {}
            ours["metadata"] = {**extras, **metadata} if isinstance(metadata, dict) else metadata
        if self.chat is None:
            yield ours
            return
        replies = list(_replies(row.get(self.chat[0]), at.inside(f"{self.chat[0]}: ")))
        for number, (query, reply) in enumerate(replies, 1):
            one = {**ours, "query": query, self.chat[1]: reply}
            if "id" in ours and len(replies) > 1:
                one["id"] = f"{ours['id']}-{number}"
            yield one


def columns_from_text(text: str | None) -> dict[str, str] | None:
    """``--columns`` as field -> column.

    Raises:
        InputError: not of that form.

    Example:
        >>> columns_from_text("user_id=author,query=text")
        {'user_id': 'author', 'query': 'text'}
    """
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    bad = next((f"{a}{b}{c}" for a, b, c in pairs if not (a.strip() and b and c.strip())), None)
    if bad is not None:
        raise InputError(f"--columns {bad!r}: expected field=column, such as user_id=author,query=text,response=tag")
    return {field.strip(): column.strip() for field, _, column in pairs}


def _typed(
    columns: Sequence[str], typed: Mapping[str, str], at: Place
) -> tuple[dict[str, str], dict[str, str], tuple[str, str] | None]:
    names, constants, chat = dict[str, str](), dict[str, str](), None
    for field, column in typed.items():
        if field not in (*FIELDS, *SAID):
            raise InputError(f"columns {field!r}={column!r}: expected a field of {', '.join((*FIELDS, *SAID))}")
        if len(column) > 2 and column[0] == column[-1] and column[0] in "'\"":
            constants[field] = column[1:-1]
        elif column not in columns:
            raise at.error(field, column, f"a column of {', '.join(columns)}")
        elif column in _CHAT:
            chat = (column, field)
        elif column in names:
            raise at.error(field, column, f"one field a column; it is {names[column]} already")
        else:
            names[column] = field
    return names, constants, chat


def _guess(missing: Sequence[str], spare: Sequence[str], at: Place, columns: Sequence[str]) -> dict[str, str]:
    guesses: dict[str, str] = {}
    for field in missing:
        meant = [c for c in spare if c not in guesses and _plain(c) in {_plain(field), *_ALIASES[field].split()}]
        if field == "query" and len(meant) > 1:  # beside a question, these are extras
            meant = [c for c in meant if _plain(c) not in ("text", "title", "description")] or meant
        if len(meant) > 1:
            expected = f"one column for {field}, not {' and '.join(repr(c) for c in meant)}"
            raise at.error(field, list(columns), expected, f"Say which: --columns {field}={meant[0]}")
        guesses |= {meant[0]: field} if meant else {}
    return guesses


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _value(field: str, value: Any, at: Place, *, text: bool) -> Any:
    """A value of a table, as JSON lines would have it: lists and objects out of text, no empty keys."""
    if isinstance(value, Mapping):
        return {key: _json_safe(inner) for key, inner in value.items() if inner is not None}
    if not isinstance(value, str):
        return value
    if field in _TYPED_AS_JSON and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise at.error(field, value, "JSON, such as " + ('["a", "b"]' if field != "metadata" else "{}")) from None
    if not text:
        return value
    if field == "options":
        options = [part.strip() for part in value.split("|")]
        if len(options) < 2:
            raise at.error(field, value, 'a list such as ["a", "b"], or a | b')
        return options
    if field in ("rating", "version"):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if field == "version" and number.is_integer() else number
    return value


def _json_safe(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _json_safe(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_json_safe(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _replies(chat: Any, at: Place) -> Iterator[tuple[str, str]]:
    """(what a user said, the reply) of OpenAI-style messages or ShareGPT's; parts that are no text are passed by."""
    form = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if isinstance(chat, str):
        try:
            chat = json.loads(chat)
        except (ValueError, RecursionError):
            raise at.error(None, chat, form) from None
    if not isinstance(chat, list):
        raise at.error(None, chat, form)
    asked, replied = "", False
    for message in chat:
        if not isinstance(message, Mapping):
            raise at.error(None, message, form)
        role = str(message.get("role") or message.get("from") or "").casefold()
        content = _content(message.get("content", message.get("value")))
        if role in ("user", "human"):
            asked = f"{asked}\n\n{content}".strip() if asked else content  # several in a row are one question
        elif role in ("assistant", "gpt", "model", "ai") and asked and content and message.get("weight") != 0:
            yield asked, content
            asked, replied = "", True
        elif role in ("assistant", "gpt", "model", "ai"):
            asked = asked if not content else ""
        elif role not in ("system", "developer", "tool", "function"):
            raise at.error("role", role, "user, assistant, system or tool")
    if not replied:
        raise at.error(None, chat, f"a user's message and a reply to it, such as {form}")


def _content(content: Any) -> str:
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "\n".join(text for text in texts if isinstance(text, str))
    return content.strip() if isinstance(content, str) else ""
