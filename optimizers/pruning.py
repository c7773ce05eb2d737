"""What of a persona is left out where none at all does better."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from optimizers.acceptance import beyond_chance
from optimizers.election import Election
from persona_dspy.core import Persona

__all__ = ["Pruned", "pruned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The persona that is left, whether its facts still follow memory, its mean score in [0, 1], what was left out."""

    persona: Persona
    follows_memory: bool
    score: float
    out: str


def pruned(persona: Persona, election: Election, *, follows_memory: bool) -> Pruned | None:
    """The persona without its facts, without what was learned, or without both: of those that the gate accepts and that
    do better on the held-out interactions, the best; None where there is none. Locked and given lines stay.

    Facts count all of the past, so a few held-out interactions must speak against them beyond chance: 6 of 48 real
    users lost them to one or two of 3 to 7 answers, and with them 5 of 20 new queries (docs/results/judge-log.md).
    """
    unlearned = tuple(b for b in persona.bullets if b.source != "learned" or b.locked)
    bare = persona.model_copy(update={"bullets": unlearned})
    less = [("what was learned", bare, follows_memory)]
    if follows_memory:
        less.append(("facts counted in memory", persona.with_facts([]), False))
        less.append(("facts counted in memory and what was learned", bare.with_facts([]), False))
    before = election.score(election.as_then(persona))
    accepted_prunings: list[Pruned] = []
    for out, left, follows in less:
        after = election.score(election.as_then(left) if follows else left)
        accepted = fmean(after) > fmean(before) and election.gate.judge(persona, left, before, after).accepted
        loses_facts = follows_memory and not follows
        if accepted and (not loses_facts or beyond_chance(before, after)):
            accepted_prunings.append(Pruned(persona=left, follows_memory=follows, score=fmean(after), out=out))
    return max(accepted_prunings, key=lambda one: one.score, default=None)
