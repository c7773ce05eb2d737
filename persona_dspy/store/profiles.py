"""Each user's profile (the LM's summary in semantic memory), stored between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from persona_dspy.store.database import Database
from persona_dspy.store.rows import UserState, checked_key, to_json
from persona_dspy.store.tables import profiles

__all__ = ["ProfileTable"]


class ProfileTable:
    """The part of ``Store`` that keeps profiles; fits ``SemanticMemory(keep=store)``."""

    _database: Database

    def profile(self, user_id: str) -> dict[str, Any] | None:
        """The user's profile as it was put last, or None."""
        with self._database.reading() as connection:
            uid = self._database.uid(connection, user_id)
            text = connection.scalar(sa.select(profiles.c.document).where(profiles.c.uid == uid))
        return json.loads(text) if text and text.strip() else None

    def put_profile(self, user_id: str, profile: Mapping[str, Any], *, since: UserState | None = None) -> None:
        """Keep a profile, in place of an earlier one.

        Not of a user of whom nothing else is kept: whoever was forgotten meanwhile stays forgotten.

        Raises:
            InputError: a value that is not JSON-safe.
            UserForgotten: the user was forgotten after ``since`` was read.
        """
        checked_key(user_id, "user_id")
        text = to_json(dict(profile), f"profile of {user_id!r}")
        with self._database.writing() as connection:
            uid = self._database.uid(connection, user_id)
            self._database.check_not_forgotten(connection, user_id, since)
            if uid is not None:
                self._database.erase(connection, profiles, profiles.c.uid == uid, free=True)
                connection.execute(profiles.insert(), {"uid": uid, "document": text})
