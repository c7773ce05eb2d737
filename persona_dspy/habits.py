"""What a user has answered so far bounds what the user is likely to answer next. Owns: ``habitual``.

Not here: which episodes are shown (memory), the response step (agent.py).
"""

from __future__ import annotations

import dspy

from persona_dspy.memory.episodic import EpisodicMemory, MemoryCut
from persona_dspy.memory.ranking import counted
from persona_dspy.persona import Persona
from persona_dspy.responses import ResponseKind

__all__ = ["habitual"]

LEAST, MOST = 8, 2000


def habitual() -> tuple[str, ...]:
    """The labels, in declared order, that the current user's answer is taken from; () = any.

    Where answers are one of a closed set and the persona counts ``LEAST`` answers or more: those the user has given,
    as far as memory may be seen (``memory_cut``), and those its decision rules name. A user gives the next answer from
    among those 88 to 98% of the time (three LaMP-like tasks, docs/results/judge-log.md), and a weak model is far more
    often misled by labels that this user never gives. An answer that is new is allowed from the moment the user gives
    it. Past ``MOST`` interactions nothing is left to exclude.
    """
    persona: Persona | None = dspy.settings.get("user_persona")
    memory: EpisodicMemory | None = dspy.settings.get("user_memory")
    kind: ResponseKind | None = dspy.settings.get("user_kind")
    if persona is None or memory is None or kind is None or not kind.labels:
        return ()
    if counted(persona) < LEAST or len(memory) > MOST:
        return ()
    cut: MemoryCut = dspy.settings.get("memory_cut") or MemoryCut()
    given = {i.response for i in memory.before(cut.before, cut.exclude)}
    given |= {b.then for b in persona.section("decision rules") if b.then}
    labels = tuple(label for label in kind.labels if label in given)
    return labels if len(labels) < len(kind.labels) else ()
