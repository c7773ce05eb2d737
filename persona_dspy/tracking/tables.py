"""One user's part of a file of any origin, and the file's bytes without it.

Pure functions. Bytes of other rows stay as they are, except in JSON that is no JSON lines, which is written anew.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from persona_dspy.core import user_key

__all__ = ["Pruned", "look_at", "without_user"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NAMES = ("userid", "user")  # what the field is called that says whose a row is, however it is spelled
_NAMED = re.compile(r'"user[_-]?id"\s*:', re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A file without a user.

    Args:
        content: what is left; None where the whole file is the user's.
        removed: how many rows or documents went.
        trouble: why it could not be searched, or not wholly; empty where it was.
        rest: text in it that does not say whose it is.
    """

    content: bytes | None
    removed: int = 0
    trouble: str = ""
    rest: str = ""


def without_user(content: bytes, suffix: str, user_id: str) -> Pruned:
    """A file without what is marked as the user's: rows and documents whose ``user_id`` (in any spelling) is this one
    or its key, and rows whose ``user`` is, where they have no ``user_id``. What another's row holds is the other's.

    A JSON document is the user's as a whole where it says so, or where a part of it does and it names nobody else, as a
    program's checkpoint does. Of lists, tables and mappings the user's entries go.

    Args:
        suffix: as of the file's name; ``.json``, ``.jsonl`` and ``.csv`` are expected to be what they say, others are
            looked at.

    Example:
        >>> without_user(b'{"user_id": "a"}\\n{"user_id": "b"}\\n', ".jsonl", "a").content
        b'{"user_id": "b"}\\n'
        >>> without_user(b'[{"user_id": "a"}, {"user_id": "b"}]', ".json", "a").content
        b'[{"user_id": "b"}]'
        >>> without_user(b'{"persona": {"value": {"user_id": "a"}}}', ".json", "a").content is None
        True
    """
    text, encoding, mark = _decoded(content)
    if suffix in (".csv", ".tsv"):
        pruned = _csv_without(text, user_id)
    elif suffix in (".jsonl", ".ndjson"):
        pruned = _lines_without(text, user_id)
    elif suffix == ".json" or text.lstrip()[:1] in ("{", "["):
        pruned = _json_without(text, user_id, lines=suffix != ".json")
    else:
        pruned = None, 0, "", text
    left, removed, trouble, rest = pruned
    if left == "" and removed and not rest and suffix == ".json":
        return Pruned(content=None, removed=removed)
    left = text if left is None or not removed else left
    written = content if left is text else mark + left.encode(encoding, "surrogateescape")
    is_told = suffix in (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
    if not trouble and is_told and any("\udc80" <= character <= "\udcff" for character in left):
        trouble = "not UTF-8"
    return Pruned(content=written, removed=removed, trouble=trouble, rest=rest)


def look_at(unread: Iterable[str]) -> str:
    """The note on files that could not be searched or changed; empty where there are none."""
    named = ", ".join(unread)
    return f"look yourself, for these could not be searched or changed and may hold this user: {named}" if named else ""


def _decoded(content: bytes) -> tuple[str, str, bytes]:
    """The text, its encoding and its byte order mark. Every byte comes back as it was by ``surrogateescape``."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            body = content[len(mark) :]
            return body.decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace"), encoding, mark
    encoding = json.detect_encoding(content[:4]).removesuffix("-sig")
    if encoding != "utf-8":
        try:
            return content.decode(encoding), encoding, b""
        except UnicodeDecodeError:
            pass
    return content.decode("utf-8", "surrogateescape"), "utf-8", b""


_Found = tuple[str | None, int, str, str]  # what is left, removed, trouble, rest


def _json_without(text: str, user_id: str, *, lines: bool) -> _Found:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _lines_without(text, user_id) if lines else (None, 0, "not JSON", text)
    if _is_of(value, user_id, bare=False):
        return "", 1, "", ""
    walk = _Walk(user_id)
    try:
        left, rest = walk.without(value)
    except RecursionError:
        return None, 0, "too deep to be searched", text
    rest = json.dumps(rest, ensure_ascii=False) if rest else ""
    if walk.removed and not walk.in_lists and not walk.others:
        return "", 1, "", ""
    if not walk.removed:
        return None, 0, walk.trouble, rest
    indent = 2 if "\n" in text.strip() else None
    return json.dumps(left, ensure_ascii=text.isascii(), indent=indent), walk.removed, walk.trouble, rest


class _Walk:
    """Goes through a JSON value once. ``in_lists``: entries of a list or a table went; ``others``: it names others."""

    def __init__(self, user_id: str) -> None:
        self.user_id, self.removed, self.in_lists, self.others, self.trouble = user_id, 0, False, False, ""

    def without(self, value: Any) -> tuple[Any, Any]:
        """The value without the user, and what of that does not say whose it is."""
        if isinstance(value, dict):
            if {"columns", "data"} <= set(value):
                return self._table(value)
            if _exact(value):  # of somebody else, who may have written this user's name into it
                self.others = True
                return value, value if _Walk(self.user_id).finds(value) else {}
            pairs = {key: self.without(part) for key, part in value.items() if not self._goes(part)}
            left = {key: part for key, (part, _) in pairs.items()}
            if _says_whose(value):
                self.others = True
                return left, left if _is_of(value, self.user_id) else {}  # of settings, say, with the name in them
            return left, {key: rest for key, (_, rest) in pairs.items() if rest}
        if isinstance(value, list):
            parts = [part for part in value if not self._goes(part, in_list=True)]
            both = [self.without(part) for part in parts]
            return [left for left, _ in both], [rest for _, rest in both if rest]
        return value, value

    def finds(self, row: dict[str, Any]) -> bool:
        """Whether any part of a row is marked as the user's."""
        for part in row.values():
            if not self._goes(part):
                self.without(part)
        return bool(self.removed)

    def _goes(self, part: Any, *, in_list: bool = False) -> bool:
        if not _is_of(part, self.user_id, bare=in_list):
            return False
        self.removed += 1
        self.in_lists = self.in_lists or in_list
        return True

    def _table(self, table: dict[str, Any]) -> tuple[Any, Any]:
        names, rows = table["columns"], table["data"]
        if not isinstance(names, list) or not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            self.trouble = "'columns' and 'data' that are no table"
            return table, table
        others = _others(names, rows, self.user_id)
        self.removed += len(rows) - len(others)
        self.in_lists = self.in_lists or len(others) < len(rows)
        return {**table, "data": others}, {} if _places(names) else {**table, "data": others}


def _lines_without(text: str, user_id: str) -> _Found:
    lines = text.split("\n")  # not splitlines: rows may hold U+2028 and its like
    left, rest, removed, trouble = [], [], 0, ""
    for line in lines:
        kept, gone, problem, unmarked = _line_without(line, user_id)
        removed, trouble = removed + gone, trouble or problem
        if kept is not None:
            left.append(kept)
        rest.append(unmarked)
    return "\n".join(left), removed, trouble, "\n".join(filter(None, rest))


def _line_without(line: str, user_id: str) -> _Found:
    """A line, or None in its place where it goes."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # cut off while it was written: what names the user in it is enough
        spelled = (json.dumps(name, ensure_ascii=ascii_) for name in _ids(user_id) for ascii_ in (True, False))
        if any(re.search(_NAMED.pattern + r"\s*" + re.escape(name), line, re.IGNORECASE) for name in spelled):
            return None, 1, "", ""
        return line, 0, "", "" if _NAMED.search(line) else line
    if _is_of(row, user_id):
        return None, 1, "", ""
    left, removed, trouble, rest = _json_without(line, user_id, lines=False)
    if removed and left == "":
        return None, 1, trouble, ""
    return left if removed and left is not None else line, removed, trouble, rest


def _csv_without(text: str, user_id: str) -> _Found:
    lines = list(io.StringIO(text, newline=""))
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    reader, names, others, count, at = csv.reader(lines, delimiter=delimiter), list[str](), list[str](), 0, 0
    try:
        for row in reader:
            if not names or _others(names, [row], user_id):
                others += lines[at : reader.line_num]
            else:
                count += 1
            names, at = names or row, reader.line_num
    except csv.Error as failure:
        return None, 0, str(failure), text
    return "".join(others), count, "", "" if _places(names) else text


def _others(names: list[Any], rows: list[list[Any]], user_id: str) -> list[list[Any]]:
    places = _places(names)
    return [row for row in rows if not any(n < len(row) and _same(row[n], user_id) for n in places)]


def _places(names: list[Any]) -> list[int]:
    exact = [n for n, name in enumerate(names) if _plain(name) == _NAMES[0]]
    return exact or [n for n, name in enumerate(names) if _says_user(name)]


def _plain(name: Any) -> str:
    return name.strip().casefold().replace("_", "").replace("-", "") if isinstance(name, str) else ""


def _says_user(name: Any) -> bool:
    return _plain(name) in _NAMES


def _says_whose(row: dict[str, Any]) -> bool:
    return any(_says_user(name) and isinstance(value, str | int | float) for name, value in row.items())


def _exact(row: dict[str, Any]) -> list[Any]:
    """The ids in a row's ``user_id``: settings and clients write names into a ``user``."""
    return [value for name, value in row.items() if _plain(name) == _NAMES[0] and isinstance(value, str | int | float)]


def _is_of(row: Any, user_id: str, *, bare: bool = True) -> bool:
    """``bare``: whether a ``user`` says so too, where there is no ``user_id``."""
    if not isinstance(row, dict):
        return False
    said = _exact(row) or ([value for name, value in row.items() if _says_user(name)] if bare else [])
    return any(_same(value, user_id) for value in said)


def _same(value: Any, user_id: str) -> bool:
    """Whether a value is the user's id or key; numbers as they are spelled, 7.0 as 7."""
    if isinstance(value, bool):
        return False
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return isinstance(value, str | int) and str(value) in _ids(user_id)


def _ids(user_id: str) -> tuple[str, str]:
    return user_id, user_key(user_id)
