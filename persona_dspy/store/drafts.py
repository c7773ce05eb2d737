"""The latest drafts that were given to a user, kept until the user says something of them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from persona_dspy.core import Interaction
from persona_dspy.errors import InputError
from persona_dspy.store.database import Database
from persona_dspy.store.rows import UserState, body_of, checked_key, interactions_of
from persona_dspy.store.tables import digest, drafts

__all__ = ["DraftTable"]

_LEAST = 512  # bytes of a row's text; larger ones are twice, four times, ... as large
_FIRST = 2**62  # from here on every number takes the same room, so that rows can be overwritten in place


class DraftTable:
    """The part of ``Store`` that keeps drafts by the id of their trace."""

    _database: Database

    def put_drafts(
        self, user_id: str, given: Sequence[Interaction], *, since: UserState | None = None, most: int = 200
    ) -> None:
        """Keep drafts; of those of one user the latest ``most``.

        Args:
            given: interactions that nobody has judged yet, oldest first; their ids are those of their traces.
            since: as for ``add_episodes``.

        Raises:
            InputError: another user's, or one that cannot be stored.
            UserForgotten: the user was forgotten after ``since`` was read.
        """
        checked_key(user_id, "user_id")
        for draft in given:
            if draft.user_id != user_id:
                raise InputError(f"draft {draft.id!r} is of {draft.user_id!r}: expected {user_id!r}")
        bodies = {checked_key(draft.id, "trace id"): body_of(draft) for draft in list(given)[-most:]}
        if not bodies:
            return
        with self._database.writing() as connection:
            uid = self._database.claim(connection, user_id, since)
            own = drafts.c.uid == uid
            size = sa.func.length(sa.cast(drafts.c.body, sa.LargeBinary))
            kept = sa.select(drafts.c.seq, size).where(own, sa.func.trim(drafts.c.body) != "").order_by(drafts.c.seq)
            rows = [(seq, room) for seq, room in connection.execute(kept)]
            seq = max((seq for seq, _ in rows), default=_FIRST)
            stored = sa.select(drafts.c.hash).where(own, drafts.c.hash.in_([digest(key) for key in bodies]))
            hashes = {bytes(one) for one in connection.scalars(stored)}
            for key, body in bodies.items():
                if digest(key) in hashes:
                    continue
                seq += 1
                oldest = rows.pop(0) if len(rows) >= most else None
                rows.append((seq, self._place(connection, uid, oldest, (seq, digest(key), body))))

    def draft(self, user_id: str, trace_id: str) -> Interaction | None:
        """The draft of that trace; None where the user was given none, or it is no longer kept."""
        with self._database.reading() as connection:
            uid = self._database.uid(connection, user_id)
            where = (drafts.c.uid == uid) & (drafts.c.hash == digest(trace_id))
            body = None if uid is None else connection.scalar(sa.select(drafts.c.body).where(where))
        return interactions_of(user_id, [(trace_id, body)])[0] if body and body.strip() else None

    def _place(
        self, connection: sa.Connection, uid: int, oldest: tuple[int, int] | None, row: tuple[int, bytes, str]
    ) -> int:
        """Writes a row, over the oldest where it has the room: SQLite overwrites in place what keeps its size, so that
        the file does not grow with each answer. Returns the room that the row has, in bytes."""
        seq, hashed, body = row
        length, room = len(body.encode()), _LEAST
        while room < length:
            room *= 2
        values = {"seq": seq, "hash": hashed}
        if oldest is not None:
            there = (drafts.c.uid == uid) & (drafts.c.seq == oldest[0])
            if oldest[1] >= room:
                padded = body + " " * (oldest[1] - length)
                connection.execute(drafts.update().where(there).values(body=padded, **values))
                return oldest[1]
            self._database.erase(connection, drafts, there, free=True)
        connection.execute(drafts.insert(), {"uid": uid, "body": body + " " * (room - length), **values})
        return room
