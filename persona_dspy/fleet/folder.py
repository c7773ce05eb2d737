"""The folder that a fleet writes personas to, and beside it the state from which a killed fleet resumes.

``personas/`` holds a JSON per user and nothing else. ``.personas.fleet/journal.db`` knows users by ``user_key`` only
and holds no text of theirs; ``.personas.fleet/calls`` holds answers of users who are not finished. A user's persona is
written first, the journal's row last, and then the answers go: a crash in between costs no LM call.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from persona_dspy.core import Erasure, PersonaDocument, lock_file, persona_file_name, user_key, write_text
from persona_dspy.errors import InputError, StoreError
from persona_dspy.lm import CallFolder

__all__ = ["FleetFolder", "State", "fleet_status", "forget_in_fleet", "has_fleet", "has_running_fleet"]

State = Literal["done", "stopped", "failed"]
"""``done``: never redone from the same inputs. ``stopped``: a budget of the fleet, or an interruption, ended it early:
``--resume`` goes on. ``failed``: ``--resume`` tries again."""

_TABLES = """
CREATE TABLE IF NOT EXISTS users (
  key TEXT PRIMARY KEY, made_from TEXT NOT NULL, state TEXT NOT NULL, error TEXT NOT NULL, calls INTEGER NOT NULL,
  tokens INTEGER NOT NULL, usd REAL, seconds REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, state TEXT NOT NULL, params TEXT NOT NULL);
"""


class FleetFolder:
    """Open folder of one fleet; thread-safe, one process at a time.

    Args:
        path: made where it is missing.

    Raises:
        InputError: another process works in it.
        StoreError: it cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path, FleetFolder(path) as folder:
        ...     folder.is_done("u1", "hash of the inputs")
        False
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        nearest = next((p for p in (self.path, *self.path.parents) if p.exists()), self.path)
        if nearest.exists() and not nearest.is_dir():
            raise InputError(
                f"fleet folder {str(path)!r}: {str(nearest)!r} is a file; expected a folder, or a new name"
            )
        self._hidden = _hidden_folder(self.path)
        self.calls = CallFolder(self._hidden / "calls")
        self._writing = threading.Lock()
        self._lock_file = _locked(self._hidden / "lock", self.path)
        try:
            with _store_errors(self.path):
                self._journal = _journal(self._hidden / "journal.db")
        except StoreError:
            self._lock_file.close()
            raise
        self._run: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal and let others in."""
        self._journal.close()
        self._lock_file.close()

    @property
    def lock(self) -> int:
        """File descriptor of the lock: a process that inherits it keeps others out as long as it lives."""
        return int(self._lock_file.fileno())

    def begin(self, params: Mapping[str, Any]) -> None:
        """Note that a run begins; ``params`` are for ``persona-dspy status``."""
        text = json.dumps({k: v for k, v in params.items() if v is not None}, default=str)
        with self._writing, _store_errors(self.path):
            cursor = self._journal.execute(
                "INSERT INTO runs (began, state, params) VALUES (?, 'running', ?)", (time.time(), text)
            )
            self._run = cursor.lastrowid

    def end(self, state: str) -> None:
        """Note how the run ended, in a word or two."""
        with self._writing, _store_errors(self.path):
            self._journal.execute("UPDATE runs SET ended = ?, state = ? WHERE id = ?", (time.time(), state, self._run))

    def is_done(self, user_id: str, made_from: str) -> bool:
        """Whether the user was finished from just these inputs and the file is still there."""
        with self._writing, _store_errors(self.path):
            row = self._journal.execute(
                "SELECT 1 FROM users WHERE key = ? AND made_from = ? AND state = 'done'", (user_key(user_id), made_from)
            ).fetchone()
        if row is None or not self.file(user_id).exists():
            return False
        self.calls.forget(user_id)  # a fleet that was killed between noting the user and this has left them
        return True

    def file(self, user_id: str) -> Path:
        """Where the user's persona JSON is, or would be."""
        return self.path / persona_file_name(user_id)

    def put(self, document: PersonaDocument) -> Path:
        """Write a persona JSON, whole or not at all.

        Raises:
            StoreError: the disk is full or cannot be written to.
        """
        target = self.file(document.user_id)
        try:
            write_text(target, document.to_json())
        except OSError as failure:
            raise StoreError(
                f"{str(target)!r}: {failure.strerror}; free some space and go on with --resume: nothing paid is lost"
            ) from failure
        return target

    def note(
        self, user_id: str, made_from: str, state: State, *, error: str = "", cost: Any = None, seconds: float = 0.0
    ) -> None:
        """Note what became of a user, after the persona was written.

        Args:
            error: the kind of error only, such as ``"LMTimeoutError"``: messages may quote the user.
            cost: a ``Usage`` or None.
        """
        usage = (cost.calls, cost.input_tokens + cost.output_tokens, cost.usd) if cost is not None else (0, 0, None)
        row = (user_key(user_id), made_from, state, error, *usage, seconds, time.time())
        with self._writing, _store_errors(self.path):
            self._journal.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        if state == "done":
            self.calls.forget(user_id)

    def forget(self, user_id: str) -> dict[str, int]:
        """Remove all that is kept of a user: file, journal row, answers. Says how many of each."""
        file = self.file(user_id)
        existed = file.exists()
        file.unlink(missing_ok=True)
        with self._writing, _store_errors(self.path):
            rows = self._journal.execute("DELETE FROM users WHERE key = ?", (user_key(user_id),)).rowcount
        return {"persona_files": int(existed), "journal_rows": rows, "lm_answers": self.calls.forget(user_id)}


def has_fleet(path: str | os.PathLike[str]) -> bool:
    """Whether a fleet was ever compiled into this folder, which itself may be gone."""
    return _hidden_folder(Path(path)).is_dir()


def has_running_fleet(path: str | os.PathLike[str]) -> bool:
    """Whether a compile into this folder is at work."""
    return has_fleet(path) and _is_locked(_hidden_folder(Path(path)) / "lock")


def forget_in_fleet(path: str | os.PathLike[str], user_id: str) -> Erasure:
    """Remove what a fleet keeps of a user: the persona file, the journal's row, answers. The journal is rewritten, so
    that its free pages hold nothing either. Where it cannot be read, the answers go and the note names it.

    Raises:
        InputError: a compile is at work in the folder.
    """
    if not has_fleet(path):
        return Erasure(place=str(path))
    journal = _hidden_folder(Path(path)) / "journal.db"
    try:
        with FleetFolder(path) as fleet:
            removed = fleet.forget(user_id)
        with closing(sqlite3.connect(journal, timeout=5, isolation_level=None)) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (StoreError, sqlite3.Error) as failure:
        answers = CallFolder(journal.with_name("calls")).forget(user_id)
        return Erasure(place=str(path), removed={"kept LM answers": answers}, note=f"{journal} ({str(failure)[:200]})")
    names = {"persona_files": "persona files", "lm_answers": "kept LM answers", "journal_rows": "journal rows"}
    return Erasure(place=str(path), removed={names[kind]: count for kind, count in removed.items()})


def fleet_status(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a fleet's folder says, JSON-safe; may be read while the fleet runs.

    Keys: ``run`` (state "running", "interrupted" or how it ended; began, ended in seconds since 1970; params),
    ``users`` (count by state), ``errors`` (failed users by kind of error), ``calls``, ``tokens``, ``usd`` (None where
    unknown), ``finished_a_minute`` over the last ten minutes of work.

    Raises:
        InputError: no fleet was run there.
    """
    hidden = _hidden_folder(Path(path))
    if not (hidden / "journal.db").exists():
        raise InputError(f"{str(path)!r}: no fleet was compiled into this folder; expected the --out of a compile")
    with _store_errors(Path(path)):
        journal = sqlite3.connect(f"file:{hidden / 'journal.db'}?mode=ro", uri=True)
        try:
            users = dict(journal.execute("SELECT state, count(*) FROM users GROUP BY state ORDER BY state").fetchall())
            errors = dict(
                journal.execute(
                    "SELECT error, count(*) FROM users WHERE state = 'failed' GROUP BY error ORDER BY 2 DESC"
                ).fetchall()
            )
            calls, tokens, usd, last = journal.execute(
                "SELECT total(calls), total(tokens), sum(usd), max(at) FROM users"
            ).fetchone()
            since = (last or 0) - 600
            recent, first = journal.execute(
                "SELECT count(*), min(at) FROM users WHERE state = 'done' AND at > ?", (since,)
            ).fetchone()
            run = journal.execute("SELECT began, ended, state, params FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        finally:
            journal.close()
    minutes = max((last or 0) - (first or 0), 1.0) / 60
    state = None if run is None else run[2]
    if state == "running" and not _is_locked(hidden / "lock"):
        state = "interrupted"
    run_status = (
        None if run is None else {"state": state, "began": run[0], "ended": run[1], "params": json.loads(run[3])}
    )
    rate = round((recent - 1) / minutes, 1) if recent > 1 else None
    return {
        "run": run_status,
        "users": users,
        "errors": errors,
        "calls": int(calls),
        "tokens": int(tokens),
        "usd": usd,
        "finished_a_minute": rate,
    }


def _hidden_folder(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    return path.with_name(f".{path.name}.fleet")


@contextmanager
def _store_errors(path: Path) -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as failure:
        raise StoreError(
            f"fleet folder {str(path)!r}: {failure}; expected a folder with room that may be written to; what was "
            "finished is kept, go on with --resume"
        ) from failure


def _journal(file: Path) -> sqlite3.Connection:
    journal = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
    try:
        journal.execute("PRAGMA journal_mode=WAL")
        journal.execute("PRAGMA synchronous=NORMAL")
        journal.executescript(_TABLES)
    except sqlite3.Error:
        journal.close()
        raise
    return journal


def _locked(file: Path, folder: Path) -> Any:
    """An open file that nobody else can lock until it is closed, also by the death of the process."""
    try:
        handle = lock_file(file)
    except OSError as failure:
        raise StoreError(f"fleet folder {str(folder)!r}: {failure.strerror}; expected one to write to") from failure
    if handle is None:
        raise InputError(
            f"{str(folder)!r}: another process compiles into this folder; wait for it, or give another --out"
        )
    return handle


def _is_locked(file: Path) -> bool:
    try:
        handle = lock_file(file)
    except OSError:
        return False
    if handle is not None:
        handle.close()
    return handle is None
