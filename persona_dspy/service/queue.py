"""Interactions that were observed while the store could not be written, kept in a file until it can."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_dspy.core import Erasure, Interaction, lock_open_file, write_text
from persona_dspy.errors import InputError, StoreError, UserForgotten

__all__ = ["ObservationQueue", "QueuedObservation"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedObservation:
    """An interaction that waits for the store. ``life``: how many times its user had been forgotten when it was
    observed, as far as the process knew; None = it had never read the user's state. ``store``: ``Store.id``; empty in
    lines of older versions."""

    interaction: Interaction
    life: int | None
    store: str = ""

    def to_line(self) -> str:
        one = self.interaction
        time = one.time.isoformat() if one.time else None
        row: dict[str, Any] = {"store": self.store, "life": self.life, "user_id": one.user_id, "id": one.id}
        row |= {"query": one.query, "response": one.response}
        if one.signal is not None:
            row["signal"] = one.signal.to_dict()
        return json.dumps({**row, "time": time, "metadata": dict(one.metadata)}) + "\n"

    @classmethod
    def of_line(cls, line: str) -> QueuedObservation:
        row = json.loads(line)
        life, store = row.pop("life"), row.pop("store", "")
        return cls(interaction=Interaction(**row), life=life, store=store)


class ObservationQueue:
    """A folder on this machine that any number of its processes may use at once. What ``add`` returned from is on the
    disk; it leaves the queue only once it is in the store.

    Args:
        store: ``Store.id`` of the store that takes the interactions; what waits here for another one is left alone.
            Empty = whichever.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> queue = ObservationQueue(folder.name)
        >>> queue.add(Interaction(user_id="u1", query="Alien (1979)", response="horror"), life=0)
        >>> len(queue), queue.drain(lambda waiting: None), len(queue)
        (1, 1, 0)
        >>> folder.cleanup()
    """

    def __init__(self, folder: str | os.PathLike[str], *, store: str = "") -> None:
        self.folder, self.store = Path(folder), store
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = self.folder / "observations.jsonl"
        self._refused = self.folder / "refused.jsonl"

    def __len__(self) -> int:
        return sum(map(self._is_own, _lines(self._file)))

    def add(self, interaction: Interaction, *, life: int | None) -> None:
        """Keep an interaction until the store takes it.

        Raises:
            StoreError: it cannot be kept here either.
        """
        try:
            line = QueuedObservation(interaction=interaction, life=life, store=self.store).to_line()
            with self._locked() as file:
                _append(file, line)
        except TypeError as failure:
            raise InputError(f"metadata of {interaction.id!r}: expected JSON-safe values: {failure}") from None
        except OSError as failure:
            raise StoreError(f"queue {str(self._file)!r}: {failure.strerror or failure}: nothing was kept") from failure

    def drain(self, deliver: Callable[[QueuedObservation], None]) -> int:
        """Give each interaction to ``deliver``, oldest first, until it raises ``StoreError``; how many left the queue.

        One whose user was forgotten since is dropped; one that the store refuses for good goes to ``refused.jsonl``
        beside the queue, with the reason.
        """
        if not self._file.exists():
            return 0
        with self._locked():
            lines = _lines(self._file)
            own = [n for n, line in enumerate(lines) if self._is_own(line)]
            done = set[int]()
            for n in own:
                if not self._delivered(lines[n], deliver):
                    break
                done.add(n)
            if done:
                self._keep([line for n, line in enumerate(lines) if n not in done])
        return len(done)

    def forget(self, user_id: str) -> Erasure:
        """Remove what waits of a user."""
        removed = 0
        with self._locked():
            for file in (self._file, self._refused):
                lines = _lines(file)
                others = [line for line in lines if not (_is_of(line, user_id) and self._is_own(line))]
                if len(others) < len(lines):
                    removed += len(lines) - len(others)
                    write_text(file, "".join(others), mode=0o600)
        return Erasure(place=str(self.folder), removed={"queued interactions": removed})

    def _is_own(self, line: str) -> bool:
        """Whether it waits for this store; what cannot be read is anybody's."""
        try:
            return json.loads(line).get("store", "") in ("", self.store) or not self.store
        except (ValueError, AttributeError):
            return True

    def _delivered(self, line: str, deliver: Callable[[QueuedObservation], None]) -> bool:
        try:
            waiting = QueuedObservation.of_line(line)
        except (ValueError, TypeError, KeyError, InputError):
            _log.warning("%s: a line that was cut off while it was written is dropped", self._file)
            return True
        try:
            deliver(waiting)
        except UserForgotten:
            _log.info("%s: an interaction of a user who was forgotten since is dropped", self._file)
        except StoreError:
            return False
        except InputError as refusal:
            _log.error("%s: refused by the store, see %s: %s", self._file, self._refused, refusal)
            with self._refused.open("a") as file:
                _append(file, json.dumps({**json.loads(line), "reason": str(refusal)}) + "\n")
        return True

    def _keep(self, lines: list[str]) -> None:
        if lines:
            write_text(self._file, "".join(lines), mode=0o600)
        else:
            self._file.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Generator[Any]:
        """The queue's file, open for appending; other processes and threads wait. Whoever held the lock before may
        have put another file in its place: that one counts."""
        while True:
            with open(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+") as file:
                lock_open_file(file, wait=True)
                try:
                    is_current = os.fstat(file.fileno()).st_ino == self._file.stat().st_ino
                except FileNotFoundError:
                    continue  # drained and removed meanwhile
                if is_current:
                    yield file
                    return


def _append(file: Any, line: str) -> None:
    """On disk when it returns; apart from a line before it that was cut off."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        line = line if file.read(1) == "\n" else "\n" + line
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _is_of(line: str, user_id: str) -> bool:
    try:
        return json.loads(line).get("user_id") == user_id
    except ValueError:
        return json.dumps(user_id) in line  # cut off: what names the user in it is enough
