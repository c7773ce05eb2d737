"""A user's interactions and their vectors in the store, and the memories that are open on them.

Interactions keep the order in which they arrived; storing one again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from persona_dspy.core import Interaction, answered, clear_remembered_texts, in_time_order
from persona_dspy.errors import InputError
from persona_dspy.store.database import Database
from persona_dspy.store.rows import Observed, UserState, body_of, checked_key, interactions_of
from persona_dspy.store.tables import digest, due, episodes, users, vectors

if TYPE_CHECKING:
    from persona_dspy.memory import Dense, Handles, Recency, Retriever, StoredMemory

__all__ = ["EpisodeTable"]

_CHUNK = 500  # ids a statement
_CLUSTER_SIZES = (256, 32)  # how many episodes of a user are brought together once they are there
_MOST_PIECES = 4  # unless they lie in so few places anyway
# built once: making a statement costs as much as running it
_OWN = episodes.c.uid == sa.bindparam("is_uid")
_LAST = sa.select(sa.func.max(episodes.c.seq)).where(_OWN)
_FROM = (
    sa.select(episodes.c.id, episodes.c.body, episodes.c.seq)
    .where(_OWN, episodes.c.seq >= sa.bindparam("is_seq"))
    .order_by(episodes.c.seq)
)
_OWN_FROM = (
    sa.select(episodes.c.id, episodes.c.body, episodes.c.seq, users.c.uid)
    .select_from(users)
    .outerjoin(episodes, (episodes.c.uid == users.c.uid) & (episodes.c.seq >= sa.bindparam("is_seq")))
    .where(users.c.hash == sa.bindparam("is_hash"), users.c.user_id == sa.bindparam("is_user"))
    .order_by(episodes.c.seq)
)
_AMONG = sa.select(episodes.c.seq, episodes.c.id, episodes.c.body).where(
    _OWN, episodes.c.hash.in_(sa.bindparam("hashes", expanding=True))
)


class EpisodeTable:
    """The part of ``Store`` that keeps episodes and hands out memories."""

    _database: Database
    _cached_users: int
    _handles: Handles | None

    def add_episodes(self, user_id: str, interactions: Iterable[Interaction], *, since: UserState | None = None) -> int:
        """Keep a user's interactions: all of them, or none where one is refused. Returns how many were new.

        Giving the same interaction again changes nothing.

        Args:
            since: the state of the user that the interactions belong to: where the user was forgotten after it was
                read, nothing is kept.

        Raises:
            InputError: an interaction of another user, one whose id is taken by other content, or an id or metadata
                that cannot be stored.
            UserForgotten: see ``since``.
        """
        return self._add(user_id, interactions, since, count_due=False).new

    def observe(self, user_id: str, interactions: Iterable[Interaction], *, since: UserState | None = None) -> Observed:
        """As ``add_episodes``; what is new also counts for the user's next alignment, in the same transaction."""
        return self._add(user_id, interactions, since, count_due=True)

    def feedback(self, user_id: str, said: Interaction, *, since: UserState | None = None) -> Observed:
        """Keep what a user said of a draft: beside what the user said of it before, under the same id, or anew. What is
        new counts for the user's next alignment. Nothing that another process keeps at the same time is lost.

        Args:
            said: the draft with what is said now; its id is that of the draft's trace.
            since: as for ``add_episodes``.

        Raises:
            InputError: another user's, or one that cannot be stored.
            UserForgotten: see ``since``.
        """
        checked_key(user_id, "user_id")
        if said.user_id != user_id or said.signal is None:
            raise InputError(f"feedback {said.id!r} of {said.user_id!r}: expected a signal of {user_id!r}")
        key = checked_key(said.id, "interaction id")
        with self._database.writing() as connection:
            uid = self._database.claim(connection, user_id, since)
            before = self._by_id(connection, uid, [key])
            if before:
                stored = interactions_of(user_id, [(key, before[0][2])])[0]
                said = stored.amended(said.signal, said.response, said.metadata)
            body = body_of(said)
            new = int(not before or body != before[0][2])
            if new:
                last = connection.scalar(_LAST, {"is_uid": uid})
                for seq, _, _ in before:  # added again at the end: whoever has read so far reads it anew
                    for table in (vectors, episodes):
                        own = (table.c.uid == uid) & (table.c.seq == seq)
                        self._database.erase(connection, table, own, free=True)
                seq = 0 if last is None else last + 1
                row = {"uid": uid, "seq": seq, "hash": digest(key), "id": key, "body": body}
                connection.execute(episodes.insert(), [row])
            waiting = self._count_due(connection, uid, new)
        for memory in self._open_memories(user_id):
            self._sync(user_id, memory)
        return Observed(new=new, due=waiting)

    def episode(self, user_id: str, interaction_id: str) -> Interaction | None:
        """The user's interaction of that id, or None."""
        with self._database.reading() as connection:
            uid = self._database.uid(connection, user_id)
            rows = [] if uid is None else self._by_id(connection, uid, [interaction_id])
        return interactions_of(user_id, [(key, body) for _, key, body in rows])[0] if rows else None

    def _add(
        self, user_id: str, interactions: Iterable[Interaction], since: UserState | None, *, count_due: bool
    ) -> Observed:
        checked_key(user_id, "user_id")
        bodies: dict[str, str] = {}
        for interaction in interactions:
            if interaction.user_id != user_id:
                raise InputError(f"interaction {interaction.id!r} is of {interaction.user_id!r}: expected {user_id!r}")
            key, body = checked_key(interaction.id, "interaction id"), body_of(interaction)
            _check_same_content(user_id, key, bodies.setdefault(key, body), body)
        ids = list(bodies)
        if not ids:
            return Observed(new=0, due=0)
        waiting = 0
        with self._database.writing() as connection:
            uid = self._database.claim(connection, user_id, since)
            new = dict(bodies)
            for _, key, body in self._by_id(connection, uid, ids):
                _check_same_content(user_id, key, body, new.pop(key))
            last = connection.scalar(_LAST, {"is_uid": uid})
            first = 0 if last is None else last + 1
            rows = [
                {"uid": uid, "seq": seq, "hash": digest(key), "id": key, "body": body}
                for seq, (key, body) in enumerate(new.items(), start=first)
            ]
            if rows:
                connection.execute(episodes.insert(), rows)
                self._cluster(connection, uid, first, first + len(rows))
            if count_due:
                waiting = self._count_due(connection, uid, len(rows))
        for memory in self._open_memories(user_id):
            self._sync(user_id, memory)
        return Observed(new=len(rows), due=waiting)

    def episodes(self, user_id: str, *, last: int | None = None) -> list[Interaction]:
        """A user's interactions, answered or only judged, oldest first; only the ``last`` most recent where given.

        Raises:
            UnknownUser: nothing is kept of that user.
        """
        with self._database.reading() as connection:
            uid = self._database.require_uid(connection, user_id)
            interactions = in_time_order(self._read(connection, user_id, uid, 0)[0])
        return interactions if last is None else interactions[max(0, len(interactions) - last) :]

    def memory(
        self,
        user_id: str,
        *,
        retriever: Retriever | None = None,
        text: Callable[[Interaction], str] | None = None,
        recency: Recency | None = None,
        may_be_new: bool = False,
    ) -> StoredMemory:
        """The user's episodic memory: one handle per configuration, which follows the store.

        It sees what this process appends at once, and what other processes append at the next ``memory()``. With a
        retriever that has a dense part, vectors are read from the store, and missing ones are made and kept first.
        Arguments are those of ``EpisodicMemory``, and:

        Args:
            may_be_new: give an empty memory, which fills as interactions are kept, where nothing is kept of the user.

        Raises:
            UnknownUser: nothing is kept of that user.
        """
        from persona_dspy.memory import Handles, StoredMemory, dense_part, episode_text

        if self._handles is None:
            self._handles = Handles(self._cached_users)
        text = text or episode_text
        config = (retriever, text, recency)
        memory = self._handles.get(user_id, config)
        if memory is None:
            dense = dense_part(retriever)
            if dense is not None and not (may_be_new and self.state(user_id).uid is None):
                self.embed(user_id, dense, text=text)
            stored = self.vectors(user_id, dense.name) if dense is not None else {}
            memory = StoredMemory(user_id=user_id, retriever=retriever, text=text, recency=recency, vectors=stored)
            memory = self._handles.put(user_id, config, memory)
        if not self._sync(user_id, memory) and not may_be_new:
            raise self._database.unknown_user(user_id)
        return memory

    def vectors(self, user_id: str, encoder: str) -> dict[str, NDArray[np.float32]]:
        """Vectors of one encoder by interaction id; empty where there are none."""
        with self._database.reading() as connection:
            uid = self._database.uid(connection, user_id)
            rows = connection.execute(
                sa.select(episodes.c.id, vectors.c.vector)
                .join(vectors, (vectors.c.uid == episodes.c.uid) & (vectors.c.seq == episodes.c.seq))
                .where(vectors.c.uid == uid, vectors.c.hash == digest(encoder), vectors.c.encoder == encoder)
            )
            return {key: np.frombuffer(blob, dtype="<f4").astype(np.float32, copy=False) for key, blob in rows}

    def put_vectors(self, user_id: str, encoder: str, by_id: Mapping[str, NDArray[np.float32]]) -> int:
        """Keep vectors under an encoder's name, in place of earlier ones of that name. Returns how many.

        Ids that the user has no interaction of are left out: whoever was forgotten meanwhile stays forgotten.
        """
        checked_key(encoder, "encoder name")
        blobs = {key: np.asarray(vector, dtype="<f4").tobytes() for key, vector in by_id.items()}
        with self._database.writing() as connection:
            uid = self._database.uid(connection, user_id)
            if uid is None:
                return 0
            stored = self._by_id(connection, uid, list(blobs))
            old = sa.select(vectors.c.seq).where(vectors.c.uid == uid, vectors.c.hash == digest(encoder))
            replaced = set(connection.scalars(old)) & {seq for seq, _, _ in stored}
            for seq in replaced:
                self._database.erase(connection, vectors, _vectors_of(uid, encoder) & (vectors.c.seq == seq))
            rows = [
                {"uid": uid, "hash": digest(encoder), "seq": seq, "encoder": encoder, "vector": blobs[key]}
                for seq, key, _ in stored
            ]
            if rows:
                connection.execute(vectors.insert(), rows)
        return len(rows)

    def embed(
        self,
        user_id: str,
        dense: Dense,
        *,
        text: Callable[[Interaction], str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Make and keep the vectors that are missing under ``dense.name``. Returns how many were made.

        Each batch is kept before the next is made, so that work that stops goes on where it was. Vectors depend on
        ``text`` too: with another function, give the encoder another name.

        Args:
            progress: called with (made, to make) after each batch.
        """
        from persona_dspy.memory import episode_text

        stored = self.vectors(user_id, dense.name)
        missing = [i for i in answered(self.episodes(user_id)) if i.id not in stored]
        for start in range(0, len(missing), dense.batch_size):
            batch = missing[start : start + dense.batch_size]
            made = dense.encode([(text or episode_text)(i) for i in batch])
            self.put_vectors(user_id, dense.name, {i.id: v for i, v in zip(batch, made, strict=True)})
            if progress is not None:
                progress(start + len(batch), len(missing))
        return len(missing)

    def state(self, user_id: str) -> UserState:
        """Made by ``Store``; vectors of a user of whom nothing is kept are not looked for."""
        raise NotImplementedError

    def _count_due(self, connection: sa.Connection, uid: int, new: int) -> int:
        """Counts ``new`` interactions for the next alignment; how many wait for it then."""
        row = self._database.insert(due).values(uid=uid, new=new, holder=0, beats=0, failures=0)
        more = {"new": due.c.new + new}
        connection.execute(row.on_conflict_do_update(index_elements=[due.c.uid], set_=more))
        return connection.scalar(sa.select(due.c.new).where(due.c.uid == uid)) or 0

    def _open_memories(self, user_id: str) -> list[StoredMemory]:
        return self._handles.of(user_id) if self._handles is not None else []

    def _sync(self, user_id: str, memory: StoredMemory) -> bool:
        """Bring a memory up to the store; False, and the memory empty, where the user is unknown."""
        with memory.syncing:
            uid, rows = self._rows_from(user_id, memory.next_seq)
            if memory.uid not in (None, uid):  # forgotten since, perhaps come back
                memory.clear()
                clear_remembered_texts()
                uid, rows = self._rows_from(user_id, 0)
                memory.next_seq = 0
            new, seq = interactions_of(user_id, rows), rows[-1][2] + 1 if rows else memory.next_seq
            amended = [i for i in new if memory.get(i.id) is not None]
            memory.extend([i for i in new if i not in amended] if amended else new)
            for interaction in amended:
                memory.put(interaction)
            memory.uid, memory.next_seq = uid, 0 if uid is None else seq
            return uid is not None

    def _rows_from(self, user_id: str, seq: int) -> tuple[int | None, list[Any]]:
        """The user's number, None = unknown, and (id, body, seq) of the interactions from ``seq`` on."""
        names = {"is_hash": digest(user_id), "is_user": user_id, "is_seq": seq}
        rows = self._database.rows(_OWN_FROM, names)
        return (rows[0][3] if rows else None), [row for row in rows if row[2] is not None]

    def _cluster(self, connection: sa.Connection, uid: int, start: int, stop: int) -> None:
        """Episodes that came one by one, between those of other users, lie all over a SQLite file, and a load would
        read a page for each. So each 32 of a user, and later each 256, are moved to the end, side by side, when the
        last of them comes. Those written in one go, ``start`` to ``stop``, lie side by side already."""
        for size in _CLUSTER_SIZES if self._database.sqlite else ():
            first = start // size * size
            if start > first and stop >= first + size:
                own = (episodes.c.uid == uid) & (episodes.c.seq >= first) & (episodes.c.seq < first + size)
                places = self._database.places(connection, episodes, own)
                if sum(b != a + 1 for a, b in pairwise(places)) >= _MOST_PIECES:
                    self._database.move_to_end(connection, episodes, places)
                return

    def _read(self, connection: sa.Connection, user_id: str, uid: int, seq: int) -> tuple[list[Interaction], int]:
        """Interactions from ``seq`` on in order of arrival, and the seq after them."""
        rows = connection.execute(_FROM, {"is_uid": uid, "is_seq": seq}).all()
        return interactions_of(user_id, rows), rows[-1][2] + 1 if rows else seq

    def _by_id(self, connection: sa.Connection, uid: int, ids: list[str]) -> list[sa.Row[int, str, str]]:
        """(seq, id, body) of those of the ids that a user has."""
        rows: list[sa.Row[int, str, str]] = []
        for start in range(0, len(ids), _CHUNK):
            hashes = [digest(key) for key in ids[start : start + _CHUNK]]
            rows += connection.execute(_AMONG, {"is_uid": uid, "hashes": hashes})
        return rows


def _vectors_of(uid: int, encoder: str) -> sa.ColumnElement[bool]:
    return (vectors.c.uid == uid) & (vectors.c.hash == digest(encoder))


def _check_same_content(user_id: str, key: str, body: str, other: str) -> None:
    if body != other:
        raise InputError(
            f"interaction id {key!r} of {user_id!r} is taken by other content: expected the same content again, or "
            "another id (leave id out and it is made from the content)"
        )
