"""Forgetting a user everywhere: store, exported files, fleets' and evaluations' folders, tracking, caches.

The store, the tracker, caches and a fleet's folder remove what they keep themselves; files that people may have copied
or renamed are searched here, by content and not only by the name a file should have. Nothing stops it half-way: a place
that fails is named beside what the others removed, and so is a file that cannot be read or removed, or that speaks of
the user without saying that it is the user's.
"""

from __future__ import annotations

import json
import os
import pickletools
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from persona_dspy.core import (
    Erasure,
    Forgets,
    Removal,
    clear_remembered_texts,
    lock_file,
    persona_file_name,
    write_bytes,
    write_text,
)
from persona_dspy.errors import ForgettingIncomplete, InputError, PersonaError, UnknownUser
from persona_dspy.fleet.folder import forget_in_fleet, has_running_fleet
from persona_dspy.store import Store
from persona_dspy.tracking import Mentions, look_at, without_user

__all__ = ["Erasure", "TracksUsers", "dspy_cache_entries", "forget_in_folder", "forget_user"]

_LARGEST = 64 * 1024 * 1024  # bytes of a file that is read whole
_PACKED = {".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".parquet", ".arrow"}
_PAGE_MARK = b'<meta name="generator" content="persona-dspy">'


class TracksUsers(Protocol):
    """A tracker, which may hold what others wrote of the user into it: it is searched for the user's own words."""

    def forget(self, user_id: str, texts: Iterable[str] = ()) -> Removal:
        """Remove everything kept of a user; the note names what still holds any of ``texts``."""
        ...


def forget_user(
    user_id: str,
    *,
    store: Forgets | None = None,
    folders: Iterable[Path] = (),
    tracker: TracksUsers | None = None,
    caches: Mapping[str, Forgets] | None = None,
    texts: Iterable[str] = (),
) -> list[Erasure]:
    """Remove everything kept of a user in the given places; what was removed, place by place.

    Args:
        folders: of persona JSONs, of a compile (with its ``.fleet`` beside it), of an evaluation or of reports.
        caches: by the name they go by in the report.
        texts: what the user wrote, where the store does not have it: files, runs and traces that hold any of it are
            named. The texts in the store and in the files that go are searched for anyway.

    Raises:
        InputError: a compile or an evaluation is writing into one of the folders: nothing was removed.
        ForgettingIncomplete: a place failed, after all others were emptied; ``erasures`` says what was removed.

    Example:
        >>> import tempfile
        >>> from persona_dspy.core import Persona
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Persona.from_text("Likes tea.", user_id="u1").to_json(Path(folder, "mine.json"))
        ...     dict(forget_user("u1", folders=[Path(folder)])[0].removed)
        {'persona files': 1}
    """
    if not user_id.strip():
        raise InputError(f"user {user_id!r}: expected an id that is not blank")
    mentions = Mentions(user_id, texts)
    wrote = _Account(mentions)
    with ExitStack() as held:
        folders = list(folders)
        for folder in folders:  # where a compile is at work nothing is removed at all, for it would only write again
            _hold(folder, held)
        if isinstance(store, Store):
            wrote.add("the texts in the store", lambda: _note_texts(store, mentions))
        for folder in folders:
            wrote.add(str(folder), lambda folder=folder: forget_in_folder(folder, user_id, mentions=mentions))
    for place, owner in (("store", store), *(caches or {}).items()):
        if owner is not None:
            wrote.add(place, lambda owner=owner: owner.forget(user_id))
    if tracker is not None:
        wrote.add("MLflow", lambda: tracker.forget(user_id, mentions.texts))
    clear_remembered_texts()
    if wrote.failures:
        places = "; ".join(f"{place}: {failure}" for place, failure in wrote.failures.items())
        raise ForgettingIncomplete(
            f"user {user_id!r} is not wholly forgotten, for a place failed ({places}); expected all to be there and "
            "writable: mend it and forget again",
            wrote.erasures,
        ) from next(iter(wrote.failures.values()))
    return wrote.erasures


class _Account:
    """What was removed, place by place, and what failed."""

    def __init__(self, mentions: Mentions) -> None:
        self.mentions, self.erasures, self.failures = mentions, list[Erasure](), dict[str, Exception]()

    def add(self, place: str, remove: Callable[[], Removal | None]) -> None:
        try:
            removal = remove()
        except (PersonaError, OSError, sqlite3.Error) as failure:
            self.failures[place] = failure
            self.erasures.append(Erasure(place=place, note=f"FAILED: {failure}"))
            return
        if removal is not None:
            self.erasures.append(Erasure(place=place, removed=removal.counts, note=removal.note))


def _note_texts(store: Store, mentions: Mentions) -> None:
    try:
        for interaction in store.episodes(mentions.user_id):
            mentions.add([interaction.query, interaction.response])
        for version in store.versions(mentions.user_id):
            mentions.add(_texts(version.document))
    except UnknownUser:
        return


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield from value.split("\n")
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _hold(folder: Path, held: ExitStack) -> None:
    """See that no compile is at work; keep evaluations out of a folder, and of those below it, until the user is gone.

    Raises:
        InputError: one is at work.
    """
    if has_running_fleet(folder):
        raise InputError(f"{str(folder)!r}: another process compiles into this folder; wait for its end")
    for lock in sorted(folder.rglob(".evaluation.lock")) if folder.is_dir() else ():
        try:
            handle = lock_file(lock)
        except OSError:
            continue  # nobody writes into a folder that may not be written to
        if handle is None:
            raise InputError(f"{str(lock.parent)!r}: another process evaluates into this folder; wait for its end")
        held.enter_context(handle)


def forget_in_folder(folder: Path, user_id: str, *, mentions: Mentions | None = None) -> Erasure:
    """A user's files in a folder and below, rows and documents in files there, answers kept by a compile into it.

    An evaluation's LM cache knows no users and is removed as a whole, since it only saves time; so are a report page
    that shows the user, which can be made anew, and what a writer that was killed left. Files that cannot be read or
    removed stop nothing: the note names them, and those that still speak of the user.

    Args:
        mentions: how the user is known in text; told of what is found in the files that go.

    Raises:
        InputError: a compile is at work in the folder.
    """
    fleet = forget_in_fleet(folder, user_id)
    search = _Search(folder, mentions or Mentions(user_id))
    search.counts.update(fleet.removed)
    if fleet.note:
        search.unread.append(fleet.note)
    search.run()
    removed = {name: count for name, count in search.counts.items() if count}
    return Erasure(place=str(folder), removed=removed, note=search.note)


def dspy_cache_entries() -> tuple[Path, int]:
    """DSPy's own disk cache and how many answers it holds. It knows no users, so it is not searched."""
    folder = Path(os.environ.get("DSPY_CACHEDIR") or Path.home() / ".dspy_cache")
    count = 0
    for file in folder.rglob("cache.db") if folder.is_dir() else ():
        try:
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
                count += connection.execute("SELECT count(*) FROM Cache").fetchone()[0]
        except sqlite3.Error:
            continue
    return folder, count


class _Search:
    """Goes through a folder: first what is the user's goes, then what is left is searched for the user's words."""

    def __init__(self, folder: Path, mentions: Mentions) -> None:
        self.folder, self.mentions, self.user_id = folder, mentions, mentions.user_id
        self.stem = persona_file_name(self.user_id).removesuffix(".json")
        kinds = ("persona files", "profiles", "checkpoints", "report pages", "table rows", "kept LM answers")
        self.counts: dict[str, int] = dict.fromkeys((*kinds, "journal rows", "whole LM caches", "unfinished files"), 0)
        self.unread: list[str] = []
        self.held: list[str] = []

    @property
    def note(self) -> str:
        held = f"not marked as this user's, look at them yourself: {', '.join(self.held)}" if self.held else ""
        return "; ".join(filter(None, (look_at(self.unread), held)))

    def run(self) -> None:
        rest: list[tuple[Path, str | None]] = []  # None: the file as it is
        for file in self._files():
            try:
                left = self._remove(file)
            except OSError as failure:
                self.unread.append(f"{file} ({failure.strerror or failure})")
            else:
                if left is None or left:
                    rest.append((file, left))
        for file, left in rest:
            try:
                found = self.mentions.found_in_bytes(file.read_bytes()) if left is None else self.mentions.found(left)
            except OSError as failure:
                self.unread.append(f"{file} ({failure.strerror or failure})")
            else:
                if found := found or self.mentions.found(f'"{file.stem}"'):
                    self.held.append(f"{file} holds {found}")

    def _files(self) -> Iterator[Path]:
        def note_unread(failure: OSError) -> None:
            self.unread.append(f"{failure.filename} ({failure.strerror})")

        for at, folders, names in os.walk(self.folder, onerror=note_unread):
            if "lm-cache" in folders:
                folders.remove("lm-cache")
                shutil.rmtree(Path(at, "lm-cache"))
                self.counts["whole LM caches"] += 1
            yield from (Path(at, name) for name in sorted(names))

    def _remove(self, file: Path) -> str | None:
        """Remove a file, or part of it, where it is the user's; the text that is left and does not say whose it is,
        None for the file as it stands.

        Raises:
            OSError: it cannot be read, removed or written.
        """
        if file.stem.lstrip(".") == self.stem:  # also of a profile, or of another ending
            return self._unlink(file, "profiles" if file.suffix == ".txt" else "persona files")
        if not file.is_file():
            if file.suffix in (".json", ".jsonl", ".csv", ".txt", ".part"):
                self.unread.append(f"{file} (leads to no file)")
            return ""
        if file.name in ("protocol.json", ".evaluation.lock", "lock"):
            return self._protocol(file) if file.suffix == ".json" else ""
        if file.suffix == ".part":
            return self._unfinished(file)
        if file.suffix in _PACKED or file.stat().st_size > _LARGEST:
            self.unread.append(f"{file} ({'packed' if file.suffix in _PACKED else 'larger than 64 MiB'})")
            return ""
        content = file.read_bytes()
        if _PAGE_MARK in content[:4096]:
            return self._unlink(file, "report pages") if self.mentions.found_in_bytes(content) else ""
        if file.suffix in (".pkl", ".pickle"):
            return self._unlink(file, "checkpoints") if _is_program_of(content, self.user_id) else None
        if (
            b"\0" in content[:4096]
            and not content.startswith((b"\xff\xfe", b"\xfe\xff"))
            and content[:1] not in b"{[\0"
        ):
            return None
        return self._prune(file, content)

    def _prune(self, file: Path, content: bytes) -> str:
        pruned = without_user(content, file.suffix, self.user_id)
        if pruned.content is None:
            document = json.loads(content)
            self.mentions.add(_texts(document))
            return self._unlink(file, "persona files" if "user_id" in document else "checkpoints")
        if pruned.removed:
            write_bytes(file, pruned.content)
            self.counts["table rows"] += pruned.removed
        not_ours = pruned.trouble == "not JSON" and not self.mentions.found(pruned.rest)
        if pruned.trouble and not not_ours:
            self.unread.append(f"{file} ({pruned.trouble})")
        return pruned.rest

    def _unlink(self, file: Path, kind: str) -> str:
        file.unlink(missing_ok=True)
        self.counts[kind] += 1
        return ""

    def _unfinished(self, file: Path) -> str | None:
        """What ``write_bytes`` left where it was killed; while it writes, its file is locked."""
        content = file.read_bytes()
        if not content:
            return ""
        handle = lock_file(file)
        if handle is None and not self.mentions.found_in_bytes(content):
            self.unread.append(f"{file} (is being written)")
            return ""
        if handle is not None:
            handle.close()
        return self._unlink(file, "unfinished files")

    def _protocol(self, file: Path) -> str:
        """The names that an evaluation was asked for (``--users a,b``)."""
        try:
            data = json.loads(file.read_bytes())
            count = sum(_unnamed(run, self.user_id) for run in data["runs"])
        except (ValueError, RecursionError, LookupError, TypeError):
            self.unread.append(f"{file} (not as an evaluation writes it: remove the user's name under 'runs' by hand)")
            return ""
        if count:
            write_text(file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
            self.counts["table rows"] += count
        return ""


def _unnamed(run: dict[str, Any], user_id: str) -> bool:
    """Whether the user was among a run's users, and is no longer. Users that were not named are a number of users,
    ``"longest:N"`` or None."""
    users = run["users"]
    if users is None or isinstance(users, int | str):
        return False
    if not isinstance(users, list):
        raise TypeError(f"users {users!r}: expected a list of names")
    run["users"] = [user for user in users if user != user_id]
    return len(run["users"]) < len(users)


def _is_program_of(content: bytes, user_id: str) -> bool:
    """Whether a pickle is a program of ours for this user. Nothing of it is run."""
    texts = set(_pickled_texts(content))
    return user_id in texts and any(text.startswith("persona_dspy.") for text in texts)


def _pickled_texts(content: bytes) -> Iterator[str]:
    try:
        for _, argument, _ in pickletools.genops(content):
            if isinstance(argument, str):
                yield argument
            elif isinstance(argument, bytes) and argument[:1] == b"\x80":  # a pickle in a pickle
                yield from _pickled_texts(argument)
    except ValueError:
        return  # cut off, or no pickle
