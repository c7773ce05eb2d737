"""Which rows of a stream are which user's, kept in a temporary file: no memory grows with the users."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from persona_dspy.core import user_key

__all__ = ["FirstRows", "UserRows"]

_USER_BY_USER = """
SELECT rows.user, rows.row, rows.content
FROM rows JOIN (SELECT user, min(row) AS first FROM rows GROUP BY user) AS users USING (user)
ORDER BY users.first, rows.row
"""


class _TemporaryTable:
    """A database in a file without a name, which is gone when it is closed or the process ends."""

    _schema = ""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute(self._schema)

    def close(self) -> None:
        """Remove the file."""
        self._database.close()


class FirstRows(_TemporaryTable):
    """The row each user was first met in.

    Example:
        >>> rows = FirstRows()
        >>> rows.first("u1", 1), rows.first("u2", 2), rows.first("u1", 3)
        (1, 2, 1)
        >>> rows.close()
    """

    _schema = "CREATE TABLE rows (user BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID"

    def first(self, user_id: str, row: int) -> int:
        """The row the user was first met in: ``row`` itself, which is kept, where the user is new."""
        user = _key(user_id)
        met = self._database.execute("SELECT row FROM rows WHERE user = ?", (user,)).fetchone()
        if met is None:
            self._database.execute("INSERT INTO rows VALUES (?, ?)", (user, row))
        return row if met is None else met[0]


class UserRows(_TemporaryTable):
    """Rows in any order, to be read user by user.

    Example:
        >>> rows = UserRows()
        >>> for row, user in enumerate(("u1", "u2", "u1"), 1):
        ...     rows.add(user, row, f"content {row}")
        >>> list(rows.by_user())
        [[(1, 'content 1'), (3, 'content 3')], [(2, 'content 2')]]
        >>> rows.close()
    """

    _schema = "CREATE TABLE rows (user BLOB, row INTEGER PRIMARY KEY, content)"

    def add(self, user_id: str, row: int, content: int | str) -> None:
        """Keep one row; ``row`` is its number, unique and rising."""
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (_key(user_id), row, content))

    def by_user(self) -> Iterator[list[tuple[int, Any]]]:
        """(row, content) of one user after the other, in the order in which users were first met."""
        self._database.execute("CREATE INDEX IF NOT EXISTS by_user ON rows (user, row)")
        for _, rows in groupby(self._database.execute(_USER_BY_USER), key=lambda found: found[0]):
            yield [(row, content) for _, row, content in rows]


def _key(user_id: str) -> bytes:
    return bytes.fromhex(user_key(user_id))
