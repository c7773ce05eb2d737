"""Restricts typed answers to labels the user has used before."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any, Literal, get_args

from persona_dspy.agent.context import current_answer
from persona_dspy.core import ResponseKind
from persona_dspy.memory import EpisodicMemory, MemoryCut, counted

__all__ = ["Labels", "habitual", "narrowed", "own_labels"]

Labels = Literal["own", "declared"]
"""What a typed answer is taken from: the labels that this user gives, or all that the signature declares."""

LEAST, MOST = 8, 2000
_ALL = MemoryCut()


def habitual() -> tuple[str, ...]:
    """The labels, in declared order, that the current user's answer is taken from; () = any.

    Where answers are one of a closed set and the persona counts ``LEAST`` answers or more, of which as many may be seen
    (``Answering.cut``): those the user has given among them, and those its decision rules name. A user gives the next
    answer from among those 88 to 98% of the time (three LaMP-like tasks, docs/results/judge-log.md), and a weak model
    is far more often misled by labels that this user never gives. An answer that is new is allowed from the moment the
    user gives it. Past ``MOST`` interactions nothing is left to exclude.
    """
    answer = current_answer()
    persona, memory, kind = answer.persona, answer.memory, answer.kind
    if persona is None or memory is None or kind is None:
        return ()
    ruled = {b.then for b in persona.section("decision rules") if b.then}
    labels = own_labels(kind, memory, cut=answer.cut or _ALL, also=ruled)
    return labels if labels and counted(persona) >= LEAST else ()


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


@lru_cache(maxsize=256)
def narrowed(signature: Any, labels: tuple[str, ...]) -> Any:
    """The signature whose response is one of ``labels``, as the declared type writes them; unchanged if none fit."""
    response, field = next(iter(signature.output_fields.items()))
    kept = tuple(value for value in get_args(field.annotation) if str(value) in labels)
    return signature.with_updated_fields(response, type_=Literal[kept]) if kept else signature
