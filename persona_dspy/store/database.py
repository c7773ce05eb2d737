"""The database under the store: opens it by URL, runs migrations and transactions, and explains errors. No other file
of the store knows which database it is.

**Text never moves.** When SQLite splits or merges B-tree pages it copies rows and leaves the old bytes in unused parts
of pages, out of reach of ``secure_delete``; only VACUUM, which rewrites the file, would remove them. So rows with text
are only ever added at a table's end, indexes hold numbers and hashes only, and what is forgotten is overwritten in
place with blanks of the same size. The rows stay as blank ones until ``compact``. To bring rows that lie all over the
file together, ``move_to_end`` adds them again at the end and overwrites them where they were.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_random

from persona_dspy.errors import InputError, StoreError, UnknownUser, UserForgotten, to_install
from persona_dspy.store.rows import UserState
from persona_dspy.store.tables import (
    MIGRATIONS,
    current,
    digest,
    drafts,
    episodes,
    profiles,
    schema,
    store_key,
    tombstones,
    users,
    vectors,
    versions,
)

__all__ = ["PATIENCE", "Database"]

PATIENCE = 5
"""Seconds that emptying SQLite's log waits for those who read the file."""

# built once: making a statement costs as much as running it
_FIND = sa.select(users.c.uid).where(
    users.c.hash == sa.bindparam("is_hash"), users.c.user_id == sa.bindparam("is_user")
)
_LOCK = _FIND.with_for_update()
_TIMES = sa.select(tombstones.c.times).where(tombstones.c.hash == sa.bindparam("mark"))
_PARTITIONS = 16  # of PostgreSQL's large tables, by uid
# SQLite: a row that is blank here was erased
_ERASED_WHERE_BLANK = {
    users: users.c.user_id,
    episodes: episodes.c.id,
    vectors: vectors.c.encoder,
    versions: versions.c.document,
    profiles: profiles.c.document,
    drafts: drafts.c.body,
}
_ROWID = sa.literal_column("rowid")
# SQLite: the uid of what is left of a row that lies elsewhere now; eight bytes as any uid: the row keeps its size
_NOBODY = sa.literal_column(f"({-(2**62)} - rowid)")
_IN_ORDER = {episodes: "uid, seq", vectors: "uid, hash, seq"}


class _ConnectionLost(StoreError):
    """The server has closed a connection that was open."""


class Database:
    """An open database: an engine, and the two kinds of transaction.

    Args:
        url: ``sqlite:///file.db``, a file name, or ``postgresql+psycopg://user:password@host/name``.
        timeout: seconds that a write waits for another one.
        power_safe: SQLite only, see ``Store.open``.

    Raises:
        InputError: a URL that cannot be read, or of another kind of database.
        StoreError: the database cannot be opened, or has a newer schema.
    """

    def __init__(self, url: str, *, timeout: float, power_safe: bool) -> None:
        parsed = _parse(url)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self.name = parsed.render_as_string(hide_password=True)
        if self.sqlite:
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        # parameters are users' text: they stay out of tracebacks
        options: dict[str, Any] = {"pool_size": 8, "max_overflow": 56, "hide_parameters": True}
        try:
            if self.sqlite:
                options["connect_args"] = {"timeout": timeout, "check_same_thread": False}
            else:
                options["connect_args"] = {"options": f"-c lock_timeout={int(timeout * 1000)}", "connect_timeout": 10}
                options["pool_pre_ping"] = True
            self.engine = sa.create_engine(parsed, **options)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"store {self.name!r}: expected the package {error.name!r}; {to_install('postgres')}"
            ) from None
        if self.sqlite:
            event.listen(self.engine, "connect", _pragmas("FULL" if power_safe else "NORMAL", timeout))
            event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(write=True)
        # of PostgreSQL: a few connections of their own for prepared reads, without a ping and a transaction around each
        options |= {"pool_pre_ping": False, "pool_reset_on_return": None, "isolation_level": "AUTOCOMMIT"}
        options |= {"max_overflow": 8}
        self._prepared_reads = self.engine if self.sqlite else sa.create_engine(parsed, **options)
        self._prepared: dict[sa.ClauseElement, tuple[str, dict[str, Any], Sequence[str] | None]] = {}
        try:
            self._migrate()
            with self.reading() as connection:
                self._key = bytes(connection.execute(sa.select(store_key.c.key)).scalar_one())
        except StoreError:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """A connection whose reads see committed data only."""
        with self._errors_explained(), self.engine.begin() as connection:
            yield connection

    def rows(self, statement: sa.ClauseElement, values: Mapping[str, Any]) -> list[Any]:
        """The rows of one read of committed data, as tuples, in one round trip. For what each answer asks: without a
        transaction and SQLAlchemy's part, which take eight times as long as such a read itself.

        Args:
            statement: a constant with named parameters: its text is kept.
            values: of all its parameters, as the driver takes them.
        """
        if statement not in self._prepared:
            compiled: Any = statement.compile(self.engine)
            self._prepared[statement] = (str(compiled), compiled.params, getattr(compiled, "positiontup", None))
        text, constants, places = self._prepared[statement]
        named: Any = {**constants, **values}
        given = named if places is None else [named[name] for name in places]
        with self._errors_explained():
            try:
                return self._fetch(text, given)
            except _ConnectionLost:  # a server that was restarted: all that were open are dead
                self._prepared_reads.dispose()
                return self._fetch(text, given)

    @contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """One transaction: all of it is on disk when the block ends, or nothing of it."""
        with self._errors_explained(), self._writer.begin() as connection:
            yield connection

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that can say ON CONFLICT."""
        return sqlite.insert(table) if self.sqlite else postgresql.insert(table)

    def uid(self, connection: sa.Connection, user_id: str) -> int | None:
        """A user's number, or None. Inside ``writing()``, other writers of this user wait until it ends."""
        writing = connection.get_execution_options().get("write")
        return connection.scalar(_LOCK if writing else _FIND, {"is_hash": digest(user_id), "is_user": user_id})

    def claim(self, connection: sa.Connection, user_id: str, since: UserState | None = None) -> int:
        """As ``uid``, making the user where there is none.

        Raises:
            UserForgotten: the user was forgotten after ``since`` was read.
        """
        uid = self.uid(connection, user_id)
        if uid is None:
            self.lock_name(connection, user_id)
        self.check_not_forgotten(connection, user_id, since)
        while (uid := self.uid(connection, user_id)) is None:
            # above 2 ** 62 every number takes the same room, so that rows can be overwritten in place
            new = {"uid": 2**62 + secrets.randbits(61), "hash": digest(user_id), "user_id": user_id}
            connection.execute(self.insert(users).values(new).on_conflict_do_nothing())
        return uid

    @property
    def id(self) -> str:
        """16 hexadecimal digits that no other store has, nor one that took its place."""
        return blake2b(b"id", digest_size=8, key=self._key).hexdigest()

    def mark(self, user_id: str) -> bytes:
        """The name of a user's tombstone: without the store's key it leads back to no id."""
        return blake2b(user_id.encode(), digest_size=16, key=self._key).digest()

    def life(self, connection: sa.Connection, user_id: str) -> int:
        """How many times a user was forgotten."""
        return connection.scalar(_TIMES, {"mark": self.mark(user_id)}) or 0

    def check_not_forgotten(self, connection: sa.Connection, user_id: str, since: UserState | None) -> None:
        """Raises UserForgotten where the user was forgotten after ``since`` was read. Inside ``writing()``, with the
        user's row or name locked, so that no forgetting comes between this and what is written."""
        if since is not None and self.life(connection, user_id) != since.life:
            raise UserForgotten(
                f"user {user_id!r} was forgotten in {self.name!r} while this was under way: nothing was written; "
                "expected a write that begins after it"
            )

    def lock_name(self, connection: sa.Connection, user_id: str) -> None:
        """Others who make, or forget, a user of this name wait until the transaction ends. SQLite has one writer."""
        if not self.sqlite:
            number = int.from_bytes(digest(user_id)[:8], "big", signed=True)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))

    def add_tombstone(self, connection: sa.Connection, user_id: str) -> None:
        """One forgetting more; call it under ``lock_name``."""
        new = self.insert(tombstones).values(hash=self.mark(user_id), times=1)
        times = {"times": tombstones.c.times + 1}
        connection.execute(new.on_conflict_do_update(index_elements=[tombstones.c.hash], set_=times))

    def require_uid(self, connection: sa.Connection, user_id: str) -> int:
        """A user's number; raises UnknownUser where nothing is kept of them."""
        uid = self.uid(connection, user_id)
        if uid is None:
            raise self.unknown_user(user_id)
        return uid

    def unknown_user(self, user_id: str) -> UnknownUser:
        return UnknownUser(
            f"user {user_id!r}: not in the store {self.name!r}; expected an id as it was ingested (case, accents and "
            f"blanks count), one of list(Store.open({self.name!r}).users()); to add users type: persona-dspy ingest "
            "FILE --store ..."
        )

    def erase(
        self, connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool], *, free: bool = False
    ) -> int:
        """Remove rows that hold text; how many there were. ``free``: rows with the same keys may be added again."""
        if not self.sqlite:
            return connection.execute(table.delete().where(where)).rowcount
        not_erased = sa.func.trim(_ERASED_WHERE_BLANK[table]) != ""
        values = {**_blanks(table), "uid": _NOBODY} if free else _blanks(table)
        return connection.execute(table.update().where(where & not_erased).values(values)).rowcount

    def places(self, connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> list[int]:
        """Where rows lie: numbers of which neighbours lie side by side; nothing on PostgreSQL, which has no such."""
        return list(connection.scalars(sa.select(_ROWID).where(where).order_by(table.c.seq))) if self.sqlite else []

    def move_to_end(self, connection: sa.Connection, table: sa.Table, places: list[int]) -> None:
        """Bring rows of a SQLite table together, in this order, at its end."""
        moved = _ROWID.in_(places)
        selected = connection.execute(sa.select(_ROWID, *table.c).where(moved))
        rows = {row[0]: dict(zip(table.c.keys(), row[1:], strict=True)) for row in selected}
        self.erase(connection, table, moved, free=True)
        connection.execute(table.insert(), [rows[place] for place in places])

    def compact(self) -> None:
        """Give the room of erased rows back, and bring each user's rows together. Rewrites the store: writers wait."""
        with (
            self._errors_explained(),
            self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            raw: Any = connection.connection.dbapi_connection
            if self.sqlite:
                raw.execute("BEGIN IMMEDIATE")
                raw.execute("PRAGMA user_version = 1")  # rows move now: until VACUUM ends nothing counts as scrubbed
                for table, text in _ERASED_WHERE_BLANK.items():
                    raw.execute(f"DELETE FROM {table.name} WHERE trim({text.name}) = ''")
                for table, order in _IN_ORDER.items():  # VACUUM keeps the order
                    raw.execute(f"CREATE TABLE persona_moving AS SELECT * FROM {table.name} ORDER BY {order}")
                    raw.execute(f"DELETE FROM {table.name}")
                    raw.execute(f"INSERT INTO {table.name} SELECT * FROM persona_moving ORDER BY rowid")
                    raw.execute("DROP TABLE persona_moving")
                raw.execute("COMMIT")
                raw.execute("VACUUM")
                raw.execute("PRAGMA user_version = 0")
            else:
                for table in (current, *_ERASED_WHERE_BLANK):
                    raw.execute(f"VACUUM FULL {table.name}")
        self.scrub()

    def scrub(self) -> bool:
        """Empty SQLite's log of erased text; False where that is not in our hands, or a reader holds it up for
        ``PATIENCE`` seconds."""
        if not self.sqlite:
            return False
        with self._errors_explained(), self.engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            before = raw.execute("PRAGMA busy_timeout").fetchone()[0]
            raw.execute(f"PRAGMA busy_timeout = {min(before, PATIENCE * 1000)}")
            try:
                busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                raw.execute(f"PRAGMA busy_timeout = {before}")
            moved = raw.execute("PRAGMA user_version").fetchone()[0]
        return busy == 0 and moved == 0

    def close(self) -> None:
        self.engine.dispose()
        self._prepared_reads.dispose()

    @property
    def _driver_error(self) -> type[Exception]:
        return self.engine.dialect.loaded_dbapi.Error

    def _fetch(self, text: str, values: Any) -> list[Any]:
        connection: Any = self._prepared_reads.raw_connection()
        try:
            return connection.dbapi_connection.execute(text, values).fetchall()
        except self._driver_error as error:
            if self._prepared_reads.dialect.is_disconnect(error, connection.dbapi_connection, None):  # type: ignore[arg-type]
                connection.invalidate()
                raise _ConnectionLost(str(error)) from error
            raise
        finally:
            connection.close()

    def _migrate(self) -> None:
        with self.reading() as connection:
            has_schema = sa.inspect(connection).has_table(schema.name)
            if has_schema and connection.scalar(sa.select(sa.func.max(schema.c.version))) == len(MIGRATIONS):
                return
        with self.writing() as connection:
            if not self.sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7063697073)")  # one process migrates at a time
            connection.execute(sa.schema.CreateTable(schema, if_not_exists=True))
            version = connection.scalar(sa.select(sa.func.max(schema.c.version))) or 0
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"store {self.name!r} has schema {version}: expected {len(MIGRATIONS)} or older, a newer version "
                    "wrote it; type: pip install --upgrade persona-dspy"
                )
            for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in statements:
                    for one in self._ddl(statement):
                        connection.exec_driver_sql(one)
                connection.execute(schema.insert().values(version=number))
            if connection.scalar(sa.select(sa.func.count()).select_from(store_key)) == 0:
                connection.execute(store_key.insert().values(key=secrets.token_bytes(32)))

    def _ddl(self, statement: str) -> list[str]:
        """A migration's statement in this database's words."""
        if statement.startswith("{partitions "):
            table = statement[12:-1]
            values = [f"(MODULUS {_PARTITIONS}, REMAINDER {n})" for n in range(0 if self.sqlite else _PARTITIONS)]
            return [f"CREATE TABLE {table}_{n} PARTITION OF {table} FOR VALUES WITH {v}" for n, v in enumerate(values)]
        words = ("BLOB", "") if self.sqlite else ("BYTEA", "PARTITION BY HASH (uid)")
        return [statement.format(bytes=words[0], partitioned=words[1])]

    @contextmanager
    def _errors_explained(self) -> Generator[None]:
        try:
            yield
        except (
            exc.DBAPIError,
            exc.TimeoutError,
            self._driver_error,
        ) as error:  # the driver's own: read past SQLAlchemy
            reason = str(getattr(error, "orig", None) or error).strip()
            raise StoreError(f"store {self.name!r}: {reason}{_advice(reason, self.sqlite)}") from error


def _blanks(table: sa.Table) -> dict[str, Any]:
    """For each column with text, or a hash of it, a value of the same size that says nothing (SQLite)."""
    values: dict[str, Any] = {}
    for column in table.c:
        size = sa.func.length(sa.cast(column, sa.LargeBinary))
        if column.name == "hash":
            values[column.name] = sa.func.randomblob(16)
        elif isinstance(column.type, sa.LargeBinary):
            values[column.name] = sa.func.zeroblob(size)
        elif isinstance(column.type, sa.Text):
            blank = sa.func.replace(sa.func.hex(sa.func.zeroblob(size)), "0", " ")  # two characters a byte
            values[column.name] = sa.case((column.is_(None), None), else_=sa.func.substr(blank, 1, size))
    return values


def _parse(url: str) -> sa.URL:
    expected = "expected 'sqlite:///personas.db', a file name, or 'postgresql+psycopg://user:password@host/name'"
    if "://" not in url:
        if not url.strip():
            raise InputError(f"store {url!r}: {expected}")
        if url.strip() == ":memory:":
            raise InputError(f"store {url!r}: a store in memory would lose what it acknowledged; {expected}")
        return sa.URL.create("sqlite", database=str(Path(url).expanduser()))
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (exc.ArgumentError, ValueError):
        raise InputError(f"store URL {url.partition('://')[0] + '://...'!r} cannot be read: {expected}") from None
    if backend not in ("sqlite", "postgresql"):
        raise InputError(f"store {parsed.render_as_string(hide_password=True)!r}: {expected}")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError(f"store {url!r}: a store in memory would lose what it acknowledged; {expected}")
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _advice(reason: str, sqlite: bool) -> str:
    advices = {
        "database is locked": "; another process is writing: try again, or open with a longer timeout=",
        "not a database": "; expected an SQLite file: give the name of a new file, or of a store",
        "unable to open database file": "; expected a file in a folder that may be written to",
        "readonly database": "; expected a file and a folder that may be written to: check their owner and mode",
        "disk is full": "; free some space: what was acknowledged is kept",
        "disk I/O error": "; is the disk full? free some space: what was acknowledged is kept",
        "malformed": "; the file is damaged: restore a copy of it",
        "lock timeout": "; another writer holds this user: try again, or open with a longer timeout=",
        "QueuePool limit": "; more threads than connections: use at most 64 threads on one store",
        "connection": "; is the server running, and are host, port, user and password right?",
    }
    otherwise = "" if sqlite else "; see the server's log"
    return next((advice for part, advice in advices.items() if part in reason), otherwise)


def _pragmas(synchronous: str, timeout: float) -> Any:
    # the first change of a new file to WAL does not wait for others that open it: it fails at once
    patient = retry(
        retry=retry_if_exception_message("database is locked"),
        stop=stop_after_delay(timeout),
        wait=wait_random(0, 0.02),
        reraise=True,
    )

    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun by _begin, not by the driver
        patient(connection.execute)("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA cache_size=-16384")  # KiB; SQLite's 2 MiB do not hold a large index's upper levels

    return connect


def _begin(connection: sa.Connection) -> None:
    # a writer takes its lock at once: one that reads first could not upgrade and would fail without waiting
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
