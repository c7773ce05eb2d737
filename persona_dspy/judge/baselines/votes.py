"""Reference rows: what counting in the user's own history gives, without an LM.

An LM that does not beat these has learned nothing of the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import dspy

from persona_dspy.core import Interaction
from persona_dspy.judge.baselines.base import Baseline

__all__ = ["Majority", "Nearest"]


class Majority(Baseline):
    """The user's most frequent response; of equals the most recent (LaMP's own trivial baseline)."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        return self._said(self._vote(self.memory.interactions))

    def _vote(self, voters: Sequence[Interaction]) -> str:
        """``voters``: the more telling last."""
        counts = Counter(i.response for i in voters)
        latest = {i.response: at for at, i in enumerate(voters)}
        return max(counts, key=lambda response: (counts[response], latest[response]), default="")

    def _said(self, response: str) -> dspy.Prediction:
        return dspy.Prediction(**{self.response_field: self.kind.typed(response)})


class Nearest(Majority):
    """The vote of the 5 nearest interactions by BM25; of equals the nearest (k-nearest-neighbour classification)."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        near = self.memory.recall(self._query(inputs), 5)
        return self._said(self._vote([e.interaction for e in reversed(near)]))
