"""MemoryBank: a memory that fades unless it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from persona_dspy.core import Episode
from persona_dspy.judge.baselines.prompting import PAG

__all__ = ["MemoryBank", "retention"]


def retention(age: float, strength: float) -> float:
    """What is left of a memory, in (0, 1]: Ebbinghaus' ``R = exp(-age / strength)`` (arXiv 2305.10250, section 2.3).

    Example:
        >>> retention(0, 1), round(retention(1, 1), 3), round(retention(1, 2), 3)
        (1.0, 0.368, 0.607)
    """
    return math.exp(-max(age, 0.0) / strength)


class MemoryBank(PAG):
    """Memories with a forgetting curve, and a user portrait (Zhong et al., arXiv 2305.10250).

    A memory's strength begins at 1; each recall adds 1 and sets its age to 0. Nearness times retention decides what is
    shown; beside it stands the portrait, an LM's summary. The paper counts age in days of a chat; here a unit is a
    fifth of the user's history, so that a memory never recalled has e**-5 of its weight at the far end. The history is
    lived through once, in order: each of its queries recalls (and so strengthens) what came before it.
    """

    _curve: list[tuple[float, float]] | None = None  # by position: (strength, last recalled)

    def episodes(self, query: str) -> Sequence[Episode]:
        if self._curve is None:
            self._live_through()
        return self._recall(query, len(self.memory))

    def _live_through(self) -> None:
        past = self.memory.interactions
        self._curve = [(1.0, float(at)) for at in range(len(past))]
        for at, interaction in enumerate(past):
            for episode in self._recall(interaction.query, at):
                strength, _ = self._curve[episode.position]
                self._curve[episode.position] = (strength + 1, float(at))

    def _recall(self, query: str, now: int) -> list[Episode]:
        unit = max(1.0, len(self.memory) / 5)
        weighed: list[Episode] = []
        for episode in self.memory.recall(query, 8 * self.k, before=now):
            strength, last = (self._curve or [])[episode.position]
            retained = retention((now - last) / unit, strength)
            weighed.append(replace(episode, score=max(episode.score, 1e-6) * retained))
        return sorted(weighed, key=lambda e: (-e.score, -e.position))[: self.k]
