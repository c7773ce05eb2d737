"""The store's tables and their migrations: one schema for SQLite and PostgreSQL.

``persona_users`` gives a user id its ``uid``, a random number that is never used again; ``persona_episodes``,
``persona_vectors``, ``persona_versions``, ``persona_profiles`` hold text by uid, ``persona_current`` the pointer;
``persona_due`` counts what was observed since a user's last alignment and says which process aligns the user;
``persona_drafts`` holds the latest drafts that were given to a user, until feedback comes;
``persona_tombstones`` counts how often a user was forgotten, under a hash keyed by ``persona_key``: no id, no text.
``persona_schema`` says which migrations ran. On SQLite a row whose text is blank was erased (``database.py`` says why
it is still there); one with a uid below 0 belonged to a row that lies elsewhere now.
"""

from __future__ import annotations

from hashlib import blake2b

import sqlalchemy as sa

__all__ = [
    "MIGRATIONS",
    "current",
    "digest",
    "drafts",
    "due",
    "episodes",
    "meta",
    "profiles",
    "schema",
    "store_key",
    "tombstones",
    "users",
    "vectors",
    "versions",
]

_HASH = sa.LargeBinary(16)
meta = sa.MetaData()
schema = sa.Table("persona_schema", meta, sa.Column("version", sa.Integer, primary_key=True))
users = sa.Table(
    "persona_users",
    meta,
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("hash", _HASH, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
)
episodes = sa.Table(
    "persona_episodes",
    meta,
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", _HASH, nullable=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
versions = sa.Table(
    "persona_versions",
    meta,
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("parent", sa.BigInteger),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("alignment", sa.Text),
)
current = sa.Table(
    "persona_current",
    meta,
    sa.Column("uid", sa.BigInteger, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)
vectors = sa.Table(
    "persona_vectors",
    meta,
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("hash", _HASH, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("encoder", sa.Text, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)
profiles = sa.Table(
    "persona_profiles",
    meta,
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
)

due = sa.Table(
    "persona_due",
    meta,
    sa.Column("uid", sa.BigInteger, primary_key=True),
    sa.Column("new", sa.BigInteger, nullable=False),  # interactions observed and not yet aligned
    sa.Column("holder", sa.BigInteger, nullable=False),  # the lease of whoever aligns the user; 0 = nobody does
    sa.Column("beats", sa.BigInteger, nullable=False),  # goes up while the holder is alive
    sa.Column("failures", sa.BigInteger, nullable=False),  # alignments that failed since the last that did not
)
drafts = sa.Table(
    "persona_drafts",
    meta,
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),  # grows with each draft; the lowest is the next to be replaced
    sa.Column("hash", _HASH, nullable=False),  # of the trace's id
    sa.Column("body", sa.Text, nullable=False),
)
tombstones = sa.Table(
    "persona_tombstones",
    meta,
    sa.Column("hash", _HASH, primary_key=True),
    sa.Column("times", sa.BigInteger, nullable=False),
)
store_key = sa.Table("persona_key", meta, sa.Column("key", sa.LargeBinary(32), nullable=False))

# Schema n is reached by running steps 1..n. Append only: a step that was released is never edited. ``hash`` is
# ``digest`` of the text beside it; no table has a clustered key, so that SQLite adds rows at the end.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE persona_users (uid BIGINT NOT NULL, hash {bytes} NOT NULL, user_id TEXT NOT NULL)",
        "CREATE UNIQUE INDEX persona_users_uid ON persona_users (uid)",
        "CREATE UNIQUE INDEX persona_users_hash ON persona_users (hash)",
        """CREATE TABLE persona_episodes (uid BIGINT NOT NULL, seq BIGINT NOT NULL, hash {bytes} NOT NULL,
        id TEXT NOT NULL, body TEXT NOT NULL) {partitioned}""",
        "{partitions persona_episodes}",
        "CREATE UNIQUE INDEX persona_episodes_seq ON persona_episodes (uid, seq)",
        "CREATE UNIQUE INDEX persona_episodes_id ON persona_episodes (uid, hash)",
        """CREATE TABLE persona_versions (uid BIGINT NOT NULL, version BIGINT NOT NULL, parent BIGINT,
        created TEXT NOT NULL, document TEXT NOT NULL, alignment TEXT)""",
        "CREATE UNIQUE INDEX persona_versions_version ON persona_versions (uid, version)",
        "CREATE TABLE persona_current (uid BIGINT NOT NULL PRIMARY KEY, version BIGINT NOT NULL)",
    ),
    (
        """CREATE TABLE persona_vectors (uid BIGINT NOT NULL, hash {bytes} NOT NULL, seq BIGINT NOT NULL,
        encoder TEXT NOT NULL, vector {bytes} NOT NULL) {partitioned}""",
        "{partitions persona_vectors}",
        "CREATE UNIQUE INDEX persona_vectors_seq ON persona_vectors (uid, hash, seq)",
    ),
    (
        "CREATE TABLE persona_profiles (uid BIGINT NOT NULL, document TEXT NOT NULL)",
        "CREATE UNIQUE INDEX persona_profiles_uid ON persona_profiles (uid)",
    ),
    (
        """CREATE TABLE persona_due (uid BIGINT NOT NULL PRIMARY KEY, new BIGINT NOT NULL, holder BIGINT NOT NULL,
        beats BIGINT NOT NULL, failures BIGINT NOT NULL)""",
        "CREATE INDEX persona_due_new ON persona_due (new)",
        "CREATE TABLE persona_tombstones (hash {bytes} NOT NULL PRIMARY KEY, times BIGINT NOT NULL)",
        "CREATE TABLE persona_key (key {bytes} NOT NULL)",
    ),
    (
        """CREATE TABLE persona_drafts (uid BIGINT NOT NULL, seq BIGINT NOT NULL, hash {bytes} NOT NULL,
        body TEXT NOT NULL)""",
        "CREATE UNIQUE INDEX persona_drafts_seq ON persona_drafts (uid, seq)",
        "CREATE UNIQUE INDEX persona_drafts_hash ON persona_drafts (uid, hash)",
    ),
)


def digest(text: str) -> bytes:
    """16 bytes that stand for a text in an index."""
    return blake2b(text.encode(), digest_size=16).digest()
