"""Removing one user from an MLflow server or file: runs, artifacts, prompts, traces, rows of tables.

Autologging writes without our marks: what it wrote is searched by what the user wrote, and named.

MLflow deletes softly: a deleted run stays in the database, and its artifacts on disk, until ``mlflow gc``. With a
database URI this module does what that command does; a server is asked to delete, and has to run the command itself.
"""

from __future__ import annotations

import json
import mmap
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from persona_dspy.agent import AUTOLOG_TAG
from persona_dspy.core import temporary_folder, user_key
from persona_dspy.tracking.database_file import file_of
from persona_dspy.tracking.mentions import Mentions
from persona_dspy.tracking.tables import look_at, without_user

__all__ = ["KEY_TAG", "USER_TAG", "TrackedErasure", "forget_tracked"]

USER_TAG = "persona_dspy.user_id"
KEY_TAG = "persona_dspy.user"
"""As ``USER_TAG``, by ``user_key``: for what more people than the user's own may see."""
_ALL = 3  # mlflow.entities.ViewType.ALL: active and deleted runs
_PAGE = 500
_PATIENCE = 5.0  # seconds for those who read a SQLite file


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
    held: list[str] = field(default_factory=list[str])

    def hold(self, place: str, what: str) -> None:
        """Note that a place still holds ``what`` of the user; nothing where that is empty."""
        if what:
            self.held.append(f"{place} holds {what}")

    @property
    def held_note(self) -> str:
        """Which runs and traces still speak of the user, though nothing says that they are the user's."""
        if not self.held:
            return ""
        return f"not marked as this user's, so left for you to look at and remove: {', '.join(self.held)}"

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts by kind, named for people; kinds of which there was none are left out."""
        return {kind.replace("_", " "): count for kind, count in self.to_dict().items() if count}

    def to_dict(self) -> dict[str, int]:
        """Counts by kind."""
        return {name: getattr(self, name) for name in ("runs", "artifacts", "table_rows", "prompts", "traces")}


def forget_tracked(
    client: Any, uri: str, user_id: str, failures: tuple[type[Exception], ...], texts: Iterable[str] = ()
) -> TrackedErasure:
    """Remove all that is marked with the user's id or key, and the user's rows and documents in other runs.

    What is left is searched for the user's name and words: runs, traces, prompts and models that hold any are named in
    the note. So are artifacts that cannot be read; they stop nothing.

    Args:
        client: an ``MlflowClient`` on ``uri``.
        failures: what comes out of MLflow where another run's artifacts cannot be had.
        texts: what the user wrote, and what was written of the user.
    """
    erased, mentions = TrackedErasure(), Mentions(user_id, texts)
    experiments = [e.experiment_id for e in _pages(client.search_experiments, view_type=_ALL)]
    own_runs: list[Any] = []
    other_runs: list[Any] = []
    for run in _pages(client.search_runs, experiment_ids=experiments, run_view_type=_ALL):
        tags = run.data.tags
        own = _named(tags, user_id) or (tags.get("mlflow.autologging") == "dspy" and _answered_only(tags, user_id))
        (own_runs if own else other_runs).append(run)
    ids = {run.info.run_id for run in own_runs}
    traces = _traces(client, experiments, user_id, ids, erased)
    for run in own_runs:
        _run(client, run, erased)
    prompts: list[Any] = []
    for prompt in list(_pages(client.search_prompts)):
        if prompt.name == f"persona-{user_key(user_id)}" or _named(prompt.tags or {}, user_id):
            for version in list(_pages(client.search_prompt_versions, name=prompt.name)):
                client.delete_prompt_version(prompt.name, str(version.version))
            client.delete_prompt(prompt.name)
            erased.prompts += 1
        elif not {USER_TAG, KEY_TAG} & set(prompt.tags or {}):
            prompts.append(prompt)
    for run in other_runs:
        if not {USER_TAG, KEY_TAG} & set(run.data.tags):  # else another user's
            _shared_run(client, run, mentions, failures, erased)
    _search_traces(client, traces, mentions, failures, erased)
    for prompt in prompts:
        versions = _pages(client.search_prompt_versions, name=prompt.name)
        erased.hold(f"prompt {prompt.name}", mentions.found(" ".join(str(v.template) for v in versions)))
    _search_models(client, experiments, mentions, failures, erased)
    notes = (_settle(uri, erased, mentions), erased.held_note, look_at(erased.unread))
    erased.note = "; ".join(filter(None, notes))
    return erased


def _named(tags: Mapping[str, str], user_id: str) -> bool:
    return tags.get(USER_TAG) == user_id or tags.get(KEY_TAG) == user_key(user_id)


def _answered_only(tags: Mapping[str, str], user_id: str) -> bool:
    """Whether of the users whose answers are in a trace or run, this is the only one."""
    return {tag for tag in tags if tag.startswith(AUTOLOG_TAG)} == {AUTOLOG_TAG + user_key(user_id)}


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
    erased.artifacts += sum(1 for _ in _files(partial(client.list_artifacts, run_id)))
    client._tracking_client._get_artifact_repo(run_id).delete_artifacts()
    _remove_folder(run.info.artifact_uri)
    if run.info.lifecycle_stage != "deleted":
        client.delete_run(run_id)
    if hasattr(store, "_hard_delete_run"):
        store._hard_delete_run(run_id)
    else:
        erased.soft.append(run_id)
    erased.runs += 1


def _traces(client: Any, experiments: list[str], user_id: str, runs: set[str], erased: TrackedErasure) -> list[Any]:
    """Remove the user's traces; those of the others that do not say whose they are."""
    others: list[Any] = []
    for experiment in experiments:
        trace_ids: list[str] = []
        for trace in _pages(client.search_traces, locations=[experiment], include_spans=False):
            tags = {**trace.info.trace_metadata, **trace.info.tags}
            of_user = _named(tags, user_id) or tags.get("mlflow.trace.user") == user_id
            if of_user or _answered_only(tags, user_id) or tags.get("mlflow.sourceRun") in runs:
                trace_ids.append(trace.info.trace_id)
                if location := tags.get("mlflow.artifactLocation"):
                    client._tracing_client._get_artifact_repo_for_trace(trace.info).delete_artifacts()
                    _remove_folder(location)
            elif not {USER_TAG, KEY_TAG} & set(tags):
                others.append(trace.info)
        for start in range(0, len(trace_ids), 100):
            client.delete_traces(experiment_id=experiment, trace_ids=trace_ids[start : start + 100])
        erased.traces += len(trace_ids)
    return others


def _search_traces(
    client: Any, traces: list[Any], mentions: Mentions, failures: tuple[type[Exception], ...], erased: TrackedErasure
) -> None:
    for info in traces:
        try:
            text = client.get_trace(info.trace_id, display=False).to_json()
        except failures as failure:
            erased.unread.append(f"trace {info.trace_id} ({str(failure)[:200]})")
            continue
        erased.hold(f"trace {info.trace_id} of experiment {info.experiment_id}", mentions.found(text))


def _search_models(
    client: Any,
    experiments: list[str],
    mentions: Mentions,
    failures: tuple[type[Exception], ...],
    erased: TrackedErasure,
) -> None:
    """Logged models, which pickle a program with what it last sent to LMs."""
    for model in _logged_models(client, experiments):
        name = f"model {model.name} ({model.model_id})"
        erased.hold(name, mentions.found(str([model.tags, model.params])))
        repository = client._tracking_client._get_artifact_repo(model.model_id, resource="logged_model")
        try:
            for file in _files(repository.list_artifacts):
                with temporary_folder() as folder:
                    content = Path(repository.download_artifacts(file, str(folder))).read_bytes()
                erased.hold(f"{file} of {name}", mentions.found_in_bytes(content))
        except failures as failure:
            erased.unread.append(f"{name} ({str(failure)[:200]})")


def _logged_models(client: Any, experiments: list[str]) -> Iterator[Any]:
    token = None
    while experiments:
        page = client.search_logged_models(experiments, page_token=token)
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return


def _files(listed: Callable[[str | None], Any], path: str | None = None) -> Iterator[str]:
    for entry in listed(path):
        if entry.is_dir:
            yield from _files(listed, entry.path)
        else:
            yield entry.path


def _shared_run(
    client: Any, run: Any, mentions: Mentions, failures: tuple[type[Exception], ...], erased: TrackedErasure
) -> None:
    """Write the files of a run that is not one user's again without the user, and note what still holds the user."""
    run_id = run.info.run_id
    written = [*run.data.params.values(), *run.data.tags.values(), run.info.run_name or ""]
    erased.hold(f"run {run_id} (its parameters or tags)", mentions.found(json.dumps(written, ensure_ascii=False)))
    try:
        paths = list(_files(partial(client.list_artifacts, run_id)))
    except failures as failure:
        erased.unread.append(f"artifacts of run {run_id} ({str(failure)[:200]})")
        return
    for path in paths:
        try:
            trouble = _without_rows_in(client, run_id, path, mentions, erased)
        except failures as failure:
            trouble = str(failure)[:200]
        if trouble:
            erased.unread.append(f"{path} of run {run_id} ({trouble})")


def _without_rows_in(client: Any, run_id: str, path: str, mentions: Mentions, erased: TrackedErasure) -> str:
    """Why it could not be searched, or empty."""
    with temporary_folder() as folder:
        file = Path(client.download_artifacts(run_id, path, str(folder)))
        content = file.read_bytes()
        if file.suffix not in (".json", ".jsonl", ".csv"):
            erased.hold(f"{path} of run {run_id}", mentions.found_in_bytes(content))
            return ""
        pruned = without_user(content, file.suffix, mentions.user_id)
        if pruned.content is None:
            client._tracking_client._get_artifact_repo(run_id).delete_artifacts(path)
            erased.artifacts += 1
        elif pruned.removed:
            file.write_bytes(pruned.content)
            parent = PurePosixPath(path).parent.as_posix()
            client.log_artifact(run_id, str(file), None if parent == "." else parent)
            erased.table_rows += pruned.removed
        erased.hold(f"{path} of run {run_id}", mentions.found(pruned.rest))
    return pruned.trouble


def _remove_folder(uri: str) -> None:
    """The empty folders that a local artifact location leaves behind."""
    parsed = urlparse(uri)
    if parsed.scheme not in ("", "file"):
        return
    folder = Path(unquote(parsed.path))
    for empty in (folder, folder.parent):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def _settle(uri: str, erased: TrackedErasure, mentions: Mentions) -> str:
    """Overwrite what a SQLite file still holds in free pages; else say who has to."""
    if erased.soft:
        return f"the server keeps deleted runs; type there: mlflow gc --run-ids {','.join(erased.soft)}"
    removed = any(erased.to_dict().values())
    file = file_of(uri)
    if file is None:
        rows = removed and not uri.startswith(("file", "http"))
        return "the database keeps dead rows until it is vacuumed; type there: VACUUM" if rows else ""
    if not removed and not _in_file(file, mentions):  # what an earlier call could not overwrite
        return ""
    try:
        with closing(sqlite3.connect(file, timeout=_PATIENCE, isolation_level=None)) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("VACUUM")
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as failure:
        busy, reason = 1, str(failure)
    else:
        reason = "a reader looks at its old state"
    if busy:
        return (
            f"{file} is in use ({reason}; waited {_PATIENCE:.0f} seconds): text of this user is still in its free "
            "pages; close MLflow and whoever reads it, and forget again"
        )
    return ""


def _in_file(file: Path, mentions: Mentions) -> bool:
    """Whether a database's file or log holds the user's key or id in any byte."""
    names = [user_key(mentions.user_id).encode(), mentions.user_id.encode("utf-8", "replace")]
    for part in (file, file.with_name(f"{file.name}-wal")):
        if part.is_file() and part.stat().st_size:
            with part.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if any(content.find(name) >= 0 for name in names):
                    return True
    return False
