"""Scales that numbers lie on, and which numbers lie on none: codes and years are names, not amounts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

__all__ = ["Scale", "declared_scale", "number_of", "observed_scale", "written"]

_PLAIN = re.compile(r"[-+]?(?:0|[1-9]\d{0,8})(?:\.\d+|,\d{1,2})?|[-+]?\.\d+")  # "007" is a code, "4,5" is 4.5
_STEPS_NAMED = 21  # steps of a scale that are worth naming one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From ``low`` to ``high``, in steps of ``step``; None = without steps."""

    low: float
    high: float
    step: float | None = 1.0

    def holding(self, numbers: Sequence[float]) -> Scale:
        """The scale, longer where numbers lie beyond its ends."""
        return replace(self, low=min(self.low, *numbers), high=max(self.high, *numbers)) if numbers else self

    @property
    def steps(self) -> tuple[str, ...]:
        """Every value as text; () where there are too many to name."""
        if self.step is None or (self.high - self.low) / self.step > _STEPS_NAMED - 1:
            return ()
        return tuple(written(self.low + n * self.step) for n in range(round((self.high - self.low) / self.step) + 1))


def written(number: float) -> str:
    """A number as an answer is written.

    Example:
        >>> written(4.0), written(4.5)
        ('4', '4.5')
    """
    return str(int(number)) if number == int(number) else f"{number:.10g}"


def number_of(text: str) -> float | None:
    """The finite number that a text is; None for what is none, and for what only looks like one ("007", "1e5").

    Example:
        >>> number_of(" 4.50 "), number_of("4,5"), number_of("007"), number_of("four")
        (4.5, 4.5, None, None)
    """
    return float(text.strip().replace(",", ".")) if _PLAIN.fullmatch(text.strip()) else None


def declared_scale(values: Sequence[str]) -> Scale | None:
    """The scale that declared answers are: three or more numbers, evenly spaced, that begin at 0 or at one step, or lie
    around 0, none beyond 100; small whole numbers may begin anywhere.

    Example:
        >>> declared_scale(["0", "25", "50", "75", "100"])
        Scale(low=0.0, high=100.0, step=25.0)
        >>> declared_scale(["4000", "4001", "4002"]), declared_scale(["2023", "2024", "2025"])
        (None, None)
    """
    numbers = sorted({n for value in values if (n := number_of(value)) is not None})
    if len(numbers) < max(3, len(values)):
        return None
    low, high, step = numbers[0], numbers[-1], numbers[1] - numbers[0]
    even = all(math.isclose(b - a, step, abs_tol=1e-9) for a, b in pairwise(numbers))
    starts = low == 0 or math.isclose(low, step) or math.isclose(low, -high) or max(-low, high) <= 10
    return Scale(low=low, high=high, step=step) if even and starts and max(-low, high) <= 100 else None


def observed_scale(values: Sequence[str], total: int | None = None) -> Scale | None:
    """The scale that people's answers lie on; None where they are no amounts.

    1 to 5, 1 to 10, 0 to 10, also by halves; 1 to 7 and the like where each value was given; around 0; 0 to 100 and
    decimals only where they vary too much to be names. Whatever is larger - codes, years, identifiers - is none; so are
    0 and 1 alone: no and yes.

    Args:
        total: how many answers there were, where ``values`` has each but once.

    Example:
        >>> observed_scale(["4", "2", "5.0"]), observed_scale(["0.5", "4.5"])
        (Scale(low=1.0, high=5.0, step=1.0), Scale(low=0.5, high=5.0, step=0.5))
        >>> observed_scale(["4000", "4001"]), observed_scale(["1994", "2001"])
        (None, None)
    """
    numbers = [n for value in values if (n := number_of(value)) is not None]
    distinct = set(numbers)
    if not distinct or len(numbers) < len(values) or distinct <= {0.0, 1.0}:
        return None
    low, high = min(distinct), max(distinct)
    if low < 0:
        reach = max(-low, high)
        return Scale(low=-reach, high=reach) if reach <= 10 and _on(distinct, 1) else None
    varied = len(distinct) >= 5 and (2 * len(distinct) > (total or len(numbers)) or len(distinct) > 20)
    if _on(distinct, 1):
        if _is_whole_run(distinct, total or len(numbers)):
            return Scale(low=low, high=high)
        for ends in ((1.0, 5.0), (1.0, 10.0), (0.0, 10.0)):
            if ends[0] <= low and high <= ends[1]:
                return Scale(low=ends[0], high=ends[1])
        round_ones = len(distinct) >= 5 and _on(distinct, 5)
        return Scale(low=0.0, high=100.0) if high <= 100 and (varied or round_ones) else None
    if _on(distinct, 0.5) and high <= 10:
        ends = (0.5 if low >= 0.5 else 0.0, 5.0) if high <= 5 else (1.0 if low >= 1 else 0.0, 10.0)
        return Scale(low=ends[0], high=ends[1], step=0.5)
    fine = high <= 1 or _on(distinct, 0.1) or _on(distinct, 0.25)
    if not (varied and fine and high <= 100):
        return None
    top = next(top for top in (1.0, 5.0, 10.0, 100.0) if high <= top)
    return Scale(low=1.0 if low >= 1 and 1 < top < 100 else 0.0, high=top, step=None)


def _is_whole_run(distinct: set[float], total: int) -> bool:
    """Whether each value from 0 or 1 up to 6, 7, 8 or 9 was given, and often enough that no other would be missing: a
    scale of seven points, say, and not the lower part of one of ten."""
    low, high = min(distinct), max(distinct)
    return low in (0, 1) and 6 <= high <= 9 and len(distinct) == high - low + 1 and total >= 2 * len(distinct)


def _on(numbers: set[float], step: float) -> bool:
    return all(math.isclose(n / step, round(n / step), abs_tol=1e-6) for n in numbers)
