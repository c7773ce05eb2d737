"""What an evaluation leaves behind: one line per answer.

Lines are only appended, so a killed run loses the answer it was about to write and nothing else; a rerun reads what is
there and asks for the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from persona_dspy.core import Usage, write_text
from persona_dspy.errors import DataError, InputError

__all__ = ["Judged", "Results", "commit", "data_hash", "read_answers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One answer (``kind="answer"``), what a user's preparation cost (``"prepared"``), or what an interrupted
    preparation had cost by then (``"partly"``).

    ``parsed``: whether the answer could be read. ``seconds`` is wall time, ``lm_seconds`` time in the LM.
    """

    kind: Literal["answer", "prepared", "partly"] = "answer"
    system: str
    user_id: str
    query_id: str = ""
    gold: str = ""
    answer: str = ""
    parsed: bool = True
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    lm_seconds: float = 0.0
    usd: float | None = None
    note: str = ""
    score: float | None = None  # by a metric of one's own

    @classmethod
    def of(cls, usage: Usage, seconds: float, **what: Any) -> Judged:
        """A row with its cost."""
        counts = {name: getattr(usage, name) for name in ("calls", "input_tokens", "output_tokens", "cached_tokens")}
        return cls(**counts, usd=usage.usd, lm_seconds=usage.rounded().seconds, seconds=round(seconds, 3), **what)

    @property
    def tokens(self) -> int:
        """Input plus output."""
        return self.input_tokens + self.output_tokens


class Results:
    """The folder of one evaluation: ``protocol.json``, ``answers.jsonl``, and personas under ``personas/``.

    Args:
        folder: made where it is missing.
        protocol: what the rows are made under; JSON-safe. ``"may_differ"`` keys (commit, ...) are kept for each run,
            all others must be the same for every run of the folder.

    Raises:
        InputError: the folder holds rows of another protocol.
        DataError: a row in it cannot be read.
    """

    def __init__(self, folder: str | Path, protocol: Mapping[str, Any], may_differ: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._keep_protocol(dict(protocol), dict(may_differ))
        self.path = self.folder / "answers.jsonl"
        self.rows = list(_read(self.path))

    def _keep_protocol(self, protocol: dict[str, Any], run: dict[str, Any]) -> None:
        path = self.folder / "protocol.json"
        stored = _protocol(path) if path.exists() else {**protocol, "runs": []}
        before = {key: value for key, value in stored.items() if key != "runs"}
        now = json.loads(json.dumps(protocol))
        if before != now:
            changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            raise InputError(
                f"out {str(self.folder)!r}: holds results with other settings ({', '.join(changed)}: "
                f"{[before.get(key) for key in changed]!r}, now {[now.get(key) for key in changed]!r}); "
                "expected the same; give another --out"
            )
        stored["runs"].append(run)
        self.protocol = stored
        write_text(path, json.dumps(stored, indent=2, ensure_ascii=False) + "\n")

    def add(self, row: Judged) -> None:
        """Append one row, on disk when this returns. Thread-safe."""
        line = json.dumps(asdict(row), ensure_ascii=False) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self.rows.append(row)

    def answered(self, system: str, user_id: str) -> set[str]:
        """The ids of the queries that have an answer."""
        rows = (r for r in self.rows if r.system == system and r.user_id == user_id)
        return {r.query_id for r in rows if r.kind == "answer"}


def _protocol(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as failure:
        settings, problem = None, str(failure)
    else:
        problem = "not the keys that an evaluation writes"
    if isinstance(settings, dict) and isinstance(settings.get("runs"), list):
        return settings
    raise InputError(
        f"{str(path)!r}: {problem}; expected the settings of an evaluation as JSON; give another --out, or remove the "
        "file where you know that the answers beside it were made with the settings of now"
    )


def read_answers(folder: Path) -> list[Judged]:
    """The rows of an evaluation's folder; none where there is no such folder.

    Raises:
        DataError: a row cannot be read.
    """
    return list(_read(folder / "answers.jsonl"))


def _read(path: Path) -> Iterable[Judged]:
    if not path.exists():
        return
    text = path.read_bytes()
    whole, _, torn = text.rpartition(b"\n")
    if torn:  # a killed run's last line: cut off, so that the next row begins on a line of its own
        with path.open("r+b") as file:
            file.truncate(len(whole) + (1 if whole else 0))
    names = {f.name for f in fields(Judged)}
    for number, line in enumerate(whole.decode("utf-8").split("\n") if whole else [], 1):
        try:
            row = json.loads(line)
            yield Judged(**{key: value for key, value in row.items() if key in names})
        except (ValueError, TypeError, AttributeError):
            expected = "a row of an evaluation; remove the line, its answer is then asked for again"
            raise DataError(str(path), line=number, value=line, expected=expected) from None


def data_hash(source: Any, columns: Mapping[str, str] | None = None) -> str:
    """sha256 (hex, 16 digits) of a data file and of the golds beside it, or of the files of a dataset; and of how its
    columns are read."""
    from persona_dspy.data import is_dataset, outputs_path, split_of

    digest = hashlib.sha256()
    if is_dataset(source):
        parts = source.values() if isinstance(source, dict) else [source]
        digest.update("".join(str(getattr(part, "_fingerprint", id(part))) for part in parts).encode())
        path, split = None, None
    else:
        path, split = split_of(source)
    if columns or split:
        digest.update(json.dumps([dict(columns or {}), split]).encode())
    files: list[Path] = []
    if path is not None:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path, outputs_path(path)]
    for one in sorted(set(files)):
        if one.exists():
            with one.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def commit() -> str:
    """The package's version, and the commit it is at where it runs from a checkout; ``+`` marks changed files."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        described = ""
    return f"persona-dspy {version('persona-dspy')}" + (f", commit {described}" if described else "")
