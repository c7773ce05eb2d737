"""What all baselines share: a signature, one user's memory, and a call like PersonaAgent's.

None of them has a persona: what they know of a user comes from memory alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from persona_dspy.agent import (
    Ask,
    Labels,
    Steps,
    Turn,
    as_persona,
    drive,
    drop_last,
    memory_of,
    narrowed,
    narrowed_to,
    options_of,
    own_labels,
    shown_options,
    within_context,
)
from persona_dspy.core import Episode, Interaction, ResponseKind, clip_tokens
from persona_dspy.errors import InputError
from persona_dspy.memory import EpisodicMemory

__all__ = ["Baseline"]


class Baseline(dspy.Module):
    """One user's answers by some method; called as PersonaAgent is: ``baseline(query_field="...")``.

    Args:
        signature: any DSPy signature; its first input is the query, its first output the response.
        history: this user's interactions, or an EpisodicMemory of them.
        user_id: whose; by default that of the history.
        k: how many episodes are shown.
        turn_tokens: estimated tokens that a shown query may have, as for PersonaAgent.
        labels: ``"declared"`` as in LaMP, or ``"own"``: only those that the user gives, as PersonaAgent has it.
        adapter: a DSPy adapter; by default the configured one, else what suits the LM.

    Example:
        >>> from persona_dspy.judge import Majority
        >>> past = [Interaction(user_id="u", query=f"film {n}", response="drama") for n in range(3)]
        >>> Majority("film -> tag", history=past)(film="Alien").tag
        'drama'
    """

    def __init__(
        self,
        signature: str | type[dspy.Signature],
        *,
        history: Iterable[Interaction | Mapping[str, Any]] | EpisodicMemory = (),
        user_id: str | None = None,
        k: int = 4,
        turn_tokens: int = 96,
        labels: Labels = "declared",
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.memory = memory_of(history, user_id)
        declared: Any = dspy.ensure_signature(signature)
        self.query_field = next(iter(declared.input_fields))
        self.response_field, field = next(iter(declared.output_fields.items()))
        self.kind = ResponseKind.of_field(field, [i.response for i in self.memory.interactions])
        self.k, self.turn_tokens, self.adapter = k, turn_tokens, adapter
        own = own_labels(self.kind, self.memory) if labels == "own" else ()
        self.predict = dspy.Predict(narrowed(declared, own))

    def prepare(self) -> None:
        """LM work that is done once for a user, before the first query; by default none."""

    def episodes(self, query: str) -> Sequence[Episode]:
        """What is shown for a query as past turns, best first; by default nothing."""
        return ()

    def notes(self) -> str:
        """What the system message says of the user; by default nothing."""
        return ""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        episodes, notes = self.episodes(self._query(inputs)), self.notes()
        own: Any = self.predict.signature
        signature: Any = narrowed_to(own, options_of(inputs))
        given = {n: v for n, v in inputs.items() if n in signature.input_fields}

        def respond(shown: Sequence[Episode]) -> Steps[dspy.Prediction]:
            with as_persona(notes, turns=self._turns(shown), adapter=self.adapter):
                return (yield Ask(self.predict, {**given, "signature": signature}))

        return drive(within_context(respond, episodes, drop_last))

    def _query(self, inputs: dict[str, Any]) -> str:
        query = str(inputs.get(self.query_field, ""))
        if not query.strip():
            raise InputError(f"{self.query_field} {query!r}: expected a query, such as {self.query_field}='...'")
        return query

    def _turns(self, episodes: Sequence[Episode]) -> list[Turn]:
        """As PersonaAgent shows them: past messages, the best last."""
        return [
            {
                self.query_field: "\n".join(
                    filter(None, (clip_tokens(e.interaction.query, self.turn_tokens), shown_options(e.interaction)))
                ),
                self.response_field: e.interaction.response,
            }
            for e in reversed(episodes)
        ]
