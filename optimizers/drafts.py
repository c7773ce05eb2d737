"""Drafts that the user judged or edited, as attempts to learn from, without asking an LM for new answers."""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from optimizers.loss import Simulated
from persona_dspy.agent import PersonalProgram
from persona_dspy.core import Interaction, ResponseKind, Signal, clip_middle, in_time_order, indented

__all__ = ["attempt_of", "comments", "heard", "in_order", "score_by_signal", "spoken_of"]

COMMENT = 300  # estimated tokens of a comment that are read
UNKNOWN = 0.5  # the score of an answer of which nobody can tell whether the user likes it


def heard(signal: Signal) -> str:
    """The user's verdict on the draft as the end of a sentence that begins "the user ..."; empty where there is none.

    Example:
        >>> heard(Signal(draft="Dear Sir, ...", thumbs="down", comment="too stiff"))
        'disliked it (thumbs down), and said of it: "too stiff"'
    """
    parts: list[str] = []
    if signal.thumbs:
        parts.append("liked it (thumbs up)" if signal.thumbs == "up" else "disliked it (thumbs down)")
    if signal.rating is not None and signal.scale is not None:
        low, high = signal.scale
        parts.append(f"rated it {signal.rating:g} on a scale from {low:g}, the worst, to {high:g}")
    if signal.preferred:
        parts.append("chose the other one")
    if signal.comment:
        parts.append(f'said of it: "{_words(signal)}"')
    elif parts and signal.disliked and not signal.preferred:
        parts[-1] += ", and did not say why"
    return ", and ".join(parts)


def attempt_of(interaction: Interaction, kind: ResponseKind) -> Simulated | None:
    """The draft that the user judged, edited or passed over; None where there was none."""
    signal = interaction.signal
    if signal is None:
        return None
    draft = signal.draft or next(iter(signal.rejected), "")
    if not draft or not (signal.judged or interaction.answered):
        return None
    approval = signal.approval
    score = UNKNOWN if approval is None else approval
    if interaction.answered:
        score = kind.score(interaction.response, draft)
    return Simulated(
        interaction_id=interaction.id,
        query=interaction.query,
        answer=kind.beside(draft, interaction.response),
        gold=interaction.response,
        score=score,
        said=f"the user's own words: {_words(signal)}" if signal.comment else "",
        draft=draft,
        heard=heard(signal),
        unexplained=signal.disliked and not (signal.comment or interaction.answered),
    )


def score_by_signal(signal: Signal | None, answer: str) -> float:
    """How an answer, of a label or a number, does where the user only judged another: as good as the draft if it is
    the same; if it is not, better than one that was disliked, which may still be wrong, and worse than one liked.

    Example:
        >>> disliked = Signal(draft="comedy", thumbs="down")
        >>> score_by_signal(disliked, "Comedy"), score_by_signal(disliked, "horror")
        (0.0, 0.5)
    """
    if signal is None or signal.approval is None:
        return UNKNOWN
    same = " ".join(answer.split()).casefold() == " ".join(signal.draft.split()).casefold()
    return signal.approval if same else min(UNKNOWN, 1 - signal.approval)


def spoken_of(program: PersonalProgram, last: dspy.Example | None = None) -> list[dspy.Example]:
    """Examples of the drafts that the user judged without an answer of their own, oldest first; ``last``: none that
    came later. Each has its ``signal`` and no response."""
    until = program.memory.get(last.interaction_id) if last is not None else None
    time = until.time if until is not None else None
    examples: list[dspy.Example] = []
    for interaction in program.memory.signals:
        late = last is not None and (time is None or interaction.time is None or interaction.time > time)
        if not (interaction.answered or late) and attempt_of(interaction, program.kind) is not None:
            examples.append(program.example(interaction).copy(signal=interaction.signal))
    return examples


def in_order(program: PersonalProgram, examples: Sequence[dspy.Example]) -> list[dspy.Example]:
    """The examples sorted by the user's own time, oldest first."""
    answered = {i.id: i for i in program.memory.interactions}
    everything = answered | {i.id: i for i in program.memory.signals if not i.answered}
    places = {i.id: place for place, i in enumerate(in_time_order(everything.values()))}
    return sorted(examples, key=lambda example: places[example.interaction_id])


def comments(interactions: Sequence[Interaction], most: int = 12) -> list[str]:
    """The user's latest comments on drafts, each once, oldest first."""
    signals = [i.signal for i in interactions if i.signal is not None and i.signal.comment]
    return list(dict.fromkeys(f'"{_words(signal)}"' for signal in signals))[-most:]


def _words(signal: Signal) -> str:
    """The user's comment with its line breaks, which may be what it is about."""
    return indented(clip_middle(signal.comment.strip(), COMMENT))
