"""Memory retrieval as a DSPy module: the current user's episodes that are nearest to a query."""

from __future__ import annotations

from functools import partial

import dspy

from persona_dspy.agent.context import current_answer
from persona_dspy.agent.steps import Blocking, Steps, adrive, drive
from persona_dspy.memory import MemoryCut

__all__ = ["Recall"]


class Recall(dspy.Module):
    """Episodes of the user in whose name the program runs; one shared module for all users.

    Memory and cut are those of the answer being given (``current_answer``). Without a memory: no episodes.

    Args:
        k: how many episodes at most, unless a call says otherwise; None = as many as suit the LM (``lm.Sizes``).

    Example:
        >>> from persona_dspy import Interaction
        >>> from persona_dspy.agent import answering
        >>> from persona_dspy.memory import EpisodicMemory, MemoryCut
        >>> memory = EpisodicMemory([Interaction(user_id="u1", query="Heat (1995)", response="crime", id="h")])
        >>> with answering(memory=memory, cut=MemoryCut(before=1)):
        ...     [e.id for e in Recall(k=4)(query="a heist").episodes]
        ['h']
    """

    def __init__(self, k: int | None = None) -> None:
        super().__init__()
        self.k = k

    @property
    def size(self) -> int:
        """How many episodes the answer being given recalls."""
        return current_answer().sizes.k if self.k is None else self.k

    def forward(self, query: str, k: int | None = None) -> dspy.Prediction:
        """``Prediction(episodes=[Episode, ...])``, best first."""
        return drive(self._flow(query, self.size if k is None else k))

    async def aforward(self, query: str, k: int | None = None) -> dspy.Prediction:
        return await adrive(self._flow(query, self.size if k is None else k))

    def _flow(self, query: str, k: int) -> Steps[dspy.Prediction]:
        answer = current_answer()
        if answer.memory is None:
            return dspy.Prediction(episodes=[])
        cut = answer.cut or MemoryCut()
        search = partial(answer.memory.recall, query, k, before=cut.before, exclude=cut.exclude)
        return dspy.Prediction(episodes=(yield Blocking(search)))  # an encoder takes its time
