"""Stores the answers a user has paid for in a folder, one file a user."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from persona_dspy.core import user_key
from persona_dspy.errors import StoreError

__all__ = ["CallFolder", "CallLog"]


class CallLog(Protocol):
    """A store of answers per user, such as ``CallFolder``."""

    def load(self, user_id: str) -> Iterator[dict[str, Any]]: ...

    def add(self, user_id: str, record: dict[str, Any]) -> None: ...

    def forget(self, user_id: str) -> int: ...


class CallFolder:
    """Answers as one file of JSON lines a user, named by ``user_key``; thread-safe as long as a user has one worker.

    A line is written with one system call and so survives the death of the process, though not a power cut; a half
    line at the end (disk full, power cut) is dropped.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     calls = CallFolder(folder)
        ...     calls.add("u1", {"key": "k", "outputs": ["horror"]})
        ...     [r["outputs"] for r in calls.load("u1")], calls.forget("u1"), list(calls.load("u1"))
        ([['horror']], 1, [])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise StoreError(
                f"call folder {str(folder)!r}: {failure.strerror}; expected a place to write to"
            ) from failure

    def load(self, user_id: str) -> Iterator[dict[str, Any]]:
        """A user's records, oldest first."""
        try:
            lines = self._file(user_id).read_bytes().split(b"\n")
            if lines[-1]:  # half a record: ended, so that it spoils no other
                with self._file(user_id).open("ab") as file:
                    file.write(b"\n")
        except FileNotFoundError:
            return
        except OSError as failure:
            raise StoreError(
                f"call folder {str(self.folder)!r}: {failure.strerror}; expected a place to read from and write to"
            ) from failure
        for line in lines[:-1]:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "key" in record and "outputs" in record:
                yield record

    def add(self, user_id: str, record: dict[str, Any]) -> None:
        """Keep one more record.

        Raises:
            StoreError: the disk is full or cannot be written to.
        """
        data = (json.dumps(record, ensure_ascii=True, separators=(",", ":"), default=_plain) + "\n").encode()
        try:
            handle = os.open(self._file(user_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                written = os.write(handle, data)
                if written < len(data):
                    os.write(handle, b"\n")  # ends the half record, so that it spoils no other
                    raise OSError(28, "No space left on device")
            finally:
                os.close(handle)
        except OSError as failure:
            raise StoreError(
                f"call folder {str(self.folder)!r}: {failure.strerror}; free some space and go on with --resume"
            ) from failure

    def forget(self, user_id: str) -> int:
        """Remove a user's answers; how many there were."""
        count = sum(1 for _ in self.load(user_id))
        self._file(user_id).unlink(missing_ok=True)
        return count

    def _file(self, user_id: str) -> Path:
        return self.folder / f"{user_key(user_id)}.jsonl"


def _plain(value: Any) -> Any:
    """JSON of what an answer holds besides text, such as tool calls."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)
