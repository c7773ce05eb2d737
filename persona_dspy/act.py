"""The action step: which of the user's memory tools are called, with what words. Owns: policies and the loop.

Not here: the response itself (agent.py), the tools' insides (memory, tools.py). In the paper's words
``a_t ~ pi_P(. | c_t)``: the persona is in the system message of the call that chooses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import dspy
from pydantic import BaseModel, Field

from persona_dspy.ledger import role
from persona_dspy.memory.episodic import Recall
from persona_dspy.memory.ranking import favoured, ranked
from persona_dspy.memory.semantic import content_words
from persona_dspy.persona import Persona
from persona_dspy.records import Episode
from persona_dspy.trace import Recalled, Step
from persona_dspy.untrusted import clip_tokens, fenced, one_line

__all__ = ["Act", "Policy", "past_block", "recall_step"]

Policy = Literal["fixed", "plan", "none"]

_CANDIDATES = 128  # near episodes among which recency and the persona decide


class Action(BaseModel):
    """A tool and the words to call it with."""

    action: Literal["recall_history", "recall_profile"]
    words: Annotated[str, Field(json_schema_extra={"maxLength": 80})]


class ChooseActions(dspy.Signature):
    """Choose what to look up in this user's own past before the query is answered. recall_history finds past
    queries and the user's own responses by search words; recall_profile shows what is true of the user overall."""

    query: str = dspy.InputField(desc="what has to be answered next; do not answer it here")
    actions: Annotated[list[Action], Field(json_schema_extra={"minItems": 1, "maxItems": 2})] = dspy.OutputField(
        desc="one or two look-ups"
    )


class Act(dspy.Module):
    """Chooses and runs actions for one query; ``Prediction(episodes, steps, observations)``.

    ``fixed``: recall by the query itself, no LM call. ``plan``: one LM call picks tools and words; whatever it picks,
    recall by the query itself fills up to k, so that a poor choice costs nothing. ``none``: no memory.
    """

    def __init__(self, *, policy: Policy = "fixed", recall: Recall | None = None) -> None:
        super().__init__()
        self.policy: Policy = policy
        self.recall = recall or Recall()
        if policy == "plan":
            self.choose = dspy.Predict(ChooseActions)

    def forward(self, query: str) -> dspy.Prediction:
        chosen: list[Action] = []
        if self.policy == "plan":
            with role("act"):
                chosen = self.choose(query=query).actions
        return self._run(query, chosen)

    async def aforward(self, query: str) -> dspy.Prediction:
        chosen: list[Action] = []
        if self.policy == "plan":
            with role("act"):
                chosen = (await self.choose.acall(query=query)).actions
        return self._run(query, chosen)

    def _run(self, query: str, chosen: Sequence[Action]) -> dspy.Prediction:
        steps: list[Step] = []
        episodes: dict[str, Episode] = {}
        observations: list[str] = []
        if self.policy == "none" or not self.recall.k:
            return dspy.Prediction(episodes=[], steps=steps, observations="")
        for action in chosen:
            if action.action == "recall_history":
                found = self.recall(query=action.words).episodes
                steps.append(recall_step(action.words, found))
                episodes |= {e.id: e for e in found[: max(1, self.recall.k // 2)]}
        words = search_words(query)
        near = [e for e in self.recall(query=words, k=max(_CANDIDATES, self.recall.k)).episodes if e.id not in episodes]
        found = ranked(near, _favours(query), max(0, self.recall.k - len(episodes)))
        if found:
            steps.append(recall_step(words, found))
        nearest_first = [*found, *episodes.values()]
        return dspy.Prediction(episodes=nearest_first, steps=steps, observations="\n".join(observations))


def search_words(query: str) -> str:
    """What to recall by: the query, and what the current user's persona adds to it.

    The query's content words (the query itself where it has hardly any), and the words and the response of a decision
    rule that fits. So the persona decides which episodes are shown, which every model heeds: a 135M model follows the
    turns it sees and hardly its system message (docs/LOG.md).
    """
    persona: Persona | None = dspy.settings.get("user_persona")
    rules = [b for b in persona.section("decision rules") if b.when] if persona else []
    words = content_words(query)
    told = [w for w in dict.fromkeys(re.findall(r"[^\W\d_]+", query.lower())) if w in words]
    hints = [f"{' '.join(rule.quoted)} {rule.then}" for rule in rules if rule.fits(words)]
    return " ".join([" ".join(told) if len(told) > 2 else query, *hints[:2]])


def _favours(query: str) -> dict[str, float]:
    persona: Persona | None = dspy.settings.get("user_persona")
    return favoured(persona, content_words(query)) if persona else {}


def recall_step(query: str, episodes: Sequence[Episode]) -> Step:
    """The trace of a recall."""
    recalled = tuple(Recalled(id=e.id, score=round(e.score, 4)) for e in episodes)
    return Step(action="recall_history", query=one_line(query), recalled=recalled)


def past_block(episodes: Sequence[Episode], *, tokens: int = 60) -> str:
    """Episodes as one fenced list, nearest last; each clipped to ``tokens`` estimated tokens."""
    lines = [
        f"- {clip_tokens(one_line(e.interaction.query), tokens)} -> {clip_tokens(one_line(e.interaction.response), tokens)}"
        for e in reversed(episodes)
    ]
    return fenced("\n".join(lines), "this user's past queries and own responses")
