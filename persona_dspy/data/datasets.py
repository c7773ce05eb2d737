"""A data file as a memory-mapped Hugging Face dataset, one row a user.

For random access and shuffling over more users than memory holds; ``read_users`` is enough to walk a file once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from persona_dspy.core import Interaction
from persona_dspy.data.files import detect_task, read_users
from persona_dspy.data.interaction_rows import Question, UserHistory
from persona_dspy.data.tasks import Task

__all__ = ["as_dataset", "history_of"]


def as_dataset(
    path: str | Path, task: Task | str | None = None, *, cache_dir: str | Path, skip_bad_rows: bool = False
) -> Any:
    """A ``datasets.Dataset`` of the file's users; ``history_of(row)`` turns a row back into a ``UserHistory``.

    Columns: ``user_id``; ``interactions`` (user_id, query, response, time, id, metadata and signal as JSON);
    ``questions`` (id, query, gold, time, metadata as JSON). Written once to Arrow files in ``cache_dir`` and mapped
    from there; written anew when the file has changed.

    Args:
        path, task, skip_bad_rows: as in ``read_users``, which also lists what was passed over.
        cache_dir: a folder of the caller's; it will hold users' texts until the caller removes it, which is why there
            is no default among the caches that other programs share.

    Raises:
        DataError: as ``read_users``; broken rows are met while the Arrow files are written.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "mine.jsonl").write_text('{"user_id": "u1", "query": "Alien", "response": "horror"}')
        >>> data = as_dataset(folder / "mine.jsonl", cache_dir=folder / "cache")  # doctest: +SKIP
        >>> history_of(data[0]).interactions[0].response  # doctest: +SKIP
        'horror'
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    path = Path(path).resolve()
    named_task = detect_task(path, task)
    source = path.stat()
    text, time = datasets.Value("string"), datasets.Value("timestamp[us, tz=UTC]")
    interaction = {f.name: time if f.name == "time" else text for f in fields(Interaction)}
    question = {f.name: time if f.name == "time" else text for f in fields(Question)}
    features = datasets.Features(
        {"user_id": text, "interactions": datasets.List(interaction), "questions": datasets.List(question)}
    )
    # size and time stand for the content in the name of the Arrow files
    arguments = {
        "path": str(path),
        "task": named_task,
        "skip": skip_bad_rows,
        "size": source.st_size,
        "at": source.st_mtime_ns,
    }
    try:
        return datasets.Dataset.from_generator(_rows, features=features, cache_dir=str(cache_dir), gen_kwargs=arguments)
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None  # the reader's own error, which says the file and the row


def history_of(row: Mapping[str, Any]) -> UserHistory:
    """The ``UserHistory`` of one row of ``as_dataset``."""
    return UserHistory(
        user_id=row["user_id"],
        interactions=tuple(Interaction(**_read(i)) for i in row["interactions"]),
        questions=tuple(Question(**_read(q)) for q in row["questions"]),
    )


def _rows(path: str, task: Task | None, skip: bool, size: int, at: int) -> Iterator[dict[str, Any]]:
    for user in read_users(path, task=task, skip_bad_rows=skip):
        yield {
            "user_id": user.user_id,
            "interactions": [_written(i) for i in user.interactions],
            "questions": [_written(q) for q in user.questions],
        }


def _written(value: Interaction | Question) -> dict[str, Any]:
    row = {f.name: getattr(value, f.name) for f in fields(value)}
    if row.get("signal") is not None:
        row["signal"] = row["signal"].to_json()
    return {**row, "metadata": json.dumps(dict(value.metadata), ensure_ascii=False)}


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    time: datetime | None = row["time"]
    if row.get("signal") is not None:
        row = {**row, "signal": json.loads(row["signal"])}
    return {**row, "time": time, "metadata": json.loads(row["metadata"])}
