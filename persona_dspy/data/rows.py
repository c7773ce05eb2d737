"""Data files as raw rows, one at a time: a file's form by its content, and errors about bytes and JSON.

Nothing here holds more of a file than one row (JSON array: ijson; JSON lines: one line), however large the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from persona_dspy.data.tables import split_of, table_form
from persona_dspy.data.tasks import Place

__all__ = ["MAX_LINE", "array_rows", "file_form", "json_line", "numbered_lines", "read_golds"]

MAX_LINE = 32 * 1024 * 1024
"""Bytes in one JSON line at most; more is no line of text but a file of another kind."""

_BOM = b"\xef\xbb\xbf"
_JSONL = 'one JSON object a line, such as {"user_id": "u1", "query": "...", "response": "..."}'


def open_data(path: Path) -> BinaryIO:
    """The file, for reading bytes, after a byte order mark.

    Raises:
        DataError: it is missing, a directory or may not be read.
    """
    at = Place(file=str(path))
    if path.is_dir():
        raise at.error(None, "a directory", "a file", f"Give the file in it, such as {path / 'questions.json'}")
    try:
        file = path.open("rb")
    except OSError as error:
        raise at.error(None, error.strerror or str(error), "a file that can be read", "Check the path") from None
    if file.read(3) != _BOM:
        file.seek(0)
    return file


def file_form(path: Path) -> Literal["array", "lines", "csv", "parquet", "arrow", "saved"]:
    """``"array"`` for a JSON array (LaMP official, OPPU style), ``"lines"`` for JSON lines, by the first character;
    else the form of a table (``table_form``).

    Raises:
        DataError: missing, a directory, empty, not UTF-8, or of no known form.
    """
    path = split_of(path)[0]
    if table := table_form(path):
        return table
    at = Place(file=str(path))
    with open_data(path) as file:
        head = file.read(4096)
        while head and not head.strip():
            head = file.read(4096)
    first = head.lstrip()[:1]
    if not first:
        raise at.error(None, "an empty file", "JSON lines, CSV, Parquet, a LaMP questions.json or a users.json")
    if first == b"[":
        return "array"
    if first == b"{":
        if _nested(path):
            return "array"
        if head.lstrip()[1:].lstrip()[:7] in (b'"task":', b'"golds"') or b'"golds"' in head[:200]:
            raise at.error(None, "a LaMP outputs.json", "the questions.json beside it")
        return "lines"
    start = head[:40].decode("utf-8", "replace")
    raise at.error(
        None,
        start,
        f"UTF-8 text that starts with '[' (a LaMP file) or '{{' ({_JSONL}), or a .csv, .tsv, .parquet or .arrow file",
    )


def _nested(path: Path) -> bool:
    """Whether it is ``{"task": "LaMP_6", "golds": [questions]}``, as LaMP's script for mails writes its test split."""
    with open_data(path) as file:
        head = "".join(file.read(1000).decode("utf-8", "replace").split())
    return head.startswith('{"task":') and '"golds":[{"' in head and '"input":' in head


def array_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(position from 1, element) of a top-level JSON array, streamed. Floats are ``float``.

    Raises:
        DataError: broken or cut JSON, or not UTF-8. What came before was yielded; nothing after can be found again.
    """
    import ijson

    position = 0
    with open_data(path) as file:
        try:
            inside = "golds.item" if _nested(path) else "item"
            for position, row in enumerate(ijson.items(file, inside, use_float=True), 1):
                yield position, row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = str(error).strip().splitlines()[0]
            hint = "The file may be cut short: fetch or write it again"
            raise Place(file=str(path)).error(
                None, f"{reason} after row {position}", "valid JSON in UTF-8", hint
            ) from None


def numbered_lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """(line number from 1, offset in bytes, line) of a text file; blank lines are left out; a line longer than
    ``MAX_LINE`` is yielded as None."""
    with open_data(path) as file:
        number = 0
        while True:
            offset, number = file.tell(), number + 1
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                yield number, offset, None
            elif line.strip():
                yield number, offset, line


def json_line(line: bytes | None, at: Place) -> dict[str, Any]:
    """The object on one JSON line.

    Raises:
        DataError: too long, not UTF-8, not JSON, or not an object.
    """
    if line is None:
        raise at.error(None, f"a line over {MAX_LINE} bytes", _JSONL)
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise at.error(None, line[error.start : error.start + 8], "UTF-8 text", "Save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise at.error(None, line[:60].decode("utf-8", "replace").strip(), _JSONL, f"JSON: {error}") from None
    if not isinstance(row, dict):
        raise at.error(None, row, _JSONL)
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def read_golds(path: Path) -> tuple[str, dict[str, Any]]:
    """(task name as written, output by question id) of a LaMP outputs.json.

    Raises:
        DataError: missing, broken, not of this form, or an id twice.
    """
    at = Place(file=str(path))
    with open_data(path) as file:
        try:
            data = json.loads(file.read().decode("utf-8"))
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise at.error(None, str(error), "valid JSON in UTF-8") from None
    form = '{"task": "LaMP_1", "golds": [{"id": "10", "output": "[1]"}]}'
    if not isinstance(data, dict) or not isinstance(data.get("golds"), list) or not isinstance(data.get("task"), str):
        raise at.error(None, data, form)
    golds: dict[str, Any] = {}
    for number, gold in enumerate(data["golds"]):
        if not isinstance(gold, dict) or "id" not in gold or "output" not in gold:
            raise at.error(f"golds[{number}]", gold, 'an object such as {"id": "10", "output": "[1]"}')
        if str(gold["id"]) in golds:
            raise Place(file=str(path), row_id=str(gold["id"])).error("id", gold["id"], "an id that is given once")
        golds[str(gold["id"])] = gold["output"]
    return data["task"], golds
