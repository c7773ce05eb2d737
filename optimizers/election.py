"""Scores personas on the held-out interactions and applies the gate.

Scores are kept by persona and item, so that none is paid twice; incumbent and challenger are compared item by item, so
that a challenger that gains nothing is known after few calls, and one that leads clearly is there before all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import dspy

from optimizers.acceptance import Gate
from optimizers.evidence import Challenger
from optimizers.loss import RIGHT, Simulated
from optimizers.mistakes import SAME, Judge, Mistakes, compared
from optimizers.simulation import Simulator
from persona_dspy.core import Outcome, Persona, Trial

__all__ = ["Election"]


class Election:
    """The held-out interactions of one split and the incumbent's scores on them.

    Args:
        as_then: turns a persona into what it would have been before the held-out interactions (its facts).
        judge: compares answers with those given without a persona, where needed; None = scores are the simulator's.
    """

    def __init__(
        self,
        gate: Gate,
        simulator: Simulator,
        held: Sequence[dspy.Example],
        as_then: Callable[[Persona], Persona],
        judge: Judge | None = None,
    ) -> None:
        self.gate, self.simulator, self.held, self.as_then, self.judge = gate, simulator, list(held), as_then, judge
        self._seen: dict[str, dict[int, float]] = {}
        self._without: dict[int, Simulated] = {}
        self._latest = list(reversed(range(len(self.held))))
        self._paired = {i for i, example in enumerate(self.held) if judge is not None and judge.needed(example)}

    def score(self, persona: Persona) -> list[float]:
        """Scores of a persona just as it is, on all items. Personas that render alike are scored once."""
        self._play(persona, range(len(self.held)))
        return [self._known(persona)[i] for i in range(len(self.held))]

    def mean(self, persona: Persona) -> float | None:
        """The mean score of a persona as of then, where all items are scored; asks for nothing."""
        scores = self._known(self.as_then(persona))
        return fmean(scores.values()) if self.held and len(scores) == len(self.held) else None

    def perfect(self, persona: Persona) -> bool:
        """Whether the persona scores 1 on every item; scores items, latest first, until one does not."""
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
        challenger: Challenger,
        mistakes: Mistakes | None = None,
        leading: Callable[[bool], None] | None = None,
    ) -> Trial:
        """Compares one challenger with the incumbent.

        Edits written from ``mistakes`` have to mend one of them. Then the gate judges the held-out items; where it sees
        neither gain nor harm, a challenger that is ``harmless`` is kept, and so are edits that mend a mistake and do no
        harm to past interactions like it. ``leading`` is told True, once at most, when the items so far speak for the
        challenger clearly and others are still to come, and False where those take it back.
        """
        edits = challenger.edits
        if not self.held:
            verdict = self.gate.judge(incumbent, challenger.persona, [], [])
            return _trial(edits, 0.0, None, verdict.accepted, verdict.reason, "no difference")
        mended: list[int] = []
        if mistakes is not None and self.gate.decides:
            replayed = mistakes.replayed(challenger.persona)
            mended = [n for n, (old, new) in enumerate(zip(mistakes.before, replayed, strict=True)) if new > old]
            if not mended or sum(replayed) <= sum(mistakes.before):
                known = list(self._known(self.as_then(incumbent)).values())
                reason = f"mends none of {len(replayed)} recent mistakes"
                outcome = "worse" if sum(replayed) < sum(mistakes.before) else "no difference"
                return _trial(edits, fmean(known) if known else 0.0, None, False, reason, outcome)
        old, new = self.as_then(incumbent), self.as_then(challenger.persona)
        may_tie = challenger.harmless or bool(mended)
        if not self._played(incumbent, challenger.persona, old, new, may_tie=may_tie, leading=leading):
            was, now = self._known(old), self._known(new)
            reason, outcome = f"given up after {len(now)}", _outcome([was[i] for i in now], list(now.values()))
            return _trial(edits, fmean(was.values()), None, False, reason, outcome)
        before, after = self.score(old), self.score(new)
        verdict = self.gate.judge(incumbent, challenger.persona, before, after)
        accepted, reason = verdict.accepted, verdict.reason
        gains = accepted and verdict.challenger > verdict.incumbent
        if not gains and may_tie and (accepted or self.gate.allows(before, after)):
            accepted, reason = True, reason if accepted else "does no harm"
            if mistakes is not None and not challenger.harmless:
                was_alike, now_alike = mistakes.alike(incumbent, challenger.persona, mended)
                accepted = sum(now_alike) >= sum(was_alike)
                reason = f"mends {len(mended)} of {len(mistakes.before)} recent mistakes, "
                reason += "breaks nothing" if accepted else "but answers to queries like them got worse"
        outcome = _outcome(before, after)
        return _trial(edits, verdict.incumbent, verdict.challenger, accepted, reason, outcome)

    def _played(
        self,
        incumbent: Persona,
        challenger: Persona,
        old: Persona,
        new: Persona,
        *,
        may_tie: bool,
        leading: Callable[[bool], None] | None,
    ) -> bool:
        """Scores both on all items; False, with items left, where the challenger can no longer be accepted."""
        before, after = self._known(old), self._known(new)
        # Items the incumbent is known to get wrong come first: only there can it be beaten.
        order = [*sorted(before, key=lambda i: before[i]), *(i for i in self._latest if i not in before)]
        led: bool | None = False
        for block in self._blocks(order):
            self._play(old, block)
            self._play(new, [i for i in block if i in self._paired or before[i] < RIGHT])
            if self._hopeless(incumbent, challenger, old, new, may_tie):
                return False
            led = self._led(old, new, led, leading)
        for block in self._blocks(i for i in order if i not in after):
            if self._hopeless(incumbent, challenger, old, new, may_tie):
                return False
            led = self._led(old, new, led, leading)
            self._play(new, block)
        return True

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

    def _hopeless(self, incumbent: Persona, challenger: Persona, old: Persona, new: Persona, may_tie: bool) -> bool:
        before, after = self._known(old), self._known(new)
        at_best = [before.get(i, 0.0) for i in range(len(self.held))]
        if may_tie and not any(score < before[i] for i, score in after.items() if i in before):
            return False  # it may still do no harm anywhere
        return self.gate.hopeless(incumbent, challenger, at_best, after)

    def _known(self, persona: Persona) -> dict[int, float]:
        return self._seen.setdefault(persona.fingerprint, {})

    def _play(self, persona: Persona, items: Iterable[int]) -> None:
        scores = self._known(persona)
        missing = [i for i in items if i not in scores]
        if not missing:
            return
        nobody = Persona(user_id=persona.user_id)
        unseen = [i for i in missing if i in self._paired and i not in self._without]
        if unseen:
            self._without |= dict(zip(unseen, self.simulator.run(nobody, [self.held[i] for i in unseen]), strict=True))
            self._known(nobody).update(dict.fromkeys(unseen, SAME))
        if missing := [i for i in missing if i not in scores]:
            examples = [self.held[i] for i in missing]
            drafts = self.simulator.run(persona, examples)
            references = [self._without.get(i, draft) for i, draft in zip(missing, drafts, strict=True)]
            scores.update(zip(missing, compared(self.judge, examples, drafts, references), strict=True))

    def _blocks(self, items: Iterable[int]) -> list[list[int]]:
        listed = list(items)
        size = max(1, len(self.held)) if self._paired else self.simulator.concurrency  # one request for all
        return [listed[at : at + size] for at in range(0, len(listed), size)]


def _outcome(before: Sequence[float], after: Sequence[float]) -> Outcome:
    if sum(after) < sum(before):
        return "worse"
    return "no difference" if list(before) == list(after) else "untested"


def _trial(
    edits: tuple[str, ...], was: float, now: float | None, accepted: bool, reason: str, outcome: Outcome
) -> Trial:
    return Trial(
        edits=edits,
        incumbent_score=was,
        challenger_score=now,
        accepted=accepted,
        reason=reason,
        outcome="accepted" if accepted else outcome,
    )
