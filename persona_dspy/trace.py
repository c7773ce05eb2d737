"""What happened while one query was answered, step by step. Owns: the frozen record. Not here: collecting it (agent.py).

In the paper's words: the persona is the policy, a step's action is what it chose, the observation what came back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Recalled", "Step", "Trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """An episode that was shown to the LM: its id and the score it was found by (higher is nearer)."""

    id: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One action: the tool's name, the words it was called with, and the observation (empty for recall as turns)."""

    action: str
    query: str
    observation: str = ""
    recalled: tuple[Recalled, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How one response came about. ``persona_version``/``persona`` are those in force when the query was answered."""

    user_id: str
    query: str
    persona_version: int
    persona: str
    steps: tuple[Step, ...] = ()
    response: str = ""

    @property
    def recalled(self) -> tuple[Recalled, ...]:
        """All recalled episodes, in step order, each once."""
        seen = {r.id: r for step in reversed(self.steps) for r in reversed(step.recalled)}
        return tuple(reversed(list(seen.values())))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self)

    def to_json(self) -> str:
        """The trace as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)
