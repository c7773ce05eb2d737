"""Where ``persona-dspy compile`` takes users from: a file, or the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from persona_dspy.cli.output import echo

if TYPE_CHECKING:
    from persona_dspy.core import Interaction, Persona
    from persona_dspy.store import Store

__all__ = ["FileSource", "Source", "StoreSource", "StoredHistory", "ingested"]

_SAMPLE = 50  # users by whose histories the work ahead is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHistory:
    """A user in the store: all interactions, and the current persona, which the next version starts from."""

    user_id: str
    interactions: tuple[Interaction, ...]
    persona: Persona | None = None
    task: str | None = None

    @classmethod
    def of(cls, store: Store, user_id: str) -> StoredHistory:
        """The user as of now.

        Raises:
            UnknownUser: nothing is kept of that user.
        """
        from persona_dspy.core import parse_document

        now = store.current(user_id)
        document = parse_document(now.document, f"persona of {user_id!r}") if now is not None else None
        return cls(
            user_id=user_id,
            interactions=tuple(store.episodes(user_id)),
            persona=document.persona() if document is not None else None,
            task=document.task if document is not None else None,
        )


class Source(Protocol):
    """Users to compile, read twice as a stream: ``check`` first, before any LM call; then one by one as there is room.

    ``known``: the task that the input itself names; ``task``: the one that was typed; ``bad``: rows passed over;
    ``answers``: what kind all users' answers are, known after ``check``; None where the task says it.
    """

    known: Any
    task: str | None
    answers: Any

    @property
    def bad(self) -> int: ...

    @property
    def described(self) -> dict[str, str]:
        """``source``, and ``data`` where it is a file: its digest."""
        ...

    def calls(self, optimizer: Any) -> float:
        """About how many LM calls a user will take, known after ``check``."""
        ...

    def ingest(self, store: Store | None) -> None:
        """Put what the store does not have yet into it, before any LM call."""
        ...

    def check(self) -> int:
        """How many users there are."""
        ...

    def read(self, bad: list[Any] | None = None) -> Iterator[Any]: ...


class FileSource:
    """Users of an input file, read to the end first, so that bad input does not surface after minutes of work."""

    def __init__(
        self, path: Path, task: str | None, users: str | None, skip_bad_rows: bool, group: bool, columns: str | None
    ) -> None:
        from persona_dspy.cli.programs import which_users
        from persona_dspy.data import columns_from_text, detect_task, is_typed, task_from_text

        self.path, self.task, self.skip_bad_rows, self.group = path, task, skip_bad_rows, group
        self._sizes: list[int] = []
        self._told: set[str] = set()
        self.columns = columns_from_text(columns)
        self.answers: Any = None
        self.limit, self.wanted = which_users(users)
        typed = task_from_text(task) if task else None  # also where it leaves the kind open: it may not be readable
        self.known = typed if is_typed(task) else detect_task(path, task)

    def read(self, bad: list[Any] | None = None) -> Iterator[Any]:
        from persona_dspy.data import read_users

        same: dict[str, Any] = {"task": self.known, "limit": self.limit, "users": self.wanted, "group": self.group}
        same["columns"] = self.columns
        return read_users(self.path, skip_bad_rows=self.skip_bad_rows, bad_rows=bad, **same)

    def check(self) -> int:
        """How many users there are; raises DataError for the first row that cannot be used."""
        from persona_dspy.core import AnswerSurvey
        from persona_dspy.data import is_typed
        from persona_dspy.errors import DataError

        bad: list[Any] = []
        count, survey = 0, AnswerSurvey()
        open_kind = self.known is None and not is_typed(self.task)
        for history in self.read(bad):
            count += 1
            if count <= _SAMPLE:
                self._sizes.append(len(history.interactions))
            if open_kind:
                survey.add(i.response for i in history.interactions if i.answered)
            self._tell(bad)
        self._tell(bad)
        self.answers = survey.kind() if open_kind else None
        if not count:
            raise DataError(str(self.path), expected="at least one user with interactions", value="no users")
        return count

    @property
    def bad(self) -> int:
        return len(self._told)

    @property
    def described(self) -> dict[str, str]:
        path = Path(self.path)
        if not path.is_file():  # a folder of a saved dataset
            return {"source": str(path)}
        with path.open("rb") as file:
            return {"source": str(path), "data": hashlib.file_digest(file, "sha256").hexdigest()[:16]}

    def calls(self, optimizer: Any) -> float:
        return _usual_calls(optimizer, self._sizes)

    def ingest(self, store: Store | None) -> None:
        """Put the users' interactions into the store, so that a row which only the store refuses does not end a compile
        halfway; raises DataError for the first of them, or passes over it."""
        from persona_dspy.cli.ingesting import Ingest

        if store is None:
            return

        same: dict[str, Any] = {"task": self.known, "skip_bad_rows": self.skip_bad_rows, "limit": self.limit}
        same |= {"group": self.group, "columns": self.columns}
        for row in Ingest(store, self.path, users=self.wanted, **same).run():
            self._tell([row])

    def _tell(self, bad: list[Any]) -> None:
        for said in (str(row) for row in bad):
            if said not in self._told:
                echo(f"skipped: {said}", err=True)
            self._told.add(said)
        bad.clear()


class StoreSource:
    """Users of the store who have interactions."""

    def __init__(self, url: str, task: str | None, users: str | None) -> None:
        from persona_dspy.cli.programs import which_users
        from persona_dspy.data import is_typed, task_from_text

        self.url, self.task, self.bad, self.answers = url, task, 0, None
        self.limit, self.wanted = which_users(users)
        typed = task_from_text(task) if task else None
        self.known = typed if is_typed(task) else None

    def read(self, bad: list[Any] | None = None) -> Iterator[StoredHistory]:
        from persona_dspy.cli.store import open_store

        with open_store(self.url) as store:
            histories = (StoredHistory.of(store, user) for user in self.wanted or store.users())
            yield from islice((history for history in histories if history.interactions), self.limit)

    def ingest(self, store: Store | None) -> None:
        """They are there."""

    @property
    def described(self) -> dict[str, str]:
        return {"source": self.url}

    def calls(self, optimizer: Any) -> float:
        return _usual_calls(optimizer, [len(history.interactions) for history in islice(self.read(), _SAMPLE)])

    def check(self) -> int:
        """How many users there are; raises UnknownUser for one who was named and is not there."""
        from persona_dspy.cli.store import open_store
        from persona_dspy.core import AnswerSurvey
        from persona_dspy.data import is_typed
        from persona_dspy.errors import InputError

        with open_store(self.url) as store:
            if self.wanted is not None:
                for user in self.wanted:
                    store.current(user)
            count = len(self.wanted) if self.wanted is not None else sum(1 for _ in islice(store.users(), self.limit))
        if not count:
            from persona_dspy.core import scrubbed

            raise InputError(
                f"store {scrubbed(self.url)!r}: no users; expected some, type: persona-dspy ingest FILE --store ..."
            )
        if self.known is None and not is_typed(self.task):
            survey = AnswerSurvey()
            for history in self.read():
                survey.add(i.response for i in history.interactions if i.answered)
            self.answers = survey.kind()
        return count


def _usual_calls(optimizer: Any, sizes: list[int]) -> float:
    """Half of what the optimizer takes at most, over users with so many interactions."""
    return sum(optimizer.calls(size) for size in sizes) / max(1, len(sizes)) / 2


def ingested(store: Store | None, histories: Iterable[Any]) -> Iterator[Any]:
    """Each user of a file as the store has the user, who was ingested; without a store, as is."""
    from persona_dspy.errors import UnknownUser

    for history in histories:
        if store is None or isinstance(history, StoredHistory):
            yield history
            continue
        with suppress(UnknownUser):  # none of whose rows could be kept
            yield StoredHistory.of(store, history.user_id)
