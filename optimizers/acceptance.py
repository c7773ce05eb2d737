"""Which challenger replaces the incumbent. Owns: gates. Not here: how challengers are made (proposals.py).

A gate holds interactions out of fitting and compares scores on them, in [0, 1], higher is better, item by item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import dspy

from persona_dspy.persona import Persona
from persona_dspy.untrusted import count_tokens

__all__ = ["AlwaysAccept", "Gate", "HeldOutGate", "Verdict"]

LEAST = 4  # with fewer interactions there is nothing to fit on and hold out at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a challenger was accepted, and why in words; scores are means over the gate's items."""

    accepted: bool
    incumbent: float
    challenger: float
    items: int
    reason: str


class Gate(Protocol):
    """Strategy: which examples are held out, and who wins on them."""

    def split(self, examples: Sequence[dspy.Example]) -> tuple[list[dspy.Example], list[dspy.Example]]:
        """(to fit on, held out), each oldest first; disjoint."""
        ...

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """``before`` and ``after``: scores of incumbent and challenger on the same held-out items, in order."""
        ...

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> bool:
        """Whether a challenger scored on the first ``len(after)`` items can no longer win: saves the other calls."""
        ...


class HeldOutGate:
    """The latest interactions decide: a challenger must score strictly higher on them. On a tie the shorter persona
    stays, so that a persona does not grow by luck.

    Args:
        size: how many to hold out; by default a quarter, from 2 to 8. At least as many are left to fit on.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def split(self, examples: Sequence[dspy.Example]) -> tuple[list[dspy.Example], list[dspy.Example]]:
        items = list(examples)
        if len(items) < LEAST:
            return items, []
        size = self.size or max(2, min(8, round(len(items) / 4)))
        size = min(size, len(items) // 2)
        return items[:-size], items[-size:]

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        was, now = fmean(before), fmean(after)
        accepted = now > was or (now == was and _shorter(new, old))
        reason = "strict gain" if now > was else "tie, shorter" if accepted else "no gain"
        return Verdict(accepted=accepted, incumbent=was, challenger=now, items=len(before), reason=reason)

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> bool:
        if len(after) == len(before):
            return False
        best = sum(after) + len(before) - len(after)
        return best < sum(before) or (best == sum(before) and not _shorter(new, old))


class AlwaysAccept:
    """No gate, as in the paper: every rewrite replaces the persona. ``size`` held-out items are still scored, for the
    record only; 0 by default."""

    def __init__(self, size: int = 0) -> None:
        self.size = size

    def split(self, examples: Sequence[dspy.Example]) -> tuple[list[dspy.Example], list[dspy.Example]]:
        items = list(examples)
        size = min(self.size, len(items) // 2)
        return (items[:-size], items[-size:]) if size else (items, [])

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        was, now = (fmean(before), fmean(after)) if before else (0.0, 0.0)
        return Verdict(accepted=True, incumbent=was, challenger=now, items=len(before), reason="no gate")

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> bool:
        return False


def _shorter(new: Persona, old: Persona) -> bool:
    return 0 < count_tokens(new.render()) < count_tokens(old.render())
