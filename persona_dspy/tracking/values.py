"""What a tracker writes, as plain values: parameters, metrics and table row of a document, totals of a fleet."""

from __future__ import annotations

from typing import Any

from persona_dspy.core import Alignment, PersonaDocument, user_key

__all__ = ["COLUMNS", "Totals", "metrics_of", "params_of", "row_of"]

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
    values: list[tuple[str, float, int]] = []
    score = alignment.scores.initial
    for number, step in enumerate(alignment.steps, 1):
        for trial in step.trials:
            if trial.accepted and trial.challenger_score is not None:
                score = trial.challenger_score
        if score is not None:
            values.append(("held_out_score", score, number))
        if step.scores:
            values.append(("simulated_score", sum(step.scores) / len(step.scores), number))
        values.append(("step_calls", step.usage.calls, number))
    for name, value in alignment.scores.model_dump().items():
        if value is not None:
            values.append((f"score_{name}", value, 0))
    values += [("accepted", alignment.accepted, 0), ("gate_size", alignment.gate_size, 0)]
    for role, usage in alignment.usage.items():
        prefix = "" if role == "total" else f"{role}_"
        values += [(f"{prefix}calls", usage.calls, 0), (f"{prefix}tokens", usage.input_tokens + usage.output_tokens, 0)]
        values += [(f"{prefix}lm_seconds", usage.seconds, 0)]
        if usage.usd is not None:
            values.append((f"{prefix}usd", usage.usd, 0))
    return values


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


class Totals:
    """What the finished and failed users of a fleet come to, added one by one; for one thread at a time.

    Example:
        >>> totals = Totals()
        >>> totals.add(None)
        >>> totals.seen, totals.metrics()["failed"]
        (1, 1.0)
    """

    def __init__(self) -> None:
        self._sums = dict.fromkeys(("users", "failed", "calls", "tokens", "accepted", "gain", "scored"), 0.0)

    @property
    def seen(self) -> int:
        """Users, failed ones with them."""
        return int(self._sums["users"] + self._sums["failed"])

    def add(self, document: PersonaDocument | None) -> None:
        """Count a user; None = one who failed."""
        sums, record = self._sums, document.alignment if document else None
        sums["users" if document is not None else "failed"] += 1
        if record is not None:
            sums["calls"] += record.total.calls
            sums["tokens"] += record.total.input_tokens + record.total.output_tokens
            sums["accepted"] += record.accepted
            sums["gain"] += record.scores.gain or 0.0
            sums["scored"] += record.scores.gain is not None

    def metrics(self) -> dict[str, float]:
        """By name; ``mean_gain``: over no persona, where both scores are known."""
        sums = dict(self._sums)
        gain = sums.pop("gain") / max(1.0, sums.pop("scored"))
        return {**sums, "mean_gain": gain}
