"""A user's persona versions, which never change, and the pointer to the current one, which moves last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from persona_dspy.errors import InputError, VersionConflict
from persona_dspy.store.database import Database
from persona_dspy.store.leases import return_lease
from persona_dspy.store.rows import Lease, StoredPersona, UserState, checked_key, document_of, to_json
from persona_dspy.store.tables import current, digest, users, versions

__all__ = ["PersonaTable"]

_VERSION = (
    sa.select(
        versions.c.version,
        versions.c.parent,
        versions.c.created,
        versions.c.document,
        versions.c.alignment,
        current.c.version,
    )
    .join(users, users.c.uid == versions.c.uid)
    .outerjoin(current, current.c.uid == versions.c.uid)
    .where(users.c.hash == sa.bindparam("is_hash"), users.c.user_id == sa.bindparam("is_user"))
    .where(versions.c.version == sa.bindparam("is_version"))
)


class PersonaTable:
    """The part of ``Store`` that keeps personas: an immutable row a version, and one pointer a user."""

    _database: Database

    def put_persona(
        self,
        user_id: str,
        persona: str | Mapping[str, Any],
        alignment: Mapping[str, Any] | None = None,
        *,
        since: UserState | None = None,
    ) -> StoredPersona:
        """Keep a version of a user's persona and make it the current one.

        Giving a stored version again makes it current and changes nothing else; its first alignment record stays.

        Args:
            persona: the document, as JSON text or dict, with an integer ``version`` and ``parent`` (int or null).
            alignment: the record of how it came about, JSON-safe.
            since: the state that this version rests on: where the user was forgotten after it was read, or another
                version became current, nothing is kept.

        Raises:
            InputError: no such document, another user's, or the version is taken by another document.
            UserForgotten, VersionConflict: see ``since``.
        """
        checked_key(user_id, "user_id")
        text, version, parent = document_of(user_id, persona)
        record = None if alignment is None else to_json(dict(alignment), f"alignment of {user_id!r}")
        with self._database.writing() as connection:
            uid = self._database.claim(connection, user_id, since)
            self._check_version(connection, user_id, uid, since)
            stored = self._version(connection, user_id, uid, version)
            if stored is None:
                self._insert(connection, uid, (text, version, parent), record)
            else:
                self._check_same(connection, uid, stored, text)
            self._set_current(connection, uid, version)
        return self.version(user_id, version)

    def check_persona(self, user_id: str, persona: str | Mapping[str, Any]) -> None:
        """Keeps nothing.

        Raises:
            InputError: as ``put_persona`` would.
        """
        checked_key(user_id, "user_id")
        text, version, _ = document_of(user_id, persona)
        with self._database.reading() as connection:
            uid = self._database.uid(connection, user_id)
            stored = None if uid is None else self._version(connection, user_id, uid, version)
            if uid is not None and stored is not None:
                self._check_same(connection, uid, stored, text)

    def append_persona(
        self,
        since: UserState,
        persona: Callable[[int, int | None], str | Mapping[str, Any]],
        alignment: Mapping[str, Any] | None = None,
        *,
        first: str | Mapping[str, Any] | None = None,
        lease: Lease | None = None,
    ) -> StoredPersona:
        """Keep the version that follows the current one, under the lowest number above all others, and make it
        current; only where the current version is still the one of ``since``.

        Args:
            since: the state that the new version rests on.
            persona: called with the new version's number and its parent's (None: it begins the chain); the document.
            alignment: the record of how it came about, JSON-safe.
            first: the document that the user's answers were under where the store has no version yet; it is kept as
                the new one's parent.
            lease: the right to align the user; given back, as ``release(aligned=True)`` does, with the version.

        Raises:
            InputError: no such document, or another user's.
            UserForgotten: the user was forgotten after ``since`` was read; nothing is kept.
            VersionConflict: another version became current after it was read, or the lease was lost; nothing is kept.
        """
        user_id = since.user_id
        record = None if alignment is None else to_json(dict(alignment), f"alignment of {user_id!r}")
        with self._database.writing() as connection:
            uid = self._database.claim(connection, user_id, since)
            self._check_version(connection, user_id, uid, since)
            highest = connection.scalar(sa.select(sa.func.max(versions.c.version)).where(versions.c.uid == uid))
            parent = since.version
            if highest is None and first is not None:
                row = document_of(user_id, first)
                self._insert(connection, uid, row, None)
                highest = parent = row[1]
            number = 0 if highest is None else highest + 1
            row = document_of(user_id, persona(number, parent))
            if row[1:] != (number, parent):
                raise InputError(
                    f"persona of {user_id!r}: version {row[1]}, parent {row[2]}: expected version {number}, "
                    f"parent {parent}"
                )
            self._insert(connection, uid, row, record)
            self._set_current(connection, uid, number)
            if lease is not None and not return_lease(connection, lease, aligned=True):
                raise VersionConflict(
                    f"the lease on user {user_id!r} was lost: another process took the user for abandoned; expected "
                    "to hold it to the end; nothing was written"
                )
        return self.version(user_id, number)

    def current(self, user_id: str) -> StoredPersona | None:
        """The current version, or None for a user who has none yet.

        Raises:
            UnknownUser: nothing is kept of that user.
        """
        with self._database.reading() as connection:
            uid = self._database.require_uid(connection, user_id)
            return self._version(connection, user_id, uid, None)

    def versions(self, user_id: str) -> list[StoredPersona]:
        """Every version, lowest number first.

        Raises:
            UnknownUser: nothing is kept of that user.
        """
        with self._database.reading() as connection:
            uid = self._database.require_uid(connection, user_id)
            return self._versions(connection, user_id, uid)

    def version(self, user_id: str, version: int) -> StoredPersona:
        """One version.

        Raises:
            UnknownUser: nothing is kept of that user.
            InputError: there is no such version.
        """
        names = {"is_hash": digest(user_id), "is_user": user_id, "is_version": version}
        for number, parent, created, document, alignment, pointed in self._database.rows(_VERSION, names):
            return StoredPersona(
                user_id=user_id,
                version=number,
                parent=parent,
                created=created,
                text=document,
                alignment_text=alignment,
                current=pointed == number,
            )
        numbers = [one.version for one in self.versions(user_id)]
        raise InputError(f"version {version!r} of {user_id!r}: expected one of {numbers}")

    def rollback(self, user_id: str, version: int | None = None) -> StoredPersona:
        """Move the pointer to ``version``, by default to the current one's parent. No version is lost.

        Raises:
            UnknownUser: nothing is kept of that user.
            InputError: there is no such version, or no parent.
        """
        with self._database.writing() as connection:
            uid = self._database.require_uid(connection, user_id)
            current_version = self._version(connection, user_id, uid, None)
            target = version if version is not None else current_version.parent if current_version is not None else None
            if target is None or self._version(connection, user_id, uid, target) is None:
                numbers = [v.version for v in self._versions(connection, user_id, uid)]
                at = f"version {current_version.version}" if current_version is not None else "no version"
                raise InputError(f"rollback of {user_id!r} from {at} to {target!r}: expected one of {numbers}")
            self._set_current(connection, uid, target)
        return self.version(user_id, target)

    def _check_version(self, connection: sa.Connection, user_id: str, uid: int, since: UserState | None) -> None:
        if since is None:
            return
        current_version = connection.scalar(sa.select(current.c.version).where(current.c.uid == uid))
        if current_version != since.version:
            raise VersionConflict(
                f"persona of {user_id!r}: version {current_version} became current while this was under way: expected "
                f"{since.version}, which it rests on; nothing was written; begin again from the current version"
            )

    def _check_same(self, connection: sa.Connection, uid: int, stored: StoredPersona, text: str) -> None:
        if stored.document != json.loads(text):
            user_id = stored.user_id
            next_version = max(v.version for v in self._versions(connection, user_id, uid)) + 1
            raise InputError(
                f"persona of {user_id!r}: version {stored.version} is stored with other content; versions are "
                f"immutable: give the new one version {next_version}"
            )

    def _insert(
        self, connection: sa.Connection, uid: int, row: tuple[str, int, int | None], record: str | None
    ) -> None:
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        text, version, parent = row
        values = {"version": version, "parent": parent, "created": created, "document": text, "alignment": record}
        connection.execute(versions.insert().values(uid=uid, **values))

    def _version(self, connection: sa.Connection, user_id: str, uid: int, version: int | None) -> StoredPersona | None:
        """One version, the current one where ``version`` is None."""
        which = current.c.version.is_not(None) if version is None else versions.c.version == version
        row = connection.execute(_select(uid).where(which)).one_or_none()
        return None if row is None else _persona(user_id, row)

    def _versions(self, connection: sa.Connection, user_id: str, uid: int) -> list[StoredPersona]:
        rows = connection.execute(_select(uid).order_by(versions.c.version))
        return [_persona(user_id, row) for row in rows]

    def _set_current(self, connection: sa.Connection, uid: int, version: int) -> None:
        insert = self._database.insert(current).values(uid=uid, version=version)
        connection.execute(
            insert.on_conflict_do_update(index_elements=[current.c.uid], set_={"version": insert.excluded.version})
        )


def _select(uid: int) -> sa.Select[Any]:
    pointed = (current.c.uid == versions.c.uid) & (current.c.version == versions.c.version)
    chosen = sa.select(versions, current.c.version.label("pointed")).outerjoin(current, pointed)
    return chosen.where(versions.c.uid == uid)


def _persona(user_id: str, row: sa.Row[Any]) -> StoredPersona:
    return StoredPersona(
        user_id=user_id,
        version=row.version,
        parent=row.parent,
        created=row.created,
        text=row.document,
        alignment_text=row.alignment,
        current=row.pointed is not None,
    )
