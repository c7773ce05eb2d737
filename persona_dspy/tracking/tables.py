"""One user's rows in a table of any origin, and the table's bytes without them.

Pure functions; bytes of other rows stay as they are, except in JSON, where the table is written anew.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from persona_dspy.core import user_key

__all__ = ["look_at", "without_user"]

_BOM = "\ufeff"


def without_user(content: bytes, suffix: str, user_id: str) -> tuple[bytes, int, str]:
    """A table without the rows whose ``user_id`` or ``user`` is this one or its key, how many they were, and why it
    could not be searched, or not wholly; empty where it was.

    Args:
        suffix: ``.json`` (MLflow's ``{"columns": [...], "data": [[...]]}``), ``.jsonl`` or ``.csv``; JSON of another
            form comes back as it is.

    Example:
        >>> without_user(b'{"user_id": "a"}\\n{"user_id": "b"}\\n', ".jsonl", "a")
        (b'{"user_id": "b"}\\n', 1, '')
    """
    if suffix == ".json":
        return _json_without(content, user_id)
    text, count, trouble = content.decode("utf-8", "surrogateescape"), 0, ""  # every byte comes back as it was
    if suffix == ".csv":
        try:
            text, count = _csv_without(text, user_id)
        except csv.Error as failure:
            trouble = str(failure)
    else:
        lines = text.split("\n")  # not splitlines: rows may hold U+2028 and its like
        others = [line for line in lines if not _is_of(line.removeprefix(_BOM), user_id)]
        text, count = "\n".join(others), len(lines) - len(others)
    if not trouble and any("\udc80" <= character <= "\udcff" for character in text):
        trouble = "not UTF-8"
    return text.encode("utf-8", "surrogateescape"), count, trouble


def look_at(unread: Iterable[str]) -> str:
    """The note on files that could not be searched or changed; empty where there are none."""
    named = ", ".join(unread)
    return f"look yourself, for these could not be searched or changed and may hold this user: {named}" if named else ""


def _json_without(content: bytes, user_id: str) -> tuple[bytes, int, str]:
    try:
        table = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return content, 0, "not UTF-8"
    except (ValueError, RecursionError):
        return content, 0, "not JSON"
    if not isinstance(table, dict) or not {"columns", "data"} <= set(table):
        return content, 0, ""
    names, rows = table["columns"], table["data"]
    if not isinstance(names, list) or not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return content, 0, "'columns' and 'data' that are no table"
    others = _others(names, rows, user_id)
    if len(others) == len(rows):
        return content, 0, ""
    return json.dumps({**table, "data": others}).encode(), len(rows) - len(others), ""


def _others(names: list[Any], rows: list[list[Any]], user_id: str) -> list[list[Any]]:
    places = [n for n, name in enumerate(names) if name in ("user_id", "user")]
    return [row for row in rows if not any(n < len(row) and row[n] in _ids(user_id) for n in places)]


def _ids(user_id: str) -> tuple[str, str]:
    return user_id, user_key(user_id)


def _is_of(line: str, user_id: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # cut off while it was written: what names the user in it is enough
        spelled = (json.dumps(name, ensure_ascii=ascii_) for name in _ids(user_id) for ascii_ in (True, False))
        return any(f'"user_id": {name}' in line or f'"user_id":{name}' in line for name in spelled)
    return isinstance(row, dict) and any(row.get(name) in _ids(user_id) for name in ("user_id", "user"))


def _csv_without(text: str, user_id: str) -> tuple[str, int]:
    mark = _BOM if text.startswith(_BOM) else ""
    lines = list(io.StringIO(text.removeprefix(mark), newline=""))
    reader, names, others, count, at = csv.reader(lines), list[str](), [mark], 0, 0
    for row in reader:
        if not names or _others(names, [row], user_id):
            others += lines[at : reader.line_num]
        else:
            count += 1
        names, at = names or row, reader.line_num
    return "".join(others), count
