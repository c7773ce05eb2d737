"""The work behind ``persona-dspy ingest``: a file of any size into the store, one user in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_dspy.core import Interaction
from persona_dspy.data import BadRow, Place, Task, UserHistory, file_form, json_line, numbered_lines, read_users
from persona_dspy.errors import DataError, InputError, UnknownUser
from persona_dspy.store import Store, body_of, checked_key

if TYPE_CHECKING:
    from persona_dspy.tracking import TracesRead

__all__ = ["Ingest", "ingest_traces"]


class Ingest:
    """One file on its way into a store: a transaction a user, so that a killed run is simply started again.

    ``limit``, ``users``: only so many users, or these. ``group``, ``columns``: as in ``read_users``.

    ``users``, ``rows``, ``new`` and ``bad`` count while it runs; ``rows`` are usable interactions.

    Raises:
        DataError: the file, or without ``skip_bad_rows`` a row of it, cannot be used: file, line, field, expected.
    """

    def __init__(
        self,
        store: Store,
        path: Path,
        *,
        task: Task | str | None = None,
        skip_bad_rows: bool = False,
        limit: int | None = None,
        users: Sequence[str] | None = None,
        group: bool = False,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.store, self.path, self.skip_bad_rows = store, path, skip_bad_rows
        self.users = self.rows = self.new = self.bad = 0
        self._found: list[BadRow] = []
        same: dict[str, Any] = {"task": task, "limit": limit, "users": users, "group": group, "columns": columns}
        self._histories = read_users(path, skip_bad_rows=skip_bad_rows, bad_rows=self._found, **same)

    @property
    def known(self) -> int:
        """Interactions that the store had already."""
        return self.rows - self.new

    @property
    def counts(self) -> dict[str, int]:
        """JSON-safe."""
        names = ("users", "rows", "new", "known", "bad")
        return {("interactions" if n == "rows" else "bad_rows" if n == "bad" else n): getattr(self, n) for n in names}

    def run(self, progress: Callable[[int, int], None] = lambda users, rows: None) -> Iterator[BadRow]:
        """Keep everything; gives each row that was passed over as soon as it is met."""
        for user in self._histories:
            try:
                usable: Sequence[Interaction] = user.interactions
                self.new += self.store.add_episodes(user.user_id, usable)
            except InputError:
                usable = self._usable(user)
                self.new += self.store.add_episodes(user.user_id, usable) if usable else 0
            yield from self._drained()
            self.users += bool(usable)
            self.rows += len(usable)
            if self.users % 100 == 0:
                progress(self.users, self.rows)
        yield from self._drained()

    def _drained(self) -> Iterator[BadRow]:
        self.bad += len(self._found)
        problems, self._found[:] = list(self._found), []
        yield from problems

    def _usable(self, user: UserHistory) -> list[Interaction]:
        """The interactions that the store can take, where it refused one: that is raised, or noted and left out."""
        taken = self._bodies(user)
        usable: list[Interaction] = []
        for interaction in user.interactions:
            error = self._refusal(interaction, taken)
            if error is None:
                usable.append(interaction)
            elif not self.skip_bad_rows:
                raise error
            else:
                self._found.append(BadRow(file=error.file, line=error.line, row_id=interaction.id, reason=str(error)))
        return usable

    def _bodies(self, user: UserHistory) -> dict[str, str]:
        """What the store has under the ids of this user's interactions."""
        try:
            wanted = {i.id for i in user.interactions}
            return {i.id: body_of(i) for i in self.store.episodes(user.user_id) if i.id in wanted}
        except UnknownUser:
            return {}

    def _refusal(self, interaction: Interaction, taken: dict[str, str]) -> DataError | None:
        for field, value in (("user_id", interaction.user_id), ("id", interaction.id)):
            try:
                checked_key(value, field)
            except InputError as refused:
                return self._error(interaction, field, value, str(refused).partition(": expected ")[2])
        if taken.get(interaction.id, body := body_of(interaction)) != body:
            return self._error(
                interaction, "id", interaction.id, "the content that the store has under this id, or another id"
            )
        return None

    def _error(self, interaction: Interaction, field: str, value: str, expected: str) -> DataError:
        line = self._line(interaction)
        row_id = None if line is not None else interaction.user_id
        return DataError(str(self.path), line=line, row_id=row_id, field=field, value=value, expected=expected)

    def _line(self, interaction: Interaction) -> int | None:
        """Where a JSON-lines row is; read again, since this is for the rare row that only the store refuses."""
        if file_form(self.path) != "lines":
            return None
        for number, _, line in numbered_lines(self.path):
            try:
                row = json_line(line, Place(file=str(self.path), line=number))
            except DataError:
                continue
            same = str(row.get("user_id")) == interaction.user_id
            same &= str(row.get("id", interaction.id)) == interaction.id
            if same and ("id" in row or str(row.get("query")).strip() == interaction.query):
                return number
        return None


def ingest_traces(
    store: Store, uri: str, *, experiment: str | None, since: str | None, fields: str | None
) -> TracesRead:
    """What people said on the traces of an MLflow server or file, into the store.

    Raises:
        InputError: ``fields`` or ``since`` cannot be read.
        RunError: MLflow cannot be used.
    """
    from persona_dspy.tracking import learn_from_traces

    names = [name.strip() for name in fields.split(",")] if fields is not None else []
    if fields is not None and (len(names) < 2 or not all(names) or len(set(names)) < len(names)):
        raise InputError(f"--fields {fields!r}: expected the names of query and response, such as question,answer")
    named: dict[str, Any] = {"experiment": experiment} if experiment is not None else {}
    return learn_from_traces(store, uri, since=since, fields=names or None, **named)
