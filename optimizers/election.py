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
    """The held-out interactions and the incumbent's scores on them.

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

    def install(self, persona: Persona, *, as_is: bool = False) -> float:
        """Make ``persona`` the one to beat; returns its mean score. Personas that render alike are scored once."""
        then = persona if as_is else self.as_then(persona)
        if then.fingerprint not in self._seen:
            self._seen[then.fingerprint] = [s.score for s in self.simulator.run(then, self.held)]
        self.scores = self._seen[then.fingerprint]
        return fmean(self.scores)

    def stand(self, incumbent: Persona, challenger: Persona, edits: tuple[str, ...]) -> Trial:
        """One challenger against the incumbent; an accepted one becomes the one to beat."""
        if not self.held:
            verdict = self.gate.judge(incumbent, challenger, [], [])
            return Trial(
                edits=edits,
                incumbent_score=0.0,
                challenger_score=None,
                accepted=verdict.accepted,
                reason=verdict.reason,
            )
        # Items the incumbent gets wrong come first: only there can it be beaten, so a challenger that gains nothing
        # is known after them.
        order = sorted(range(len(self.held)), key=lambda i: self.scores[i])
        before = [self.scores[i] for i in order]
        then = self.as_then(challenger)
        after = self.simulator.until(
            then,
            [self.held[i] for i in order],
            lambda scores: self.gate.hopeless(incumbent, challenger, before, scores),
        )
        was = fmean(before)
        if len(after) < len(before):
            return Trial(
                edits=edits,
                incumbent_score=was,
                challenger_score=None,
                accepted=False,
                reason=f"given up after {len(after)}",
            )
        verdict = self.gate.judge(incumbent, challenger, before, after)
        if verdict.accepted:
            placed = dict(zip(order, after, strict=True))
            self.scores = [placed[i] for i in range(len(self.held))]
            self._seen[then.fingerprint] = self.scores
        return Trial(
            edits=edits,
            incumbent_score=verdict.incumbent,
            challenger_score=verdict.challenger,
            accepted=verdict.accepted,
            reason=verdict.reason,
        )
