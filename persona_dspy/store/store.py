"""The store: everything kept about users, in an SQLite file by default or in PostgreSQL by URL.

Every call names one user; none reads two users' rows. An acknowledged write is one committed transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike, fspath

import sqlalchemy as sa

from persona_dspy.core import clear_remembered_texts
from persona_dspy.store.database import Database
from persona_dspy.store.drafts import DraftTable
from persona_dspy.store.episodes import EpisodeTable
from persona_dspy.store.leases import LeaseTable
from persona_dspy.store.personas import PersonaTable
from persona_dspy.store.profiles import ProfileTable
from persona_dspy.store.rows import Forgotten, StoredPersona, checked_key
from persona_dspy.store.tables import current, drafts, due, episodes, profiles, users, vectors, versions

__all__ = ["Forgotten", "Store", "StoredPersona"]

_PAGE = 1000  # user ids read at once


class Store(LeaseTable, EpisodeTable, PersonaTable, ProfileTable, DraftTable):
    """Everything the system keeps about its users. Thread-safe; several processes may open one database.

    Example:
        >>> import tempfile
        >>> from persona_dspy.core import Interaction
        >>> folder = tempfile.TemporaryDirectory()
        >>> with Store.open(f"sqlite:///{folder.name}/personas.db") as store:
        ...     store.add_episodes("u1", [Interaction(user_id="u1", query="Heat (1995)", response="crime", id="h")])
        ...     store.put_persona("u1", {"user_id": "u1", "version": 1, "parent": None}).version
        ...     [e.id for e in store.memory("u1").recall("a heist", k=1)]
        ...     dict(store.forget("u1").removed)["persona_episodes"]
        1
        1
        ['h']
        1
        >>> folder.cleanup()
    """

    def __init__(self, database: Database, *, cached_users: int = 256) -> None:
        self._database = database
        self._cached_users = cached_users
        self._handles = None  # made at the first memory(): recall needs dspy, the rest does not

    @classmethod
    def open(
        cls,
        url: str | PathLike[str] = "personas.db",
        *,
        timeout: float = 30.0,
        power_safe: bool = False,
        cached_users: int = 256,
    ) -> Store:
        """Open a store, making or upgrading its tables.

        Args:
            url: a file name, ``sqlite:///file.db`` or ``postgresql+psycopg://user:password@host/name``.
            timeout: seconds that a write waits for another process's.
            power_safe: SQLite only. What is acknowledged always survives the death of the process; True also makes it
                survive a power cut, at one disk flush a write (PostgreSQL always does).
            cached_users: how many users' search indexes are kept in memory.

        Raises:
            InputError: a URL that cannot be read.
            StoreError: the database cannot be opened, is no database, or was written by a newer version.
        """
        return cls(Database(fspath(url), timeout=timeout, power_safe=power_safe), cached_users=cached_users)

    def close(self) -> None:
        """Close all connections; the store may not be used afterwards."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self._database.name!r})"

    @property
    def id(self) -> str:
        """16 hexadecimal digits that tell this store from every other, whatever its name; a copy has the same."""
        return self._database.id

    def users(self) -> Iterator[str]:
        """Every user id, a page at a time: a million users are never in memory at once. In no particular order."""
        last = 0
        while True:
            page = sa.select(users.c.uid, users.c.user_id).where(users.c.uid > last).order_by(users.c.uid).limit(_PAGE)
            with self._database.reading() as connection:
                rows = connection.execute(page).all()
            yield from (user_id for _, user_id in rows if user_id.strip())  # blank: forgotten
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def forget(self, user_id: str) -> Forgotten:
        """Remove everything kept of a user, from SQLite's files too: what stays are numbers and hashes.

        A tombstone stays, a number under a keyed hash: writes that rest on what was known of the user before
        (``since=``) are refused from now on, in every process. Whoever comes back under the same id starts anew.

        Memories of that user that are open in this process become empty at once; those of other processes at their
        next ``memory()``. Forgetting an unknown user removes nothing and says so.
        """
        checked_key(user_id, "user_id")
        removed = {table.name: 0 for table in (current, versions, profiles, drafts, vectors, episodes, users)}
        with self._database.writing() as connection:
            self._database.lock_name(connection, user_id)
            uid = self._database.uid(connection, user_id)  # whoever is writing this user's rows finishes first
            self._database.add_tombstone(connection, user_id)
            if uid is not None:
                connection.execute(due.delete().where(due.c.uid == uid))
                removed[current.name] = connection.execute(current.delete().where(current.c.uid == uid)).rowcount
                for table in (versions, profiles, drafts, vectors, episodes, users):
                    removed[table.name] = self._database.erase(connection, table, table.c.uid == uid)
        for memory in self._open_memories(user_id):
            with memory.syncing:
                memory.clear()
                memory.uid, memory.next_seq = None, 0
        clear_remembered_texts()
        scrubbed = self._database.scrub()
        return Forgotten(
            user_id=user_id, removed=removed, scrubbed=scrubbed, is_read=self._database.sqlite and not scrubbed
        )

    def compact(self) -> None:
        """Give the room of forgotten and moved rows back to the disk, and put each user's episodes side by side.
        Rewrites the whole store: not while others write."""
        self._database.compact()
