"""The latest drafts that were given to a user, kept until the user says something of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from persona_dspy.core import Interaction
from persona_dspy.errors import InputError
from persona_dspy.store.database import Database
from persona_dspy.store.rows import UserState, body_of, checked_key, interactions_of
from persona_dspy.store.tables import digest, drafts

__all__ = ["DraftTable"]

_LEAST = 512  # bytes of a row's text; larger ones are twice, four times, ... as large
# built once: making a statement costs as much as running it
_OWN = drafts.c.uid == sa.bindparam("is_uid")
_COUNT = sa.select(sa.func.count(), sa.func.max(drafts.c.seq)).where(_OWN)
_AMONG = sa.select(drafts.c.hash).where(_OWN, drafts.c.hash.in_(sa.bindparam("hashes", expanding=True)))
_OLDEST = (
    sa.select(drafts.c.seq, sa.func.length(sa.cast(drafts.c.body, sa.LargeBinary)))
    .where(_OWN)
    .order_by(drafts.c.seq)
    .limit(1)
)
_NEW = drafts.insert()
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
            count, last = connection.execute(_COUNT, {"is_uid": uid}).one()
            asked = {"is_uid": uid, "hashes": [digest(key) for key in bodies]}
            hashes = {bytes(hashed) for hashed in connection.scalars(_AMONG, asked)}
            seq = _FIRST if last is None else last
            for key, body in bodies.items():
                if digest(key) in hashes:
                    continue
                seq += 1
                oldest = connection.execute(_OLDEST, {"is_uid": uid}).one() if count >= most else None
                self._place(connection, uid, oldest, (seq, digest(key), body))
                count += oldest is None

    def draft(self, user_id: str, trace_id: str) -> Interaction | None:
        """The draft of that trace; None where the user was given none, or it is no longer kept."""
        with self._database.reading() as connection:
            uid = self._database.uid(connection, user_id)
            where = (drafts.c.uid == uid) & (drafts.c.hash == digest(trace_id))
            body = None if uid is None else connection.scalar(sa.select(drafts.c.body).where(where))
        return interactions_of(user_id, [(trace_id, body)])[0] if body and body.strip() else None

    def _place(self, connection: sa.Connection, uid: int, oldest: Any, row: tuple[int, bytes, str]) -> None:
        """Writes a row, over the oldest (its seq, and its room in bytes) where that has the room: SQLite overwrites in
        place what keeps its size, so that the file does not grow with each answer."""
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
                return
            self._database.erase(connection, drafts, there, free=True)
        connection.execute(_NEW, {"uid": uid, "body": body + " " * (room - length), **values})
