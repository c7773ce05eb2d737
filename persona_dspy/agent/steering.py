"""What helps a small model to answer as a user would, and would be in a capable model's way."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from persona_dspy.core import Persona, ResponseKind, remember
from persona_dspy.lm import is_small
from persona_dspy.memory import EpisodicMemory, MemoryCut, content_words, counted, favoured

__all__ = ["Labels", "Steering", "narrowed", "own_labels"]

Labels = Literal["own", "declared"]
"""What a typed answer is taken from: the labels that this user gives, or all that the signature declares."""

LEAST, MOST = 8, 2000
_ALL = MemoryCut()


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """How a persona's typed parts steer an answer beside its text. All on for local engines, all off for other LMs.

    A small model follows the turns it sees and the schema it is held to, and hardly its system message (docs/LOG.md); a
    capable one reads the persona, and what is withheld from it can only mislead it.

    Args:
        labels: a typed answer is one of the labels that this user gives; never where a past interaction is replayed,
            since the right answer may be the first of its kind.
        recall: words of decision rules are searched for too.
        favour: of the episodes near a query, those are shown whose responses the persona's counts and rules favour.
        nearest_last: turns are shown with the nearest last, where a small model heeds it most; else oldest first.

    Example:
        >>> Steering.of(None) == Steering.off()
        True
    """

    labels: bool = True
    recall: bool = True
    favour: bool = True
    nearest_last: bool = True

    @classmethod
    def off(cls) -> Self:
        """Nothing is steered: the persona's text alone has a say."""
        return cls(labels=False, recall=False, favour=False, nearest_last=False)

    @classmethod
    def of(cls, lm: Any) -> Self:
        """What suits an LM."""
        return cls() if is_small(lm) else cls.off()

    def choices(
        self, kind: ResponseKind | None, persona: Persona | None, memory: EpisodicMemory | None
    ) -> tuple[str, ...]:
        """The labels, in declared order, that a user's answer is taken from; () = any.

        Where answers are one of a closed set and the persona counts ``LEAST`` answers or more: those the user has given
        among them, and those its decision rules name. A user gives the next answer from among those 88 to 98% of the
        time (three LaMP-like tasks, docs/results/judge-log.md). Past ``MOST`` interactions nothing is left to exclude.
        """
        if not self.labels or persona is None or memory is None or kind is None:
            return ()
        ruled = {b.then for b in persona.section("what decides") if b.then}
        labels = own_labels(kind, memory, also=ruled)
        return labels if labels and counted(persona) >= LEAST else ()

    def searched(self, query: str, kind: ResponseKind | None, persona: Persona | None) -> tuple[str, tuple[str, ...]]:
        """What to recall by, and the ids of the rules that had a say in it.

        The query's content words (the query itself where it has hardly any, or where labels only point at a place in
        it), and the words and the response of a decision rule that fits.
        """
        if not self.recall:
            return query, ()
        words = content_words(query)
        in_order = [w for w in dict.fromkeys(re.findall(r"[^\W\d_]+", query.lower())) if w in words]
        rules = [b for b in persona.section("what decides") if b.when and b.fits(words)][:2] if persona else []
        hints = [f"{' '.join(rule.words)} {rule.then}" for rule in rules]
        whole = len(in_order) <= 2 or (kind is not None and kind.positional)  # docs/results/judge-log.md, section 6
        return " ".join([query if whole else " ".join(in_order), *hints]), tuple(rule.id for rule in rules)

    def favours(self, query: str, persona: Persona | None) -> dict[str, float]:
        """Response -> how much the persona speaks for it, for this query; empty where it has no say."""
        return favoured(persona, content_words(query)) if self.favour and persona else {}


def own_labels(
    kind: ResponseKind, memory: EpisodicMemory, *, cut: MemoryCut = _ALL, also: Collection[str] = ()
) -> tuple[str, ...]:
    """The labels, in declared order, of ``LEAST`` interactions or more that ``cut`` lets see, and ``also``; () = any.

    Example:
        >>> from persona_dspy import Interaction
        >>> past = [Interaction(user_id="u", query=f"film {n}", response="drama") for n in range(8)]
        >>> own_labels(ResponseKind.of(Literal["drama", "action"]), EpisodicMemory(past))
        ('drama',)
    """
    if not kind.labels or len(memory) > MOST:
        return ()
    seen = memory.before(cut.before, cut.exclude)
    if len(seen) < LEAST:
        return ()
    given = {i.response for i in seen} | set(also)
    labels = tuple(label for label in kind.labels if label in given)
    return labels if len(labels) < len(kind.labels) else ()


@remember(maxsize=256)
def narrowed(signature: Any, labels: tuple[str, ...]) -> Any:
    """The signature whose response is one of ``labels``, as the declared type writes them; unchanged if none fit."""
    response, field = next(iter(signature.output_fields.items()))
    kept = tuple(value for value in get_args(field.annotation) if str(value) in labels)
    return signature.with_updated_fields(response, type_=Literal[kept]) if kept else signature
