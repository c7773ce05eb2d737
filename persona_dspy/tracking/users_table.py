"""A fleet's table while the fleet runs: ``users.csv`` in a temporary folder."""

from __future__ import annotations

import csv

from persona_dspy.core import PersonaDocument, temporary_folder
from persona_dspy.errors import RunError
from persona_dspy.tracking.values import COLUMNS, row_of

__all__ = ["UsersTable"]


class UsersTable:
    """A row a user; for one thread at a time. A disk that is full ends nothing: rows are missing then.

    Attributes:
        path: of the file, complete after ``close``.
        trouble: why rows are missing; empty where none are.

    Raises:
        RunError: from ``__init__``, where there is no place for temporary files.

    Example:
        >>> table = UsersTable()
        >>> table.add("u1", None)
        >>> table.close()
        >>> table.path.read_text().splitlines()[1]
        '53199585bddea28e67fe7143a42baef7,failed,,,,,,,,,,'
        >>> table.remove()
    """

    def __init__(self) -> None:
        self.trouble = ""
        try:
            self._folder = temporary_folder()
            self.path = self._folder.path / "users.csv"
            self._file = open(self.path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        except OSError as failure:
            raise RunError(
                f"folder for temporary files: {failure.strerror or failure}; expected one with room, type: "
                "export TMPDIR=FOLDER, or go without: --tracking-uri off"
            ) from failure
        self._rows = csv.writer(self._file)
        self._rows.writerow(COLUMNS)

    def add(self, user_id: str, document: PersonaDocument | None) -> None:
        """Write the row of a finished user, or of a failed one, who has no document."""
        try:
            self._rows.writerow(row_of(user_id, document))
        except OSError as failure:
            self._missing(failure)

    def close(self) -> None:
        """Write what is still in memory."""
        try:
            self._file.close()
        except OSError as failure:
            self._missing(failure)

    def remove(self) -> None:
        """Remove the file and its folder."""
        self._folder.remove()

    def _missing(self, failure: OSError) -> None:
        self.trouble = self.trouble or f"rows of users.csv are missing: {failure.strerror or failure}"
