"""A user's state in one read, the interactions that wait for an alignment, and the lease of the process that does it.

A lease has no time in it: its holder counts ``beats`` up while it is alive, and whoever has seen the same count for
long enough, by a clock of its own, may take the lease over. A clock that is set back, or differs between machines,
changes nothing.
"""

from __future__ import annotations

import sqlalchemy as sa

from persona_dspy.errors import StoreError
from persona_dspy.store.database import Database
from persona_dspy.store.rows import DueUser, Lease, UserState
from persona_dspy.store.tables import MIGRATIONS, current, digest, due, episodes, schema, tombstones, users

__all__ = ["LeaseTable", "return_lease"]

_LAST = sa.select(sa.func.max(episodes.c.seq)).where(episodes.c.uid == users.c.uid).correlate(users)
_SCHEMA = sa.select(sa.func.max(schema.c.version))
_STATE = sa.select(
    tombstones.c.times,
    users.c.uid,
    current.c.version,
    _LAST.scalar_subquery().label("last"),
    _SCHEMA.scalar_subquery().label("schema"),
).select_from(
    sa.select(sa.literal(1).label("one"))
    .subquery("always")  # one row, whatever is kept of the user
    .outerjoin(tombstones, tombstones.c.hash == sa.bindparam("mark"))
    .outerjoin(users, (users.c.hash == sa.bindparam("is_hash")) & (users.c.user_id == sa.bindparam("is_user")))
    .outerjoin(current, current.c.uid == users.c.uid)
)


class LeaseTable:
    """The part of ``Store`` that lets several processes serve the same users."""

    _database: Database

    def state(self, user_id: str) -> UserState:
        """What the store says of a user now, in one read by keys; also of a user of whom nothing is kept.

        Raises:
            StoreError: the store cannot be read, or a newer version has upgraded its tables since it was opened.
        """
        names = {"mark": self._database.mark(user_id), "is_hash": digest(user_id), "is_user": user_id}
        ((times, uid, version, last, schema_now),) = self._database.rows(_STATE, names)
        if schema_now != len(MIGRATIONS):
            raise StoreError(
                f"store {self._database.name!r} has schema {schema_now} now: expected {len(MIGRATIONS)}, a newer "
                "version upgraded it; restart this process with that version: pip install --upgrade persona-dspy"
            )
        last = -1 if last is None else last
        return UserState(user_id=user_id, life=times or 0, uid=uid, version=version, next_seq=last + 1)

    def due_users(self, at_least: int, *, limit: int = 256) -> list[DueUser]:
        """Users with so many observed interactions since their last alignment, those with the most first."""
        chosen = (
            sa.select(users.c.user_id, due.c.new, due.c.holder, due.c.beats, due.c.failures)
            .join(users, users.c.uid == due.c.uid)
            .where(due.c.new >= at_least)
            .order_by(due.c.new.desc())
            .limit(limit)
        )
        with self._database.reading() as connection:
            return [DueUser(**row._mapping) for row in connection.execute(chosen)]  # type: ignore[arg-type]

    def due(self, user_id: str) -> DueUser | None:
        """What waits for a user's next alignment, and who does it; None where nothing was observed."""
        with self._database.reading() as connection:
            uid = self._database.uid(connection, user_id)
            row = connection.execute(sa.select(due).where(due.c.uid == uid)).one_or_none()
        if row is None:
            return None
        return DueUser(user_id=user_id, new=row.new, holder=row.holder, beats=row.beats, failures=row.failures)

    def take_lease(self, user_id: str, holder: int, *, at_least: int = 0, over: DueUser | None = None) -> Lease | None:
        """The right to align a user, until ``release``; None where another holds it or too little is new.

        Args:
            holder: a number above 0 that nobody else uses.
            at_least: how many interactions have to be new.
            over: take the lease from a holder who is believed dead; only where it has not said that it is alive
                since ``over`` was read.
        """
        with self._database.writing() as connection:
            uid = self._database.uid(connection, user_id)
            if uid is None:
                return None
            row = connection.execute(sa.select(due).where(due.c.uid == uid)).one_or_none()
            if row is None and at_least > 0:
                return None
            if row is None:
                connection.execute(due.insert().values(uid=uid, new=0, holder=holder, beats=0, failures=0))
                return Lease(user_id=user_id, uid=uid, holder=holder, new=0)
            held = row.holder != 0 and not (over is not None and (over.holder, over.beats) == (row.holder, row.beats))
            if held or row.new < at_least:
                return None
            taken = due.update().where(due.c.uid == uid).values(holder=holder, beats=row.beats + 1)
            connection.execute(taken)
            return Lease(user_id=user_id, uid=uid, holder=holder, new=row.new)

    def renew(self, lease: Lease) -> bool:
        """Say that the holder is alive; False where the lease is another's by now, or the user was forgotten."""
        with self._database.writing() as connection:
            alive = due.update().where(_held(lease)).values(beats=due.c.beats + 1)
            return connection.execute(alive).rowcount == 1

    def release(self, lease: Lease, *, aligned: bool) -> bool:
        """Give a lease back; False where it was lost. ``aligned``: what it was for no longer waits; else all of it
        does, and the failure is counted."""
        with self._database.writing() as connection:
            return return_lease(connection, lease, aligned=aligned)


def return_lease(connection: sa.Connection, lease: Lease, *, aligned: bool) -> bool:
    """``release`` inside a transaction."""
    new, failures = (due.c.new - lease.new, 0) if aligned else (due.c.new, due.c.failures + 1)
    free = due.update().where(_held(lease)).values(new=new, failures=failures, holder=0)
    return connection.execute(free).rowcount == 1


def _held(lease: Lease) -> sa.ColumnElement[bool]:
    return (due.c.uid == lease.uid) & (due.c.holder == lease.holder)
