"""Whether one system is better than another, or the difference is noise: everything is paired and drawn over users."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona_dspy.core import Interval, Paired, paired_difference
from persona_dspy.errors import InputError

__all__ = ["Comparison", "compare", "holm", "power", "smallest_difference"]

RESAMPLES = 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """System ``a`` against system ``b`` on the queries that both answered.

    Args:
        paired: the mean difference over queries with its 95% bootstrap interval over users (above 0 = ``a`` is better),
            and how many users ``a`` won, lost and tied.
        p: two-sided permutation test: the signs of users' differences are flipped, all ways up to 13 users, else
            9,999 of them at random. The smallest p that n users can show is 2 / 2**n.
        p_adjusted: the same by Holm's method over all comparisons of one table.
        effect: Cohen's d of the users' mean differences (mean / standard deviation); 0 where all users tie, and None
            where the standard deviation is 0 otherwise.
        spread: that standard deviation, in the metric's own unit; None for one user.
    """

    a: str
    b: str
    paired: Paired
    p: float
    p_adjusted: float
    effect: float | None
    spread: float | None

    @property
    def users(self) -> int:
        return self.paired.won + self.paired.lost + self.paired.tied

    @property
    def difference(self) -> Interval:
        return self.paired.difference


def compare(
    a: str,
    b: str,
    values: Mapping[str, Mapping[tuple[str, str], float]],
    *,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Comparison | None:
    """How much better ``a`` is than ``b``; None where no query was answered by both.

    Args:
        values: system -> (user, query) -> value of the metric.
        higher_is_better: False for errors: the difference is turned round.

    Example:
        >>> values = {"a": {(f"u{n}", "q"): 1.0 for n in range(8)}, "b": {(f"u{n}", "q"): 0.0 for n in range(8)}}
        >>> found = compare("a", "b", values)
        >>> found.difference.value, found.p  # 2 of 2**8 ways to flip are as far out
        (1.0, 0.0078125)
    """
    paired = paired_difference(values[a], values[b], higher_is_better=higher_is_better, seed=seed)
    if paired is None:
        return None
    sign = 1.0 if higher_is_better else -1.0
    by_user: dict[str, list[float]] = {}
    for (user, query), value in values[a].items():
        if (user, query) in values[b]:
            by_user.setdefault(user, []).append(sign * (value - values[b][user, query]))
    p = _permuted(list(by_user.values()), seed)
    means = [sum(differences) / len(differences) for differences in by_user.values()]
    mean = sum(means) / len(means)
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / (len(means) - 1)) if len(means) > 1 else None
    effect = 0.0 if not any(means) else mean / spread if spread else None
    return Comparison(a=a, b=b, paired=paired, p=p, p_adjusted=p, effect=effect, spread=spread)


def _permuted(users: Sequence[Sequence[float]], seed: int) -> float:
    """Of the pooled mean, users' differences being swapped whole."""
    import numpy as np
    from scipy.stats import permutation_test

    sums = np.array([float(sum(differences)) for differences in users])
    if len(sums) < 2 or not sums.any():
        return 1.0

    def difference(one: Any, other: Any, axis: int = -1) -> Any:
        return (one - other).sum(axis=axis)

    test = permutation_test(
        (sums, np.zeros_like(sums)),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with ``p_adjusted`` by Holm's step-down method: the chance of even one false alarm among all of
    them stays at the level (Holm, Scandinavian Journal of Statistics 6, 1979).

    Example:
        >>> values = {"b": {(f"u{n}", "q"): 0.0 for n in range(8)}, "c": {(f"u{n}", "q"): 0.1 * n for n in range(8)}}
        >>> values["a"] = {(f"u{n}", "q"): 1.0 for n in range(8)}
        >>> [c.p_adjusted for c in holm([compare("a", "b", values), compare("a", "c", values)])]
        [0.015625, 0.015625]
    """
    order = sorted(range(len(comparisons)), key=lambda at: comparisons[at].p)
    adjusted, running = list(comparisons), 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * comparisons[at].p))
        adjusted[at] = replace(comparisons[at], p_adjusted=running)
    return adjusted


def power(difference: float, spread: float, users: int, *, level: float = 0.05) -> float:
    """The chance that a true ``difference`` is seen (two-sided paired t-test at ``level``), in [0, 1].

    Args:
        spread: standard deviation of the users' mean differences, > 0.
        users: 2 or more.

    Example:
        >>> round(power(0.05, 0.17, 26), 2)  # seen one time in three
        0.3
    """
    if users < 2 or spread <= 0:
        raise InputError(f"power(spread={spread!r}, users={users!r}): expected a spread above 0 and 2 users or more")
    from scipy.stats import nct, t

    freedom, shift = users - 1, abs(difference) * math.sqrt(users) / spread
    limit = t.ppf(1 - level / 2, freedom)
    other_side = float(nct.cdf(-limit, freedom, shift))  # nan where it is too small for scipy
    return float(nct.sf(limit, freedom, shift)) + (0.0 if math.isnan(other_side) else other_side)


def smallest_difference(spread: float, users: int, *, level: float = 0.05, chance: float = 0.8) -> float:
    """The true difference that is seen with ``chance``; see ``power``.

    Example:
        >>> round(smallest_difference(0.17, 26), 3)
        0.097
    """
    from scipy.optimize import brentq

    high = spread
    while power(high, spread, users, level=level) < chance:
        high *= 1.5
    return float(brentq(lambda d: power(d, spread, users, level=level) - chance, 0.0, high))  # type: ignore[arg-type]
