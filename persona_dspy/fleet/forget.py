"""Forgetting a user everywhere: store, exported files, fleets' and evaluations' folders, tracking, caches.

The store, the tracker, caches and a fleet's folder remove what they keep themselves; files that people may have copied
or renamed are searched here, by content and not only by the name a file should have. Nothing stops it half-way for
good: a place that was emptied reports nothing the next time, and a file that cannot be read or removed is named in the
place's note.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from persona_dspy.core import Erasure, Forgets, persona_file_name, write_bytes, write_text
from persona_dspy.errors import InputError
from persona_dspy.fleet.folder import forget_in_fleet
from persona_dspy.tracking import look_at, without_user

__all__ = ["Erasure", "dspy_cache_entries", "forget_in_folder", "forget_user"]

_Removing = Callable[[Path, str], tuple[str, int, str]]  # of ``_without``
_LARGEST = 64 * 1024 * 1024  # bytes of a JSON file that may be a persona


def forget_user(
    user_id: str,
    *,
    store: Forgets | None = None,
    folders: Iterable[Path] = (),
    tracker: Forgets | None = None,
    caches: Mapping[str, Forgets] | None = None,
) -> list[Erasure]:
    """Remove everything kept of a user in the given places; what was removed, place by place.

    Args:
        folders: of persona JSONs, of a compile (with its ``.fleet`` beside it) or of an evaluation.
        caches: by the name they go by in the report.

    Raises:
        InputError: a compile is writing into one of the folders: forgetting waits for its end.

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
    # Folders first: where a compile is at work nothing is removed at all, for it would only write again.
    erasures = [forget_in_folder(folder, user_id) for folder in folders]
    for place, owner in (("store", store), ("MLflow", tracker), *(caches or {}).items()):
        if owner is not None:
            removal = owner.forget(user_id)
            erasures.append(Erasure(place=place, removed=removal.counts, note=removal.note))
    return erasures


def forget_in_folder(folder: Path, user_id: str) -> Erasure:
    """A user's persona files in a folder and below, rows in tables there, answers kept by a compile into it.

    An evaluation's LM cache knows no users and is removed as a whole: it only saves time. Files that cannot be read or
    removed stop nothing: the note names them.
    """
    counts = {"persona files": 0, "table rows": 0, "kept LM answers": 0, "journal rows": 0, "whole LM caches": 0}
    fleet = forget_in_fleet(folder, user_id)
    counts.update(fleet.removed)
    unread = [fleet.note] if fleet.note else []
    work: list[tuple[Path, _Removing]] = [(file, _without) for file in _below(folder, unread)]
    work += [(folder / "protocol.json", _protocol), (folder / "lm-cache", _cache)]
    for path, remove in work:
        try:
            kind, count, trouble = remove(path, user_id)
        except OSError as failure:
            kind, count, trouble = "table rows", 0, failure.strerror or str(failure)
        counts[kind] += count
        if trouble:
            unread.append(f"{path} ({trouble})")
    removed = {name: count for name, count in counts.items() if count}
    return Erasure(place=str(folder), removed=removed, note=look_at(unread))


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


def _below(folder: Path, unread: list[str]) -> Iterator[Path]:
    def note_unread(failure: OSError) -> None:
        unread.append(f"{failure.filename} ({failure.strerror})")

    for at, _, names in os.walk(folder, onerror=note_unread):
        yield from (Path(at, name) for name in names)


def _without(file: Path, user_id: str) -> tuple[str, int, str]:
    """Remove a file, or rows of it, where they are the user's: the kind, how many, what could not be searched and why.

    Raises:
        OSError: it cannot be read, removed or written.
    """
    if file.name == persona_file_name(user_id):
        file.unlink(missing_ok=True)
        return "persona files", 1, ""
    if file.suffix not in (".json", ".part", ".jsonl", ".csv"):
        return "table rows", 0, ""
    if not file.is_file():
        return "table rows", 0, "leads to no file"
    if file.suffix in (".json", ".part"):
        of_user, trouble = _is_persona_of(file, user_id)
        if of_user:
            file.unlink(missing_ok=True)
        return "persona files", int(of_user), trouble
    others, count, trouble = without_user(file.read_bytes(), file.suffix, user_id)
    if count:
        write_bytes(file, others)
    return "table rows", count, trouble


def _is_persona_of(file: Path, user_id: str) -> tuple[bool, str]:
    """Also of one that was cut off while it was written (``.part``): what names the user in it is enough. With the
    reason why that is not known, or empty."""
    if file.stat().st_size > _LARGEST:
        return False, ""
    content = file.read_bytes()
    spelled = {json.dumps(user_id, ensure_ascii=ascii_).encode("utf-8", "replace") for ascii_ in (True, False)}
    if not any(b'"user_id": ' + name in content or b'"user_id":' + name in content for name in spelled):
        return False, ""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        cut_off = file.suffix == ".part"
        return cut_off, "" if cut_off else "names this user, but is not JSON"
    return isinstance(data, dict) and data.get("user_id") == user_id, ""


def _protocol(file: Path, user_id: str) -> tuple[str, int, str]:
    """The names that an evaluation was asked for (``--users a,b``): a list in each run."""
    if not file.is_file():
        return "table rows", 0, ""
    try:
        data = json.loads(file.read_bytes())
        runs = data["runs"]
        count = sum(_unnamed(run, user_id) for run in runs)
    except (ValueError, RecursionError, LookupError, TypeError):
        return "table rows", 0, "not as an evaluation writes it: remove the user's name under 'runs' by hand"
    if count:
        write_text(file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    return "table rows", count, ""


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


def _cache(folder: Path, _: str) -> tuple[str, int, str]:
    if not folder.is_dir():
        return "whole LM caches", 0, ""
    shutil.rmtree(folder)
    return "whole LM caches", 1, ""
