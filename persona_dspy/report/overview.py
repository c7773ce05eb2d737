"""A fleet in a few numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from persona_dspy.core import Alignment, Interval, Paired, mean_interval, paired_difference
from persona_dspy.report.sources import Subject
from persona_dspy.report.user_view import alignment_of

__all__ = ["Overview", "overview", "pairs"]

_LABELS = re.compile(r":\s*(Literal|rating)\[.*", re.DOTALL)  # each user's own labels are no task of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A fleet at a glance. Scores are means over users on their held-out interactions, in [0, 1], higher is better,
    each user counting alike; None where nothing was held out. ``gain``: aligned minus without persona, paired.

    ``changed``: users with at least one accepted edit. ``usd``: None where no call's price is known.
    """

    users: int
    scored: int
    changed: int
    accepted: int
    before: Interval | None
    after: Interval | None
    gain: Paired | None
    calls: int
    tokens: int
    cached_tokens: int
    lm_seconds: float
    usd: float | None
    tasks: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def calls_per_user(self) -> float:
        return self.calls / self.users

    @property
    def usd_per_change(self) -> float | None:
        """What an accepted edit cost, refused ones included."""
        return None if self.usd is None or not self.accepted else self.usd / self.accepted


def pairs(subjects: Sequence[Subject]) -> dict[str, tuple[float, float]]:
    """User -> held-out score (without persona, with the aligned one), for users who have both."""
    scores: dict[str, tuple[float, float]] = {}
    for subject in subjects:
        record = alignment_of(subject)
        if record and record.scores.without_persona is not None and record.scores.final is not None:
            scores[subject.user_id] = (record.scores.without_persona, record.scores.final)
    return scores


def overview(subjects: Sequence[Subject]) -> Overview:
    """Sums and means over users. What a user cost is all recorded alignments of that user, not the last one alone."""
    last = [record for record in map(alignment_of, subjects) if record]
    spent = [record.total for subject in subjects for record in _records(subject)]
    prices = [u.usd for u in spent if u.usd is not None]
    scores = pairs(subjects)
    return Overview(
        users=len(subjects),
        scored=len(scores),
        changed=sum(record.accepted > 0 for record in last),
        accepted=sum(record.accepted for record in last),
        before=mean_interval({u: [b] for u, (b, _) in scores.items()}) if scores else None,
        after=mean_interval({u: [a] for u, (_, a) in scores.items()}) if scores else None,
        gain=paired_difference(
            {(u, ""): a for u, (_, a) in scores.items()}, {(u, ""): b for u, (b, _) in scores.items()}
        ),
        calls=sum(u.calls for u in spent),
        tokens=sum(u.input_tokens + u.output_tokens for u in spent),
        cached_tokens=sum(u.cached_tokens for u in spent),
        lm_seconds=sum(u.seconds for u in spent),
        usd=sum(prices) if prices else None,
        tasks=_commonest([_LABELS.sub("", s.document.task or "") for s in subjects]),
        models=_commonest([s.document.model for s in subjects]),
    )


def _records(subject: Subject) -> list[Alignment]:
    """Each alignment once: a version that was rolled back to, or only locked, may carry its parent's record."""
    records: list[Alignment] = []
    for document in subject.versions:
        if document.alignment is not None and document.alignment not in records:
            records.append(document.alignment)
    return records


def _commonest(values: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(value for value, _ in Counter(v for v in values if v).most_common())
