"""Scoring personas on the held-out interactions and letting the gate judge.

Scores are kept by persona and item, so that none is paid twice; incumbent and challenger are compared item by item, so
that a challenger that gains nothing is known after few calls, and one that leads clearly is there before all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import dspy

from optimizers.acceptance import Gate
from optimizers.loss import RIGHT
from optimizers.simulation import Simulator
from persona_dspy.core import Persona, Trial

__all__ = ["Election"]


class Election:
    """The held-out interactions of one split and the incumbent's scores on them.

    Args:
        as_then: turns a persona into what it would have been before the held-out interactions (its facts).
    """

    def __init__(
        self, gate: Gate, simulator: Simulator, held: Sequence[dspy.Example], as_then: Callable[[Persona], Persona]
    ) -> None:
        self.gate, self.simulator, self.held, self.as_then = gate, simulator, list(held), as_then
        self._seen: dict[str, dict[int, float]] = {}
        self._latest = list(reversed(range(len(self.held))))

    def score(self, persona: Persona) -> list[float]:
        """Scores of a persona just as it is, on all items. Personas that render alike are scored once."""
        self._play(persona, range(len(self.held)))
        return [self._known(persona)[i] for i in range(len(self.held))]

    def mean(self, persona: Persona) -> float | None:
        """The mean score of a persona as of then, where all items are scored; asks for nothing."""
        scores = self._known(self.as_then(persona))
        return fmean(scores.values()) if self.held and len(scores) == len(self.held) else None

    def perfect(self, persona: Persona) -> bool:
        """The persona has nothing left to gain here; items are scored, latest first, until one says otherwise."""
        then = self.as_then(persona)
        scores = self._known(then)
        for block in self._blocks(i for i in self._latest if i not in scores):
            if any(score < RIGHT for score in scores.values()):
                break
            self._play(then, block)
        return bool(self.held) and all(score >= RIGHT for score in scores.values())

    def stand(
        self,
        incumbent: Persona,
        challenger: Persona,
        edits: tuple[str, ...],
        leading: Callable[[bool], None] | None = None,
    ) -> Trial:
        """One challenger against the incumbent. ``leading`` is told True, once at most, when the items so far speak for
        the challenger clearly and others are still to come, and False where those take it back; the verdict rests on
        all of them."""
        if not self.held:
            verdict = self.gate.judge(incumbent, challenger, [], [])
            return _trial(edits, 0.0, None, verdict.accepted, verdict.reason)
        old, new = self.as_then(incumbent), self.as_then(challenger)
        before, after = self._known(old), self._known(new)
        # Items the incumbent is known to get wrong come first: only there can it be beaten.
        order = [*sorted(before, key=lambda i: before[i]), *(i for i in self._latest if i not in before)]
        led: bool | None = False
        for block in self._blocks(order):
            self._play(old, block)
            self._play(new, [i for i in block if before[i] < RIGHT])
            if self._hopeless(incumbent, challenger, old, new):
                return self._given_up(edits, old, new)
            led = self._led(old, new, led, leading)
        for block in self._blocks(i for i in order if i not in after):
            if self._hopeless(incumbent, challenger, old, new):
                return self._given_up(edits, old, new)
            led = self._led(old, new, led, leading)
            self._play(new, block)
        verdict = self.gate.judge(incumbent, challenger, self.score(old), self.score(new))
        return _trial(edits, verdict.incumbent, verdict.challenger, verdict.accepted, verdict.reason)

    def _led(self, old: Persona, new: Persona, was: bool | None, leading: Callable[[bool], None] | None) -> bool | None:
        """Whether the challenger leads now, told where that changes. It does as long as it is ahead on what both have
        scores on; a lead that was lost does not come again (None)."""
        if leading is None or was is None:
            return None
        before, after = self._known(old), self._known(new)
        now = sum(after[i] - before[i] for i in before if i in after) > 0 if was else self._leads(old, new)
        if now != was:
            leading(now)
        return None if was and not now else now

    def _leads(self, old: Persona, new: Persona) -> bool:
        """Whether the gate would let the challenger lead, judged on every item that the incumbent has a score on: with
        those it gets wrong alone, a challenger could not lose."""
        before, after = self._known(old), self._known(new)
        if len(before) == len(self.held):
            return False
        while True:
            pairs = [(before[i], after[i]) for i in before if i in after]
            if not self.gate.leads([a for a, _ in pairs], [b for _, b in pairs]):
                return False
            if not (rest := [i for i in before if i not in after]):
                return True
            self._play(new, rest[: self.simulator.concurrency])

    def _hopeless(self, incumbent: Persona, challenger: Persona, old: Persona, new: Persona) -> bool:
        before, after = self._known(old), self._known(new)
        at_best = [before.get(i, 0.0) for i in range(len(self.held))]
        return self.gate.hopeless(incumbent, challenger, at_best, after)

    def _given_up(self, edits: tuple[str, ...], old: Persona, new: Persona) -> Trial:
        was = fmean(self._known(old).values())
        return _trial(edits, was, None, False, f"given up after {len(self._known(new))}")

    def _known(self, persona: Persona) -> dict[int, float]:
        return self._seen.setdefault(persona.fingerprint, {})

    def _play(self, persona: Persona, items: Iterable[int]) -> None:
        scores = self._known(persona)
        if missing := [i for i in items if i not in scores]:
            simulations = self.simulator.run(persona, [self.held[i] for i in missing])
            scores.update(zip(missing, (s.score for s in simulations), strict=True))

    def _blocks(self, items: Iterable[int]) -> list[list[int]]:
        listed, size = list(items), self.simulator.concurrency
        return [listed[at : at + size] for at in range(0, len(listed), size)]


def _trial(edits: tuple[str, ...], was: float, now: float | None, accepted: bool, reason: str) -> Trial:
    return Trial(edits=edits, incumbent_score=was, challenger_score=now, accepted=accepted, reason=reason)
