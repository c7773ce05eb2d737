"""Baselines that differ in what the prompt shows: nothing, recent examples, near examples, a profile."""

from __future__ import annotations

from collections.abc import Sequence

from dspy.utils.exceptions import AdapterParseError

from persona_dspy.agent import as_persona, described
from persona_dspy.core import Episode
from persona_dspy.judge.baselines.base import Baseline
from persona_dspy.memory import SemanticMemory

__all__ = ["ICL", "PAG", "RAG", "Direct"]


class Direct(Baseline):
    """The task and the query, nothing of the user (arXiv 2506.06254, section 4.1, "direct prompting")."""


class ICL(Baseline):
    """In-context learning: the user's k most recent interactions as examples, whatever is asked (Liu et al., arXiv
    2101.06804, survey its choices; arXiv 2506.06254 has it as baseline)."""

    def episodes(self, query: str) -> Sequence[Episode]:
        past = self.memory.interactions
        recent = list(enumerate(past))[-self.k :] if self.k else []
        return [Episode(interaction=item, position=at) for at, item in reversed(recent)]


class RAG(Baseline):
    """Retrieval: the k nearest interactions by BM25 (LaMP, arXiv 2304.11406, section 4)."""

    def episodes(self, query: str) -> Sequence[Episode]:
        return self.memory.recall(query, self.k)


class PAG(RAG):
    """Retrieval with a profile: an LM's summary of the user's history, made once, beside the k nearest interactions
    (Richardson et al., arXiv 2310.20081)."""

    profile: str | None = None

    def prepare(self) -> None:
        asked = described(self.predict.signature, self.query_field, self.response_field, self.kind)
        try:
            with as_persona("", adapter=self.adapter):  # asks the budget before the call
                bullets = SemanticMemory.once()(interactions=self.memory.interactions, asked=asked).bullets
        except AdapterParseError:
            bullets = []  # a summary that cannot be read is none
        self.profile = "\n".join(b.sentence for b in bullets)

    def notes(self) -> str:
        if self.profile is None:
            self.prepare()
        return f"What is known of this user:\n{self.profile}" if self.profile else ""
