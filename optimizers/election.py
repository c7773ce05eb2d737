"""Scoring personas on the held-out interactions and letting the gate judge. Owns: ``Election``.

Not here: the rule by which it judges (acceptance.py). Scores of the incumbent are kept, so that a challenger costs
only its own calls, and fewer where it can no longer win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import dspy

from optimizers.acceptance import Gate
from optimizers.simulation import Simulator
from persona_dspy.alignment import Trial
from persona_dspy.persona import Persona

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
        self.scores: list[float] = []
        self._seen: dict[str, list[float]] = {}

    @property
    def perfect(self) -> bool:
        """The incumbent has nothing left to gain."""
        return bool(self.scores) and min(self.scores) >= 0.999

    def install(self, persona: Persona) -> float:
        """Make ``persona`` the one to beat; returns its mean score."""
        self.scores = self.score(self.as_then(persona))
        return fmean(self.scores)

    def score(self, persona: Persona) -> list[float]:
        """Scores of a persona just as it is. Personas that render alike are scored once."""
        if persona.fingerprint not in self._seen:
            self._seen[persona.fingerprint] = [s.score for s in self.simulator.run(persona, self.held)]
        return self._seen[persona.fingerprint]

    def stand(self, incumbent: Persona, challenger: Persona, edits: tuple[str, ...]) -> Trial:
        """One challenger against the incumbent; an accepted one becomes the one to beat."""
        if not self.held:
            verdict = self.gate.judge(incumbent, challenger, [], [])
            return _trial(edits, 0.0, None, verdict.accepted, verdict.reason)
        # Items the incumbent gets wrong come first: only there can it be beaten, so a challenger that gains nothing
        # is known after them.
        order = sorted(range(len(self.held)), key=lambda i: self.scores[i])
        then = self.as_then(challenger)
        scores = self.simulator.until(
            then,
            [self.held[i] for i in order],
            lambda sofar: self.gate.hopeless(incumbent, challenger, self.scores, dict(zip(order, sofar, strict=False))),
        )
        was = fmean(self.scores)
        if len(scores) < len(order):
            return _trial(edits, was, None, False, f"given up after {len(scores)}")
        placed = dict(zip(order, scores, strict=True))
        after = [placed[i] for i in range(len(order))]
        verdict = self.gate.judge(incumbent, challenger, self.scores, after)
        self._seen[then.fingerprint] = after
        if verdict.accepted:
            self.scores = after
        return _trial(edits, verdict.incumbent, verdict.challenger, verdict.accepted, verdict.reason)


def _trial(edits: tuple[str, ...], was: float, now: float | None, accepted: bool, reason: str) -> Trial:
    return Trial(edits=edits, incumbent_score=was, challenger_score=now, accepted=accepted, reason=reason)
