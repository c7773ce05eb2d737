"""Runs, users and traces written to MLflow.

The fleet knows trackers only as things that get finished users. MLflow works in a thread of its own behind a bounded
queue: when it is slow or down, the fleet goes on and what is missing is counted.
"""

from __future__ import annotations

import os
import queue
import shlex
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_dspy.core import (
    Alignment,
    Interaction,
    PersonaDocument,
    remove_left_folders,
    scrubbed,
    temporary_folder,
    user_key,
)
from persona_dspy.errors import InputError, RunError
from persona_dspy.report import FleetFigures, curve, learning_curve_json
from persona_dspy.tracking.assessed import write_assessments
from persona_dspy.tracking.database_file import absolute_uri, file_of, make_database, opened_by, set_aside_broken
from persona_dspy.tracking.failures import explained, mlflow_failures, reason_of
from persona_dspy.tracking.prompts import move_prompt, register_prompt
from persona_dspy.tracking.protocol import Ended, NullTracker, Tracker, is_off, prompt_name
from persona_dspy.tracking.systems import dataset_input, description, run_name, write_systems
from persona_dspy.tracking.users_table import UsersTable
from persona_dspy.tracking.values import Totals, metrics_of, params_of

if TYPE_CHECKING:
    from persona_dspy.agent import Trace
    from persona_dspy.tracking.forgetting import TrackedErasure
    from persona_dspy.tracking.traces import TraceSender

__all__ = ["MlflowTracker", "NullTracker", "Runs", "Tracker", "prompt_name", "tracker_for"]

EXPERIMENT = "persona-dspy"
Runs = Literal["all", "sampled", "none"]
_FIRST, _EACH = 20, 50  # "sampled": the first users, then one in so many
_QUEUE = 256
_EACH_USER = 100  # users after each of whom the parent run's curves get a point; then by time
_BATCH = 900  # MLflow takes 1,000 values at once
_EVERY = 5.0  # seconds between two points of the parent run's curves
_PATIENCE = 120.0  # seconds at the end in which at least one user is written


class MlflowTracker:
    """A parent run for the batch: curves over users, a table ``users.csv`` with a row a user (hashed names, scores,
    cost; no text), and nameless figures. Child runs have step metrics, the persona JSON, the alignment record and its
    learning curve as artifacts. Uses ``MlflowClient`` only, never the fluent API's global state.

    Args:
        uri: tracking URI, such as ``sqlite:///mlflow.db`` or ``http://localhost:5000``.
        runs: who gets a child run: ``all``, ``sampled`` = the first 20 users and one in 50 of the others, ``none``.
        register: put every persona into the Prompt Registry, alias ``current``.
        optional: where MLflow cannot be used, ``begin`` notes so in ``trouble``, and nothing is written.

    Attributes:
        trouble: what could not be written and why; empty where all is well.

    Raises:
        RunError: from ``begin``, where the server, the file or the folder for temporary files cannot be used.
    """

    def __init__(
        self,
        uri: str = "sqlite:///mlflow.db",
        experiment: str = EXPERIMENT,
        *,
        runs: Runs = "sampled",
        register: bool = False,
        optional: bool = False,
    ) -> None:
        if runs not in ("all", "sampled", "none"):
            raise InputError(f"runs {runs!r}: expected 'all', 'sampled' or 'none'")
        self.uri, self.experiment, self.runs, self.register = uri, experiment, runs, register
        self._absolute_uri = absolute_uri(uri)
        self.optional, self.set_aside = optional, ""
        self.run_id = self.trouble = ""
        self.lost = self._written = 0
        self._over = False
        self._client: Any = None
        self._experiment_id = ""
        self._queue: queue.Queue[tuple[str, PersonaDocument | None, str, bool] | None] = queue.Queue(_QUEUE)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._totals = Totals()
        self._figures = FleetFigures()
        self._table: UsersTable | None = None
        self._points: list[tuple[str, float, int]] = []

    def begin(self, params: Mapping[str, Any]) -> None:
        try:
            client = self._connect()
        except RunError as failure:
            if not self.optional or failure.__cause__ is None:
                raise
            self.trouble = f"no runs are written: {failure}"
            return
        self._table, self._totals = UsersTable(), Totals()
        self._points = []
        tags = {"mlflow.note.content": scrubbed(description(params))}
        name = run_name(params, time.strftime("%Y-%m-%d %H:%M:%S"))
        self.run_id = client.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id
        if (data := dataset_input(params)) is not None:
            client.log_inputs(self.run_id, [data])
        self._log(self.run_id, params={k: scrubbed(str(v))[:500] for k, v in params.items() if v is not None})
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow-writer")
        self._thread.start()

    def user(self, user_id: str, document: PersonaDocument | None, error: str = "") -> None:
        if self._thread is None:
            return
        with self._lock:
            number = self._totals.seen
            self._totals.add(document)
            if number < _EACH_USER:
                self._points += [(name, value, number + 1) for name, value in self._totals.metrics().items()]
            if self._table is not None:
                self._table.add(user_id, document)
            self._figures.add(document.alignment if document else None)
        child = self.runs == "all" or (self.runs == "sampled" and (number < _FIRST or number % _EACH == 0))
        if not child and not (self.register and document is not None):
            return
        try:
            self._queue.put((user_id, document, error, child), timeout=0.0 if self.lost else 10.0)
        except queue.Full:
            self.lost += 1

    def systems(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._thread is not None:
            self._safely(write_systems, self._connect(), self._experiment_id, self.run_id, rows)

    def end(self, metrics: Mapping[str, float], ended: Ended = "FINISHED") -> None:
        if self._thread is None or self._table is None:
            return
        if not self._waited(self._thread):
            self.trouble = self.trouble or "MLflow did not answer for minutes"
            return
        self._thread = None
        self._table.close()
        self.lost += self._queue.qsize()  # above 0 where the thread ended by what nobody expected of MLflow
        missing = f"{self.lost} users' runs are missing: MLflow was too slow or down." if self.lost else ""
        self.trouble = " ".join(filter(None, (missing, self.trouble, self._table.trouble)))
        self._safely(self._finish, metrics, self._table.path)
        self._safely(lambda: self._connect().set_terminated(self.run_id, ended))
        self._over = True
        self._table.remove()

    def _waited(self, thread: threading.Thread) -> bool:
        """Whether all is written; waits as long as users are, one in ``_PATIENCE`` seconds at least."""
        end_sent, written, since = False, self._written, time.monotonic()
        while thread.is_alive() and time.monotonic() - since < _PATIENCE:
            if end_sent:
                thread.join(1.0)
            else:
                with suppress(queue.Full):
                    self._queue.put(None, timeout=1.0)
                    end_sent = True
            if self._written != written:
                written, since = self._written, time.monotonic()
        return not thread.is_alive()

    @property
    def _shown_uri(self) -> str:
        return scrubbed(self.uri)

    @property
    def where(self) -> str:
        file = "://" in self.uri and not self.uri.startswith("http")
        if self.trouble and not self.run_id:
            return self.trouble
        uri = self._shown_uri
        page = f"/#/experiments/{self._experiment_id}/runs" if self._experiment_id else ""
        address = f"{opened_by(uri)}, then http://127.0.0.1:5000{page}" if file else uri.rstrip("/") + page
        return f"{address} ({self.trouble})" if self.trouble else address

    def trace(self, trace: Trace) -> str:
        """Write down how one answer came about, as a trace with spans; its id. Takes some 50 ms: see ``tracing``.

        The trace is tagged with the user's id, so that ``forget`` finds it.

        Raises:
            RunError: the server or file cannot be used.
        """
        from mlflow.entities import Span, TraceInfo, TraceLocation, TraceState
        from mlflow.tracing.client import TracingClient

        from persona_dspy.tracking.traces import information, wire_spans

        self._connect()
        trace_id, spans = wire_spans(trace)
        where = TraceLocation.from_experiment_id(self._experiment_id)
        info = TraceInfo(trace_id=trace_id, trace_location=where, state=TraceState.OK, **information(trace))
        client = TracingClient(self._absolute_uri)
        with explained(self.uri, "did not take a trace"):
            client.start_trace(info)
            client.log_spans(self._experiment_id, [Span.from_dict(span) for span in spans])
        return trace_id

    def assess(self, said: Interaction) -> int:
        """Write what a user said of an answer onto the answer's trace, as MLflow's assessments; how many. Takes some
        50 ms: under ``tracing`` it is done in the background.

        Args:
            said: its signal is what was said, its id that of the trace.

        Raises:
            RunError: the server or file cannot be used, or has no such trace.
        """
        self._connect()
        with explained(self.uri, "did not take an assessment"):
            return write_assessments(self._absolute_uri, said)

    def reading(self) -> tuple[Any, str]:
        """MLflow's client, and the id of an experiment that is there.

        Raises:
            RunError: the server or file cannot be used, or has no such experiment.
        """
        return self._connect(make=False), self._experiment_id

    @contextmanager
    def tracing(self, *, simulated: bool = False) -> Generator[TraceSender]:
        """Every answer of a PersonaAgent or personalized program inside becomes an MLflow trace, in the background, and
        what ``feedback`` is told of one an assessment on its trace. A service takes the sender: ``ServiceOptions``.

        Args:
            simulated: also the answers to past interactions that alignment asks for; each is a trace too.

        Raises:
            RunError: at the start, where the server or file cannot be used. Later trouble ends no answer: what is
                missing is counted in the sender's ``lost``, the first reason in its ``trouble``.
        """
        import dspy

        from persona_dspy.tracking.traces import TraceSender

        self._connect()
        with (
            TraceSender(self.trace, simulated=simulated, send_said=self.assess, tracker=self) as sender,
            dspy.context(persona_traces=sender),
        ):
            yield sender

    def roll_back_prompt(self, user_id: str, version: int) -> None:
        """Move the alias ``current`` of a user's prompt to persona version ``version``.

        Raises:
            InputError: that version was not registered.
            RunError: the server or file cannot be used.
        """
        with explained(self.uri, "did not move an alias"):
            move_prompt(self._connect(), user_id, version)

    def forget(self, user_id: str, texts: Iterable[str] = ()) -> TrackedErasure:
        """Remove a user's runs with artifacts, prompts, traces and rows of tables: from a database for good; a server
        marks runs as deleted until its owner runs ``mlflow gc``. Says how many of each, and what is left to do.

        Args:
            texts: what the user wrote. Runs, traces and models that nobody marked as the user's, such as those of
                ``mlflow.dspy.autolog``, are searched for it, and named in the note.

        Raises:
            RunError: the server or file cannot be used, or was lost meanwhile: part of it may be removed.
        """
        from persona_dspy.tracking.forgetting import forget_tracked

        client, failures = self._connect(), mlflow_failures()
        try:
            return forget_tracked(client, self._absolute_uri, user_id, (*failures, ImportError), texts)
        except failures as failure:
            raise RunError(
                f"MLflow at {self._shown_uri!r} did not forget {user_id!r} wholly: {reason_of(failure)}; expected a "
                "server or file that nobody holds: forget again"
            ) from failure

    def _work(self) -> None:
        curves_at = time.monotonic()
        while True:
            try:
                task = self._queue.get(timeout=_EVERY)
            except queue.Empty:
                self._safely(self._curves)
                continue
            if task is None:
                return
            user_id, document, error, child = task
            well = self._safely(self._child, user_id, document, error) if child else True
            if self.register and document is not None:
                well = self._safely(register_prompt, self._connect(), self.run_id, document) and well
            self.lost += not well
            self._written += well
            if time.monotonic() - curves_at > _EVERY:
                self._safely(self._curves)
                curves_at = time.monotonic()

    def _safely(self, work: Any, *arguments: Any) -> bool:
        """Whether it went well; tracking that fails must not end the fleet."""
        try:
            work(*arguments)
        except mlflow_failures() as failure:
            self.trouble = self.trouble or f"MLflow failed: {reason_of(failure)}"
            return False
        return True

    def _child(self, user_id: str, document: PersonaDocument | None, error: str) -> None:
        client = self._connect()
        tags = {"mlflow.parentRunId": self.run_id, "persona_dspy.user_id": user_id, "mlflow.runName": user_id[:250]}
        tags["persona_dspy.user"] = user_key(user_id)
        if document is not None:
            tags["persona_dspy.persona_version"] = str(document.version)
        if document is None:
            run = client.create_run(self._experiment_id, tags={**tags, "persona_dspy.error": scrubbed(error)[:5000]})
            client.set_terminated(run.info.run_id, "FAILED")
            return
        run = client.create_run(self._experiment_id, tags=tags).info
        child = run.run_id
        alignment = document.alignment or Alignment(user_id=user_id)
        self._log(child, params=params_of(document), metrics=metrics_of(alignment))
        with temporary_folder() as folder:
            Path(folder, "persona.json").write_text(document.to_json(), encoding="utf-8")
            Path(folder, "alignment.json").write_text(alignment.model_dump_json(indent=2), encoding="utf-8")
            with suppress(RunError):  # without Plotly; the parent run says so
                drawn = learning_curve_json(curve(alignment), without_persona=alignment.scores.without_persona)
                Path(folder, "learning_curve.json").write_text(drawn, encoding="utf-8")
            self._upload(run, str(folder))
        client.set_terminated(child)

    def _upload(self, run: Any, folder: str) -> None:
        """As ``MlflowClient.log_artifacts``, which asks for the run again to learn where its artifacts are."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(run.artifact_uri, tracking_uri=self._absolute_uri).log_artifacts(folder)

    def _curves(self) -> None:
        """The totals so far, by how many users they are of."""
        with self._lock:
            totals, step = self._totals.metrics(), self._totals.seen
            points, self._points = self._points, []
        if step > _EACH_USER:
            points += [(name, value, step) for name, value in totals.items()]
        for start in range(0, len(points), _BATCH):
            self._log(self.run_id, metrics=points[start : start + _BATCH])

    def _finish(self, metrics: Mapping[str, float], table: Path) -> None:
        self._curves()
        seen = self._totals.seen
        known = self._totals.metrics() if seen else {}
        self._log(self.run_id, metrics=[(name, value, seen) for name, value in metrics.items() if name not in known])
        client = self._connect()
        if self.trouble:
            client.set_tag(self.run_id, "persona_dspy.trouble", self.trouble[:5000])
        if not seen:  # an evaluation has systems, not users who were compiled
            return
        client.log_artifact(self.run_id, str(table))
        try:
            for name, text in self._figures.files().items():
                client.log_text(self.run_id, text, f"figures/{name}")
        except RunError as missing:
            client.set_tag(self.run_id, "persona_dspy.report.figures", str(missing))

    def _connect(self, *, make: bool = True) -> Any:
        if self._client is not None:
            return self._client
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own 7 hold on for minutes
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # spans make MLflow import it: settings.py
        from mlflow import MlflowClient

        try:
            self._whole_file()
            client = MlflowClient(tracking_uri=self._absolute_uri, registry_uri=self._absolute_uri)
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                raise RunError(
                    f"MLflow experiment {self.experiment!r} was deleted; expected one that is active, type: "
                    f"MLFLOW_TRACKING_URI={shlex.quote(self._shown_uri)} mlflow experiments restore --experiment-id "
                    f"{experiment.experiment_id}; --tracking-uri off goes without"
                )
            if experiment is None and not make:
                names = sorted(one.name for one in client.search_experiments())
                raise RunError(f"MLflow experiment {self.experiment!r}: expected one of {names[:20]}")
            self._experiment_id = (
                experiment.experiment_id if experiment else client.create_experiment(self.experiment, self._artifacts())
            )
        except mlflow_failures() as failure:
            raise RunError(
                f"MLflow tracking URI {self._shown_uri!r} cannot be used ({reason_of(failure)}); expected a running "
                "server or a file such as sqlite:///mlflow.db; --tracking-uri off goes without"
            ) from failure
        self._client = client
        return client

    def _whole_file(self) -> None:
        """A new SQLite file is made beside, then renamed; half of one, left by a process that was killed, is set
        aside."""
        file = file_of(self.uri)
        if file is None or not file.parent.is_dir():
            return
        if (aside := set_aside_broken(file)) is not None:
            self.set_aside = f"{file} was not whole, as an interrupted MLflow leaves it, and is now {aside}"
            warnings.warn(self.set_aside, stacklevel=4)
        if not file.exists():
            remove_left_folders(file.parent)
            make_database(file)

    def abandon(self) -> None:
        """Mark the run as KILLED, now: the process ends without waiting for what is still to be written."""
        if self.run_id and self._client is not None and not self._over:
            self._client.set_terminated(self.run_id, "KILLED")

    def _artifacts(self) -> str | None:
        """Artifacts lie beside a SQLite file, wherever the program was started; a server decides for itself."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return (Path(self.uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()

    def _log(
        self,
        run_id: str,
        *,
        params: Mapping[str, str] | None = None,
        metrics: list[tuple[str, float, int]] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self._connect().log_batch(
            run_id,
            metrics=[Metric(name, float(value), now, step) for name, value, step in metrics or []],
            params=[Param(name, value) for name, value in (params or {}).items()],
        )


def tracker_for(uri: str | None, *, runs: Runs = "sampled", register: bool = False) -> Tracker:
    """The tracker of a ``--tracking-uri``: ``off`` = none, None = a SQLite file ``mlflow.db`` in this folder, without
    which work goes on."""
    if is_off(uri):
        return NullTracker()
    return MlflowTracker(uri or "sqlite:///mlflow.db", runs=runs, register=register, optional=uri is None)
