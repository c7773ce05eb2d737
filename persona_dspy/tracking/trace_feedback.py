"""Feedback that people left on traces in MLflow, into the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from persona_dspy.core import Interaction, Signal, parse_time
from persona_dspy.errors import InputError, UserForgotten
from persona_dspy.store import Store
from persona_dspy.tracking.assessed import assessed_traces, spans_of
from persona_dspy.tracking.assessments import ODD, drafted_in, heard, joined
from persona_dspy.tracking.failures import explained
from persona_dspy.tracking.forgetting import USER_TAG
from persona_dspy.tracking.tracker import EXPERIMENT, MlflowTracker

__all__ = ["TracesRead", "learn_from_traces"]

_READ = "mlflow_assessments"  # metadata of an interaction: which assessments it was made from


@dataclass(kw_only=True)
class TracesRead:
    """What came of reading traces: ``traces`` with assessments of people, ``users`` among them, interactions that are
    ``new`` or say more than before (``changed``); ``unnamed``: traces that name no user; ``forgotten``: of users who
    were forgotten once; ``passed_over``: what could not be used, and why."""

    traces: int = 0
    new: int = 0
    changed: int = 0
    unnamed: int = 0
    forgotten: int = 0
    users: set[str] = field(default_factory=set[str])
    passed_over: list[str] = field(default_factory=list[str])

    def to_dict(self) -> dict[str, Any]:
        """Counts, JSON-safe."""
        counts = {name: getattr(self, name) for name in ("traces", "new", "changed", "unnamed", "forgotten")}
        return {**counts, "users": len(self.users), "passed_over": list(self.passed_over)}


def learn_from_traces(
    store: Store,
    uri: str,
    *,
    experiment: str = EXPERIMENT,
    since: object = None,
    fields: Sequence[str] | None = None,
    scale: tuple[float, float] = (1.0, 5.0),
) -> TracesRead:
    """Bring what people said on MLflow's traces into the store: by ``mlflow.log_feedback`` and ``log_expectation``, or
    with the Assess button. It counts for the users' next alignments. Each assessment is read once, however often this
    is called, and a call that was stopped is simply made again.

    Traces are those of our programs (``MlflowTracker.tracing()``), and of any autologged DSPy program whose traces name
    their user: ``mlflow.update_current_trace(metadata={"mlflow.trace.user": ...})``. Assessments of people are read
    (source HUMAN), not those of judges. Yes and no under a name such as "helpful" or "thumbs" are thumbs, numbers under
    one such as "rating" a rating; everything else, and each rationale, is a comment; an expectation is the response.

    Args:
        uri: tracking URI, such as ``http://localhost:5000``.
        experiment: name of the experiment that holds the traces.
        since: only traces from then on; anything ``parse_time`` takes.
        fields: names of query and response in autologged traces; by default the first input and the last output. Those
            of several responses, for programs that have them: a trace's expectation may have the name of one.
        scale: of ratings that do not say theirs.

    Raises:
        RunError: MLflow cannot be used, or there is no such experiment.
        StoreError: the store cannot be written; what was read before stays.
    """
    return _Reading(store, MlflowTracker(uri, experiment), parse_time(since), fields, scale).run()


class _Reading:
    def __init__(
        self,
        store: Store,
        tracker: MlflowTracker,
        since: datetime | None,
        fields: Sequence[str] | None,
        scale: tuple[float, float],
    ) -> None:
        self._store, self._tracker, self._since, self._fields, self._scale = store, tracker, since, fields, scale
        self._client, self._experiment_id = tracker.reading()
        self.read = TracesRead()

    def run(self) -> TracesRead:
        earliest = int(self._since.timestamp() * 1000) if self._since is not None else None
        with explained(self._tracker.uri, "gave no traces"):
            for info in assessed_traces(self._client, self._experiment_id, earliest):
                self._take(info)
        return self.read

    def _take(self, info: Any) -> None:
        tags = {**info.trace_metadata, **info.tags}
        user_id = tags.get(USER_TAG) or tags.get("mlflow.trace.user") or ""
        self.read.traces += 1
        if not user_id.strip():
            self.read.unnamed += 1
            return
        try:
            self._keep(info, tags, user_id)
        except UserForgotten:
            self.read.forgotten += 1
        except ODD as refused:
            self.read.passed_over.append(f"trace {info.trace_id}: {str(refused)[:200]}")

    def _keep(self, info: Any, tags: dict[str, str], user_id: str) -> None:
        state = self._store.state(user_id)
        if state.life and self._since is None:  # which traces are from before the forgetting, only the caller knows
            self.read.forgotten += 1
            return
        before = self._store.episode(user_id, info.trace_id)
        seen: list[str] = list(before.metadata.get(_READ) or []) if before is not None else []
        names = tuple(self._fields or ())[1:]
        said = heard(info.assessments, fields=names, scale=self._scale, seen=seen, known=before is not None)
        self.read.passed_over += [f"trace {info.trace_id}: {reason}" for reason in said.passed_over]
        if not said.ids:
            return
        drafted = drafted_in(spans_of(self._client, info.trace_id), self._fields)
        if drafted is None:
            hint = f"; expected {self._fields!r}" if self._fields else "; name them: fields=('question', 'answer')"
            raise InputError(f"no span with a query and a response by name{hint}")
        version = tags.get("persona_dspy.persona_version", "")
        given = Signal(draft=drafted.draft, version=int(version) if version.isdecimal() else None, trace=info.trace_id)
        interaction = Interaction(
            user_id=user_id,
            query=drafted.query,
            response=joined(names, before.response if before is not None else "", said.response)
            if said.response
            else "",
            time=datetime.fromtimestamp(info.request_time / 1000, UTC),
            id=info.trace_id,
            metadata={**drafted.inputs, _READ: [*seen, *said.ids]},
            signal=given.updated(said.signal),
        )
        if self._store.feedback(user_id, interaction, since=state).new:
            self.read.users.add(user_id)
            self.read.changed += before is not None
            self.read.new += before is None
