"""What a tracker writes of one user, as plain values. Owns: parameters, metrics and the table's row of a document.

Not here: writing them (tracking.py). Pure functions.
"""

from __future__ import annotations

from typing import Any

from persona_dspy.alignment import Alignment
from persona_dspy.call_folder import user_key
from persona_dspy.export import PersonaDocument

__all__ = ["COLUMNS", "metrics_of", "params_of", "row_of"]

COLUMNS = (
    *("user", "state", "score_without_persona", "score_initial", "score_final", "gate_size", "accepted"),
    *("calls", "tokens", "usd", "lm_seconds", "version"),
)


def params_of(document: PersonaDocument) -> dict[str, str]:
    """Name -> value, each at most 500 characters."""
    options = document.alignment.options if document.alignment else {}
    named = {"task": document.task, "model": document.model, "version": document.version, **options}
    return {k: str(v)[:500] for k, v in named.items() if v is not None}


def metrics_of(alignment: Alignment) -> list[tuple[str, float, int]]:
    """(name, value, step): held-out score after each step, batch scores, usage by role."""
    found: list[tuple[str, float, int]] = []
    score = alignment.scores.initial
    for number, step in enumerate(alignment.steps, 1):
        for trial in step.trials:
            if trial.accepted and trial.challenger_score is not None:
                score = trial.challenger_score
        if score is not None:
            found.append(("held_out_score", score, number))
        if step.scores:
            found.append(("simulated_score", sum(step.scores) / len(step.scores), number))
        found.append(("step_calls", step.usage.calls, number))
    for name, value in alignment.scores.model_dump().items():
        if value is not None:
            found.append((f"score_{name}", value, 0))
    found += [("accepted", alignment.accepted, 0), ("gate_size", alignment.gate_size, 0)]
    for role, usage in alignment.usage.items():
        prefix = "" if role == "total" else f"{role}_"
        found += [(f"{prefix}calls", usage.calls, 0), (f"{prefix}tokens", usage.input_tokens + usage.output_tokens, 0)]
        found += [(f"{prefix}lm_seconds", usage.seconds, 0)]
        if usage.usd is not None:
            found.append((f"{prefix}usd", usage.usd, 0))
    return found


def row_of(user_id: str, document: PersonaDocument | None) -> tuple[Any, ...]:
    """One row of the table, by ``COLUMNS``: a hashed name, scores in [0, 1], cost; no text of the user's."""
    record = document.alignment if document else None
    if document is None or record is None:
        return (user_key(user_id), "failed" if document is None else "done", *([None] * (len(COLUMNS) - 2)))
    scores, total = record.scores, record.total
    tokens = total.input_tokens + total.output_tokens
    return (
        user_key(user_id),
        "done",
        scores.without_persona,
        scores.initial,
        scores.final,
        record.gate_size,
        record.accepted,
        total.calls,
        tokens,
        total.usd,
        total.seconds,
        document.version,
    )
