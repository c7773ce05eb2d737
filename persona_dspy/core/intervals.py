"""How sure a score is: bootstrap intervals over users, paired differences.

Users are what is drawn anew, not queries: queries of one user are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from persona_dspy.errors import InputError

__all__ = ["Interval", "Paired", "mean_interval", "paired_difference"]

RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over all queries and its bounds; ``low == high == value`` where there is one user only."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A difference on the same users and queries, above 0 = the first is better, and users won, lost and tied."""

    difference: Interval
    won: int
    lost: int
    tied: int


def mean_interval(
    by_user: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Mean over all values, with a percentile bootstrap interval over users (``scipy.stats.bootstrap``).

    Args:
        by_user: user -> that user's values, at least one value in all.
        resamples: how often users are drawn anew.
        level: in (0, 1).

    Raises:
        InputError: no values.

    Example:
        >>> found = mean_interval({"a": [1, 1], "b": [0], "c": [1]})
        >>> found.value, found.low <= 0.75 <= found.high
        (0.75, True)
    """
    users = [values for values in by_user.values() if values]
    if not users:
        raise InputError("by_user {}: expected at least one user with one value")
    import numpy as np

    sums = np.array([float(sum(values)) for values in users])
    counts = np.array([float(len(values)) for values in users])
    value = float(sums.sum() / counts.sum())
    if len(users) == 1 or np.ptp(sums / counts) == 0.0:
        return Interval(value=value, low=value, high=value)
    from scipy.stats import bootstrap

    def pooled(s: Any, n: Any, axis: int = -1) -> Any:
        return s.sum(axis=axis) / n.sum(axis=axis)

    ends = bootstrap(
        (sums, counts),
        pooled,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value=value, low=float(ends.low), high=float(ends.high))


def paired_difference(
    mine: Mapping[tuple[str, str], float],
    theirs: Mapping[tuple[str, str], float],
    *,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Paired | None:
    """How much better ``mine`` is than ``theirs`` on the (user, query) pairs that both have; None without any.

    Args:
        mine, theirs: (user, query) -> value.
        higher_is_better: False for errors: the difference is turned round.

    Example:
        >>> found = paired_difference({("a", "1"): 1.0, ("b", "1"): 0.5}, {("a", "1"): 0.0, ("b", "1"): 0.5})
        >>> found.difference.value, found.won, found.lost, found.tied
        (0.5, 1, 0, 1)
    """
    sign = 1.0 if higher_is_better else -1.0
    by_user: dict[str, list[float]] = {}
    for (user, query), value in mine.items():
        if (user, query) in theirs:
            by_user.setdefault(user, []).append(sign * (value - theirs[user, query]))
    if not by_user:
        return None
    means = [round(fmean(values), 12) for values in by_user.values()]
    won, lost = sum(m > 0 for m in means), sum(m < 0 for m in means)
    return Paired(difference=mean_interval(by_user, seed=seed), won=won, lost=lost, tied=len(means) - won - lost)
