"""Gates: decide whether a challenger replaces the incumbent.

A gate holds interactions out of fitting and compares scores on them, in [0, 1], higher is better, item by item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from statistics import fmean
from typing import Protocol

import dspy

from optimizers.loss import RIGHT
from persona_dspy.core import Persona, count_tokens, plural
from persona_dspy.errors import InputError

__all__ = [
    "AlwaysAccept",
    "AnchorGate",
    "Gate",
    "HeldOutGate",
    "KFoldGate",
    "SignTestGate",
    "Split",
    "Verdict",
    "gate_for",
    "sign_test",
]

LEAST = 4  # with fewer interactions there is nothing to fit on and hold out at once
LEADS = 3  # better, none worse: one in eight by chance, where one gain among all held-out items may be a coin's toss
FEW = 12  # below, one held-out share is too small to show each kind of query once


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a challenger was accepted, and why in words; scores are means over the gate's items."""

    accepted: bool
    incumbent: float
    challenger: float
    items: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples to fit on and examples held out, each oldest first; disjoint."""

    fit: list[dspy.Example]
    held: list[dspy.Example]


class Gate(Protocol):
    """Strategy: which examples are held out, and who wins on them.

    ``decides``: False for a gate that lets everything pass and holds out for the record only.
    """

    decides: bool

    def splits(self, examples: Sequence[dspy.Example]) -> list[Split]:
        """One split, or several that the steps take in turn; nothing held out where there are too few examples."""
        ...

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """``before`` and ``after``: scores of incumbent and challenger on the same held-out items, in their order."""
        ...

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Mapping[int, float]) -> bool:
        """Whether a challenger with the scores ``after``, by item, can no longer win: saves the other calls. An item on
        which the incumbent has no score yet counts 0 in ``before``."""
        ...

    def allows(self, before: Sequence[float], after: Sequence[float]) -> bool:
        """Whether the challenger does no harm on these items: what a portrait, or edits that mend a recent mistake,
        are asked where ``judge`` sees no gain."""
        ...

    def leads(self, before: Sequence[float], after: Sequence[float]) -> bool:
        """Whether these pairs, a part of the held-out items chosen without a look at their scores, already speak for
        the challenger. It then leads, as the persona to return if the budget ends, until ``judge`` has seen all."""
        ...


def gate_for(examples: int, *, most: int = 8) -> Gate:
    """The default gate for a number of interactions: folds for a tiny history, else the latest are held out.

    Example:
        >>> type(gate_for(6)).__name__, type(gate_for(40)).__name__
        ('KFoldGate', 'HeldOutGate')
    """
    return KFoldGate() if examples < FEW else HeldOutGate(most=most)


class HeldOutGate:
    """The latest interactions decide: a challenger must score strictly higher on them. On a tie the shorter persona
    stays, so that a persona does not grow by luck.

    Args:
        size: how many to hold out; by default a quarter, from 2 to ``most``. At least as many are left to fit on.
        most: how many at most, where ``size`` is not given.

    Example:
        >>> examples = [dspy.Example(query=str(n)) for n in range(20)]
        >>> len(HeldOutGate().splits(examples)[0].held)
        5
        >>> old, new = Persona(user_id="u1"), Persona.from_text("Short answers.", user_id="u1")
        >>> gate = HeldOutGate()
        >>> gate.judge(old, new, [0, 1], [1, 1]).accepted, gate.judge(old, new, [0, 1], [1, 0]).accepted
        (True, False)
    """

    decides = True

    def __init__(self, size: int | None = None, *, most: int = 8) -> None:
        if size is not None and size < 1:
            raise InputError(f"HeldOutGate(size={size!r}): expected how many interactions to hold out, 1 or more")
        if most < 2:
            raise InputError(f"HeldOutGate(most={most!r}): expected 2 interactions or more")
        self.size, self.most = size, most

    def splits(self, examples: Sequence[dspy.Example]) -> list[Split]:
        items = list(examples)
        if len(items) < LEAST:
            return [Split(fit=items, held=[])]
        size = self.size or max(2, min(self.most, round(len(items) / 4)))
        size = min(size, len(items) // 2)
        return [Split(fit=items[:-size], held=items[-size:])]

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        was, now = fmean(before), fmean(after)
        accepted = now > was or (now == was and _shorter(new, old))
        reason = "strict gain" if now > was else "tie, shorter" if accepted else "no gain"
        return Verdict(accepted=accepted, incumbent=was, challenger=now, items=len(before), reason=reason)

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Mapping[int, float]) -> bool:
        if len(after) == len(before):
            return False
        best = sum(after.values()) + len(before) - len(after)
        return best < sum(before) or (best == sum(before) and not _shorter(new, old))

    def allows(self, before: Sequence[float], after: Sequence[float]) -> bool:
        return not _differing(before, after)[1]

    def leads(self, before: Sequence[float], after: Sequence[float]) -> bool:
        better, worse = _differing(before, after)
        return better >= LEADS and not worse


class KFoldGate(HeldOutGate):
    """For tiny histories: every interaction is held out in turn, a fold a step.

    A challenger is made without the fold that judges it and must score strictly higher there. What the incumbent
    learned in earlier steps may stem from that fold; challenger and incumbent share it, so it favours neither.

    Args:
        folds: how many at most; a fold has at least two interactions, the latest ones judge first.

    Example:
        >>> [len(split.held) for split in KFoldGate(folds=3).splits([dspy.Example(query=str(n)) for n in range(6)])]
        [2, 2, 2]
    """

    def __init__(self, folds: int = 4) -> None:
        super().__init__()
        if folds < 2:
            raise InputError(f"KFoldGate(folds={folds!r}): expected 2 or more")
        self.folds = folds

    def splits(self, examples: Sequence[dspy.Example]) -> list[Split]:
        items = list(examples)
        if len(items) < LEAST:
            return [Split(fit=items, held=[])]
        folds = min(self.folds, len(items) // 2)
        turn = [(len(items) - 1 - i) % folds for i in range(len(items))]
        return [
            Split(
                fit=[e for e, t in zip(items, turn, strict=True) if t != fold],
                held=[e for e, t in zip(items, turn, strict=True) if t == fold],
            )
            for fold in range(folds)
        ]


class SignTestGate(HeldOutGate):
    """A paired sign test: more held-out interactions must get better than worse, beyond chance.

    Args:
        confidence: 1 - p, the one-sided level, in [0.5, 1): 0.9 needs 4 better and none worse, 0.75 needs 2.
        size: as in ``HeldOutGate``.

    Example:
        >>> old, new = Persona(user_id="u1"), Persona.from_text("Short answers.", user_id="u1")
        >>> SignTestGate(confidence=0.9).judge(old, new, [0, 0, 0, 1], [1, 1, 1, 1]).reason
        '3 better, 0 worse: p = 0.125'
    """

    def __init__(self, confidence: float = 0.9, size: int | None = None) -> None:
        super().__init__(size)
        if not 0.5 <= confidence < 1:
            raise InputError(f"SignTestGate(confidence={confidence!r}): expected a share from 0.5 to below 1, as 0.9")
        self.confidence = confidence

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        better, worse = _differing(before, after)
        p = sign_test(better, worse)
        was, now = fmean(before), fmean(after)
        accepted = p <= 1 - self.confidence + 1e-9 and now > was
        reason = f"{better} better, {worse} worse: p = {p:.3f}"
        return Verdict(accepted=accepted, incumbent=was, challenger=now, items=len(before), reason=reason)

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Mapping[int, float]) -> bool:
        if len(after) == len(before):
            return False
        better = sum(score > before[i] for i, score in after.items())
        worse = sum(score < before[i] for i, score in after.items())
        could = sum(i not in after and score < RIGHT for i, score in enumerate(before))
        return sign_test(better + could, worse) > 1 - self.confidence + 1e-9

    def allows(self, before: Sequence[float], after: Sequence[float]) -> bool:
        return False  # only a gain at the stated confidence counts

    def leads(self, before: Sequence[float], after: Sequence[float]) -> bool:
        return False  # the stated confidence is of one look


class AnchorGate:
    """Interactions that must stay right, before any other gate: a challenger that scores lower on one is refused.

    Args:
        anchors: interaction ids. They are held out of fitting, and judge together with what ``gate`` holds out.
        gate: decides about what passes; ``HeldOutGate()`` by default.

    Example:
        >>> gate = AnchorGate(["i1"])
        >>> old, new = Persona(user_id="u1"), Persona.from_text("Short answers.", user_id="u1")
        >>> gate.judge(old, new, [0, 0, 1], [1, 1, 0]).reason  # the last item is the anchor
        '1 anchor lost'
    """

    decides = True

    def __init__(self, anchors: Sequence[str], gate: Gate | None = None) -> None:
        self.anchors, self.gate = frozenset(anchors), gate or HeldOutGate()

    def splits(self, examples: Sequence[dspy.Example]) -> list[Split]:
        anchors = [e for e in examples if e.get("interaction_id") in self.anchors]
        if missing := self.anchors - {e.get("interaction_id") for e in anchors}:
            raise InputError(f"anchors {sorted(missing)!r}: expected ids of the user's own interactions")
        others = self.gate.splits([e for e in examples if e.get("interaction_id") not in self.anchors])
        return [Split(fit=s.fit, held=[*s.held, *anchors] if s.held else []) for s in others]

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        verdict = self.gate.judge(old, new, before, after)
        lost = self._lost(before, after)
        return replace(verdict, accepted=False, reason=f"{plural(lost, 'anchor')} lost") if lost else verdict

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Mapping[int, float]) -> bool:
        first = len(before) - len(self.anchors)
        lost = any(i >= first and score < before[i] for i, score in after.items())
        return (lost and len(after) < len(before)) or self.gate.hopeless(old, new, before, after)

    def allows(self, before: Sequence[float], after: Sequence[float]) -> bool:
        return not self._lost(before, after) and self.gate.allows(before, after)

    def _lost(self, before: Sequence[float], after: Sequence[float]) -> int:
        if not self.anchors:
            return 0
        return sum(b < a for a, b in list(zip(before, after, strict=True))[-len(self.anchors) :])

    def leads(self, before: Sequence[float], after: Sequence[float]) -> bool:
        return False  # anchors may be among what was not compared yet


class AlwaysAccept:
    """No gate, as in the paper: every rewrite replaces the persona. ``size`` held-out items are still scored, for the
    record only; 0 by default.

    Example:
        >>> old, new = Persona(user_id="u1"), Persona.from_text("Short answers.", user_id="u1")
        >>> AlwaysAccept().judge(old, new, [], []).accepted
        True
    """

    decides = False

    def __init__(self, size: int = 0) -> None:
        self.size = size

    def splits(self, examples: Sequence[dspy.Example]) -> list[Split]:
        items = list(examples)
        size = min(self.size, len(items) // 2)
        return [Split(fit=items[:-size], held=items[-size:]) if size else Split(fit=items, held=[])]

    def judge(self, old: Persona, new: Persona, before: Sequence[float], after: Sequence[float]) -> Verdict:
        was, now = (fmean(before), fmean(after)) if before else (0.0, 0.0)
        return Verdict(accepted=True, incumbent=was, challenger=now, items=len(before), reason="no gate")

    def hopeless(self, old: Persona, new: Persona, before: Sequence[float], after: Mapping[int, float]) -> bool:
        return False

    def allows(self, before: Sequence[float], after: Sequence[float]) -> bool:
        return True

    def leads(self, before: Sequence[float], after: Sequence[float]) -> bool:
        return False


def sign_test(better: int, worse: int) -> float:
    """One-sided p-value of the sign test over the pairs that differ; 1 where none differ.

    Example:
        >>> sign_test(4, 0)
        0.0625
    """
    n = better + worse
    return sum(comb(n, k) for k in range(better, n + 1)) / 2**n if n else 1.0


def _differing(before: Sequence[float], after: Sequence[float]) -> tuple[int, int]:
    """The numbers of pairs that got better and that got worse."""
    pairs = list(zip(before, after, strict=True))
    return sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)


def _shorter(new: Persona, old: Persona) -> bool:
    return 0 < count_tokens(new.render()) < count_tokens(old.render())
