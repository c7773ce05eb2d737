"""Forgetting a user everywhere: store, exported files, fleets' and evaluations' folders, tracking, caches.

Owns: ``forget_user``, and what of a folder is a user's. Not here: the store's own part (store.py), MLflow's
(forget_tracked.py), what the terminal shows (cli/forget.py).

Each place is searched by content, not only by the name a file should have: whoever renamed an export is forgotten too.
Nothing stops it half-way for good: a place that was emptied reports nothing the next time.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from persona_dspy.errors import InputError
from persona_dspy.export import persona_file_name, write_text
from persona_dspy.forget_tracked import TrackedErasure, without_user

if TYPE_CHECKING:
    from persona_dspy.store import Store

__all__ = ["Erasure", "dspy_cache_entries", "forget_in_folder", "forget_user"]

_LARGEST = 64 * 1024 * 1024  # bytes of a JSON file that may be a persona


class Tracked(Protocol):
    """A tracker that can forget: ``tracking.MlflowTracker``."""

    def forget(self, user_id: str) -> TrackedErasure: ...


class Cache(Protocol):
    """Anything that keeps a user's text under the user's name: ``CallFolder``, ``knowledge.PageCache``."""

    def forget(self, user_id: str) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What was removed of a user in one place, by kind; ``note``: what is left to do there, or empty."""

    place: str
    removed: Mapping[str, int] = field(default_factory=dict[str, int])
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {"place": self.place, "removed": dict(self.removed), "note": self.note}


def forget_user(
    user_id: str,
    *,
    store: Store | None = None,
    folders: Iterable[Path] = (),
    tracker: Tracked | None = None,
    caches: Mapping[str, Cache] | None = None,
) -> list[Erasure]:
    """Remove everything kept of a user in the given places; what was removed, place by place.

    Args:
        folders: of persona JSONs, of a compile (with its ``.fleet`` beside it) or of an evaluation.
        caches: by the name they go by in the report.

    Raises:
        InputError: a compile is writing into one of the folders: forgetting waits for its end.

    Example:
        >>> import tempfile
        >>> from persona_dspy.persona import Persona
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Persona.from_text("Likes tea.", user_id="u1").to_json(Path(folder, "mine.json"))
        ...     dict(forget_user("u1", folders=[Path(folder)])[0].removed)
        {'persona files': 1}
    """
    if not user_id.strip():
        raise InputError(f"user {user_id!r}: expected an id that is not blank")
    # Folders first: where a compile is at work nothing is removed at all, for it would only write again.
    done = [forget_in_folder(folder, user_id) for folder in folders]
    if store is not None:
        gone = store.forget(user_id)
        removed = {name.removeprefix("persona_"): count for name, count in gone.removed.items() if count}
        note = "" if gone.scrubbed or not removed else "dead rows stay on disk until the database is vacuumed"
        done.append(Erasure(place="store", removed=removed, note=note))
    if tracker is not None:
        tracked = tracker.forget(user_id)
        removed = {name.replace("_", " "): count for name, count in tracked.to_dict().items() if count}
        done.append(Erasure(place="MLflow", removed=removed, note=tracked.note))
    for name, cache in (caches or {}).items():
        count = cache.forget(user_id)
        done.append(Erasure(place=name, removed={"files": count} if count else {}))
    return done


def forget_in_folder(folder: Path, user_id: str) -> Erasure:
    """A user's persona files in a folder and below, rows in tables there, answers kept by a compile into it.

    An evaluation's LM cache knows no users and is removed as a whole: it only saves time.
    """
    counts = {"persona files": 0, "table rows": 0, "kept LM answers": 0, "journal rows": 0, "whole LM caches": 0}
    hidden = folder.absolute().with_name(f".{folder.absolute().name}.fleet")
    if hidden.is_dir():
        from persona_dspy.fleet_folder import FleetFolder

        with FleetFolder(folder) as fleet:
            told = fleet.forget(user_id)
        counts["persona files"] += told["persona_files"]
        counts["kept LM answers"] += told["lm_answers"]
        counts["journal rows"] += told["journal_rows"]
        _settled(hidden / "journal.db")
    for file in list(_below(folder)):
        if file.name == "cache.db" and "lm-cache" in file.parts:
            continue
        if file.name == persona_file_name(user_id) or _is_persona_of(file, user_id):
            file.unlink(missing_ok=True)
            counts["persona files"] += 1
        elif file.suffix in (".jsonl", ".csv"):
            counts["table rows"] += _rewritten(file, user_id)
    counts["table rows"] += _protocol(folder / "protocol.json", user_id)
    if (folder / "lm-cache").is_dir():
        shutil.rmtree(folder / "lm-cache")
        counts["whole LM caches"] += 1
    return Erasure(place=str(folder), removed={name: count for name, count in counts.items() if count})


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


def _below(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder):
        yield from (Path(at, name) for name in names)


def _is_persona_of(file: Path, user_id: str) -> bool:
    """Also of one that was cut off while it was written (``.part``): what names the user in it is enough."""
    if file.suffix not in (".json", ".part") or file.stat().st_size > _LARGEST:
        return False
    content = file.read_bytes()
    spelled = {json.dumps(user_id, ensure_ascii=ascii_).encode("utf-8", "replace") for ascii_ in (True, False)}
    if not any(b'"user_id": ' + name in content or b'"user_id":' + name in content for name in spelled):
        return False
    try:
        data = json.loads(content)
    except ValueError:
        return file.suffix == ".part"
    return isinstance(data, dict) and data.get("user_id") == user_id


def _rewritten(file: Path, user_id: str) -> int:
    try:
        kept, gone = without_user(file.read_text(encoding="utf-8"), file.suffix, user_id)
    except UnicodeDecodeError:
        return 0
    if gone:
        write_text(file, kept)
    return gone


def _protocol(file: Path, user_id: str) -> int:
    """The names that an evaluation was asked for (``--users a,b``)."""
    if not file.is_file():
        return 0
    data, gone = json.loads(file.read_text(encoding="utf-8")), 0
    for run in data.get("runs", []):
        named = next(csv.reader([run.get("users") or ""], skipinitialspace=True), [])
        if user_id in [name.strip() for name in named] + named:
            kept = io.StringIO()
            csv.writer(kept, lineterminator="").writerow(n for n in named if user_id not in (n, n.strip()))
            run["users"] = kept.getvalue()
            gone += 1
    if gone:
        write_text(file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    return gone


def _settled(journal: Path) -> None:
    """Rewrite a fleet's journal, so that its free pages hold nothing either."""
    with closing(sqlite3.connect(journal, timeout=30, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
