"""Assessments written onto MLflow's traces, and the traces that have some. MLflow's errors pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from persona_dspy.core import Interaction
from persona_dspy.errors import InputError
from persona_dspy.tracking.assessments import OWN_MARK, assessments_of

__all__ = ["assessed_traces", "spans_of", "write_assessments"]

_PAGE = 100  # traces read at once


def write_assessments(uri: str, said: Interaction) -> int:
    """Write what a user said onto the trace of the interaction's id; how many assessments that is."""
    from mlflow.entities import AssessmentSource, Expectation, Feedback
    from mlflow.tracing.client import TracingClient

    source, client = AssessmentSource("HUMAN", said.user_id[:250]), TracingClient(uri)
    told = assessments_of(said)
    for one in told:
        name, value, marked = one["name"], one["value"], {**one["metadata"], OWN_MARK: "1"}
        if one["kind"] == "expectation":
            made: Any = Expectation(name, value, source, metadata=marked)
        else:
            made = Feedback(name, value, source=source, metadata=marked, rationale=one["rationale"])
        client.log_assessment(said.id, made)
    return len(told)


def assessed_traces(client: Any, experiment_id: str, earliest: int | None = None) -> Iterator[Any]:
    """``TraceInfo`` of each trace that people assessed, oldest first; ``earliest`` in milliseconds."""
    token: str | None = None
    seen = set[str]()
    while True:
        page = client.search_traces(
            locations=[experiment_id],
            filter_string=None if earliest is None else f"attributes.timestamp_ms >= {earliest}",
            include_spans=False,
            order_by=["timestamp_ms ASC"],
            max_results=_PAGE,
            page_token=token,
        )
        for trace in page:
            if any(one.source.source_type == "HUMAN" for one in trace.info.assessments or []):
                yield trace.info
        token = page.token
        if not token or token in seen:  # a server that names the same page again would be asked for ever
            return
        seen.add(token)


def spans_of(client: Any, trace_id: str) -> list[Any]:
    """The spans of a trace, outermost first.

    Raises:
        InputError: it has none that can be read: whoever wrote it was killed meanwhile, or its artifacts are gone.
    """
    from mlflow.exceptions import MlflowException

    try:
        spans = client.get_trace(trace_id).data.spans
    except (MlflowException, AttributeError) as failure:  # MLflow's own error about a damaged trace lacks attributes
        if getattr(failure, "error_code", "") in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
            raise
        raise InputError(f"its spans cannot be read ({str(failure)[:120]}); expected a whole trace") from None
    by_id, depths = {span.span_id: span for span in spans}, dict[str, int]()
    for span in spans:
        above, depth = span.parent_id, 0
        while above in by_id and depth < len(spans):
            above, depth = by_id[above].parent_id, depth + 1
        depths[span.span_id] = depth
    return sorted(spans, key=lambda span: (depths[span.span_id], span.start_time_ns))
