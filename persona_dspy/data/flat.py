"""Rows that are an interaction each, whatever they stand in: walked once in order, then read again user by user."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from persona_dspy.data import rows
from persona_dspy.data.columns import Columns
from persona_dspy.data.tables import dataset_place, is_dataset, open_table
from persona_dspy.data.tasks import Place

__all__ = ["FlatRows", "columns_of", "open_flat"]

Row = Callable[[], Any]


class FlatRows(Protocol):
    """Rows, each with a number from 1 and what is kept to read it again (an offset, an index, or its text)."""

    table: bool
    text: bool

    def walk(self) -> Iterator[tuple[int, int | str, Row]]:
        """(number, what is kept, the row when called, which may raise a DataError)."""
        ...

    def again(self, number: int, kept: int | str) -> Any:
        """A row that was walked over."""
        ...

    def at(self, number: int) -> Place:
        """Where a row stands."""
        ...

    def names(self) -> list[str]:
        """The columns; of JSON, the keys of the first row that can be read."""
        ...


@contextmanager
def open_flat(source: Any, form: Any, split: str | None = None) -> Generator[FlatRows]:
    """The rows of JSON lines (``"lines"``), a JSON array (``"array"``), or a table."""
    if form == "lines":
        with closing(_Lines(Path(source))) as lines:
            yield lines
    elif form == "array":
        yield _Array(Path(source))
    else:
        with open_table(source, form, split) as data:
            place = dataset_place(source) if is_dataset(source) else Place(file=str(source))
            yield (_Table if hasattr(data, "num_rows") else _Stream)(data, place, form == "csv")


def columns_of(flat: FlatRows, typed: Mapping[str, str] | None) -> Columns:
    """Which column is which field."""
    at = Place(file=flat.at(1).file)
    return Columns.of(flat.names(), typed, at, table=flat.table, text=flat.text)


# what a table may hold and Python may not, such as dates after the year 9999, or in a time zone that nobody knows
_NOT_PYTHONS = (ValueError, OverflowError)
_HOLDABLE = "values that Python can hold: dates up to the year 9999, in a time zone that is known"


class _Lines:
    table = text = False

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, rows.open_data(path)

    def close(self) -> None:
        self._file.close()

    def walk(self) -> Iterator[tuple[int, int | str, Row]]:
        for number, offset, line in rows.numbered_lines(self.path):
            yield number, offset, lambda line=line, number=number: rows.json_line(line, self.at(number))

    def again(self, number: int, kept: int | str) -> Any:
        self._file.seek(int(kept))
        return rows.json_line(self._file.readline(), self.at(number))

    def at(self, number: int) -> Place:
        return Place(file=str(self.path), line=number)

    def names(self) -> list[str]:
        return _first_keys(row for _, _, row in self.walk())


class _Array:
    table = text = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def walk(self) -> Iterator[tuple[int, int | str, Row]]:
        for position, row in rows.array_rows(self.path):
            yield position, json.dumps(row), lambda row=row: row

    def again(self, number: int, kept: int | str) -> Any:
        return json.loads(str(kept))

    def at(self, number: int) -> Place:
        return Place(file=str(self.path), row_id=f"#{number}")

    def names(self) -> list[str]:
        return _first_keys((lambda row=row: row) for _, row in rows.array_rows(self.path))


class _Table:
    table = True

    def __init__(self, data: Any, place: Place, text: bool) -> None:
        self.data, self.place, self.text = data, place, text
        self._classes = {n: f for n, f in (data.features or {}).items() if hasattr(f, "int2str")}

    def walk(self) -> Iterator[tuple[int, int | str, Row]]:
        walked, index = iter(self.data), 0
        while True:
            try:
                row = next(walked)
            except StopIteration:
                return
            except _NOT_PYTHONS:  # of one row among those that are read together: each by itself, then
                for left in range(index, self.data.num_rows):
                    yield left + 1, left, partial(self.again, left + 1, left)
                return
            yield index + 1, index, lambda row=row: self._named(row)
            index += 1

    def again(self, number: int, kept: int | str) -> Any:
        try:
            return self._named(self.data[int(kept)])
        except _NOT_PYTHONS as failure:
            raise self.at(number).error(None, str(failure), _HOLDABLE) from None

    def at(self, number: int) -> Place:
        return Place(file=self.place.file, row_id=f"#{number}")

    def names(self) -> list[str]:
        return list(self.data.column_names or next(iter(self.data), {}))

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        """The names of classes in place of their numbers."""
        named = {n: f.int2str(row[n]) for n, f in self._classes.items() if row.get(n) is not None}
        return {**row, **named}


class _Stream(_Table):
    """A dataset that can only be walked: its rows wait in the temporary file of ``UserRows``."""

    def walk(self) -> Iterator[tuple[int, int | str, Row]]:
        number = 0
        try:
            for number, row in enumerate(self.data, 1):
                named = self._named(row)
                yield number, json.dumps(named, default=str), lambda named=named: named
        except _NOT_PYTHONS as failure:
            raise self.at(number + 1).error(None, str(failure), _HOLDABLE) from None

    def again(self, number: int, kept: int | str) -> Any:
        return json.loads(str(kept))


def _first_keys(walked: Iterator[Row]) -> list[str]:
    from persona_dspy.errors import DataError

    for row in walked:
        try:
            first = row()
        except DataError:
            continue
        if isinstance(first, dict):
            return [str(key) for key in first]
    return []
