"""Removing one user from an MLflow server or file: runs, artifacts, prompts, traces, rows of tables.

MLflow deletes softly: a deleted run stays in the database, and its artifacts on disk, until ``mlflow gc``. With a
database URI this module does what that command does; a server is asked to delete, and has to run the command itself.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from persona_dspy.core import user_key
from persona_dspy.tracking.tables import look_at, without_user

__all__ = ["KEY_TAG", "USER_TAG", "TrackedErasure", "forget_tracked"]

USER_TAG = "persona_dspy.user_id"
KEY_TAG = "persona_dspy.user"
"""As ``USER_TAG``, by ``user_key``: for what more people than the user's own may see."""
_ALL = 3  # mlflow.entities.ViewType.ALL: active and deleted runs
_PAGE = 500


@dataclass(kw_only=True)
class TrackedErasure:
    """What was removed of a user, by kind; ``note``: what is left for somebody else to do, or empty."""

    runs: int = 0
    artifacts: int = 0
    table_rows: int = 0
    prompts: int = 0
    traces: int = 0
    note: str = ""
    soft: list[str] = field(default_factory=list[str])
    unread: list[str] = field(default_factory=list[str])

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts by kind, named for people; kinds of which there was none are left out."""
        return {kind.replace("_", " "): count for kind, count in self.to_dict().items() if count}

    def to_dict(self) -> dict[str, int]:
        """Counts by kind."""
        return {name: getattr(self, name) for name in ("runs", "artifacts", "table_rows", "prompts", "traces")}


def forget_tracked(client: Any, uri: str, user_id: str, failures: tuple[type[Exception], ...]) -> TrackedErasure:
    """Remove all that is marked with the user's id or key, and the user's rows in tables of other runs.

    Tables of other runs that cannot be read are named in the note; they stop nothing.

    Args:
        client: an ``MlflowClient`` on ``uri``.
        failures: what comes out of MLflow where another run's artifacts cannot be had.
    """
    erased = TrackedErasure()
    experiments = [e.experiment_id for e in _pages(client.search_experiments, view_type=_ALL)]
    own_runs: list[Any] = []
    for run in _pages(client.search_runs, experiment_ids=experiments, run_view_type=_ALL):
        if _named(run.data.tags, user_id):
            own_runs.append(run)
        elif not {USER_TAG, KEY_TAG} & set(run.data.tags):  # a whole batch's
            _without_rows(client, run.info.run_id, user_id, failures, erased)
    ids = {run.info.run_id for run in own_runs}
    _traces(client, experiments, user_id, ids, erased)
    for run in own_runs:
        _run(client, run, erased)
    for prompt in list(_pages(client.search_prompts)):
        if prompt.name == f"persona-{user_key(user_id)}" or _named(prompt.tags or {}, user_id):
            for version in list(_pages(client.search_prompt_versions, name=prompt.name)):
                client.delete_prompt_version(prompt.name, str(version.version))
            client.delete_prompt(prompt.name)
            erased.prompts += 1
    erased.note = "; ".join(note for note in (_settle(uri, erased), look_at(erased.unread)) if note)
    return erased


def _named(tags: Mapping[str, str], user_id: str) -> bool:
    return tags.get(USER_TAG) == user_id or tags.get(KEY_TAG) == user_key(user_id)


def _pages(search: Any, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token, **options)
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return


def _run(client: Any, run: Any, erased: TrackedErasure) -> None:
    run_id, store = run.info.run_id, client._tracking_client.store
    erased.artifacts += sum(1 for _ in _files(client, run_id))
    client._tracking_client._get_artifact_repo(run_id).delete_artifacts()
    _remove_folder(run.info.artifact_uri)
    if run.info.lifecycle_stage != "deleted":
        client.delete_run(run_id)
    if hasattr(store, "_hard_delete_run"):
        store._hard_delete_run(run_id)
    else:
        erased.soft.append(run_id)
    erased.runs += 1


def _traces(client: Any, experiments: list[str], user_id: str, runs: set[str], erased: TrackedErasure) -> None:
    for experiment in experiments:
        trace_ids: list[str] = []
        for trace in _pages(client.search_traces, locations=[experiment], include_spans=False):
            tags = {**trace.info.trace_metadata, **trace.info.tags}
            of_user = _named(tags, user_id) or tags.get("mlflow.trace.user") == user_id
            if of_user or tags.get("mlflow.sourceRun") in runs:
                trace_ids.append(trace.info.trace_id)
                if location := tags.get("mlflow.artifactLocation"):
                    client._tracing_client._get_artifact_repo_for_trace(trace.info).delete_artifacts()
                    _remove_folder(location)
        for start in range(0, len(trace_ids), 100):
            client.delete_traces(experiment_id=experiment, trace_ids=trace_ids[start : start + 100])
        erased.traces += len(trace_ids)


def _files(client: Any, run_id: str, path: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, path):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            yield entry.path


def _without_rows(
    client: Any, run_id: str, user_id: str, failures: tuple[type[Exception], ...], erased: TrackedErasure
) -> None:
    """Write a shared run's tables again without the user."""
    try:
        paths = [path for path in _files(client, run_id) if path.endswith((".json", ".jsonl", ".csv"))]
    except failures as failure:
        erased.unread.append(f"artifacts of run {run_id} ({str(failure)[:200]})")
        return
    for path in paths:
        try:
            trouble = _without_rows_in(client, run_id, path, user_id, erased)
        except failures as failure:
            trouble = str(failure)[:200]
        if trouble:
            erased.unread.append(f"{path} of run {run_id} ({trouble})")


def _without_rows_in(client: Any, run_id: str, path: str, user_id: str, erased: TrackedErasure) -> str:
    """Why it could not be searched, or empty."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(client.download_artifacts(run_id, path, folder))
        others, count, trouble = without_user(file.read_bytes(), file.suffix, user_id)
        if count:
            file.write_bytes(others)
            parent = PurePosixPath(path).parent.as_posix()
            client.log_artifact(run_id, str(file), None if parent == "." else parent)
            erased.table_rows += count
    return trouble


def _remove_folder(uri: str) -> None:
    """The empty folders that a local artifact location leaves behind."""
    parsed = urlparse(uri)
    if parsed.scheme not in ("", "file"):
        return
    folder = Path(unquote(parsed.path))
    for empty in (folder, folder.parent):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def _settle(uri: str, erased: TrackedErasure) -> str:
    """Overwrite what a SQLite file still holds in free pages; else say who has to."""
    if erased.soft:
        return f"the server keeps deleted runs; type there: mlflow gc --run-ids {','.join(erased.soft)}"
    if not any(erased.to_dict().values()):
        return ""
    if not uri.startswith("sqlite"):
        return "" if uri.startswith("file") else "the database keeps dead rows until it is vacuumed; type there: VACUUM"
    file = uri.partition("://")[2].removeprefix("/").partition("?")[0]
    try:
        with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as failure:
        return f"{file} is in use ({failure}): text may stay in its free pages; close MLflow and forget again"
    return ""
