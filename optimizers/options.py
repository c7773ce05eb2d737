"""The options of a run, as the optimizer that starts it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from optimizers.cohort import Cohort
from optimizers.loss import Metric, TextualLoss
from optimizers.proposals import Proposer
from persona_dspy.memory import SemanticMemory

__all__ = ["Observer", "Options"]

Observer = Callable[[dict[str, Any]], None]
"""Gets one event dict a step, keys ``event``, ``user_id``, ``calls`` and ``tokens`` always; must not raise.

``leads`` and ``judged`` hold the persona that would be returned from here on, rendered, and the challenger's edits
(``leads`` without edits: the lead was lost, and the incumbent is back)."""


class Options(Protocol):
    """The options that a run reads from its optimizer; see ``PersonaAlignment``."""

    metric: Metric | None
    recent: int
    epochs: int
    patience: int
    summary: SemanticMemory | None
    cohort: Cohort | None
    reflection_lm: Any
    observers: tuple[Observer, ...]
    concurrency: int

    def proposer_for(self, lm: Any) -> Proposer: ...

    def loss_for(self, lm: Any) -> TextualLoss: ...

    def get_params(self) -> dict[str, Any]: ...
