"""The profile of a user as values: lines with evidence, which fade and are merged. Pure functions; no LM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from pydantic import BaseModel, ConfigDict, Field

from persona_dspy.core import BULLET_TOKENS, Bullet, Interaction, clip_tokens, count_tokens, echoes, one_line

__all__ = [
    "Profile",
    "ProfileLine",
    "count_line_tokens",
    "extend_mark",
    "make_line",
    "merge_lines",
    "merge_repeats",
    "sort_by_weight",
]

_EVIDENCE = 5  # ids a line keeps, the most recent
_FADED = 0.5  # a line below this weight is forgotten


class ProfileLine(BaseModel):
    """One sentence about the user, and what bears it out.

    ``weight`` counts the episodes that showed it, older ones by less; it is as of ``at``, in episodes read. ``hits``
    counts them in full; ``evidence`` holds the ids of the most recent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1)
    evidence: tuple[str, ...] = Field(min_length=1)
    hits: int = Field(ge=1)
    weight: float
    at: int = Field(ge=0)

    def faded(self, read: int, half_life: float) -> float:
        """The weight once ``read`` episodes were read: half of it is left after ``half_life`` without confirmation.

        Example:
            >>> ProfileLine(text="Likes tea.", evidence=("i1",), hits=2, weight=2.0, at=10).faded(30, half_life=20)
            1.0
        """
        return self.weight * 0.5 ** (max(0, read - self.at) / half_life)


class Profile(BaseModel):
    """What an LM's summary says of one user, and which of the user's interactions it covers. Immutable, JSON-safe.

    ``covers`` is the number of interactions it was made from, oldest first, read or passed over; ``mark`` identifies
    them, so that a profile is never taken for one of other interactions, such as a past without the gate's;
    ``read`` counts those that an LM was shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: str = Field(min_length=1)
    lines: tuple[ProfileLine, ...] = ()
    covers: int = 0
    mark: str = ""
    read: int = 0

    def begins(self, interactions: Sequence[Interaction]) -> bool:
        """Whether the interactions it covers are just the first of these."""
        return self.covers <= len(interactions) and extend_mark("", interactions[: self.covers]) == self.mark

    def bullets(self) -> list[Bullet]:
        """Its lines as persona bullets (section "who"), strongest first."""
        return [
            Bullet(section="who", text=line.text, evidence=line.evidence, hits=line.hits, source="summary")
            for line in self.lines
        ]


def make_line(text: str, evidence: tuple[str, ...], at: int) -> ProfileLine | None:
    """A line that an LM wrote; None where it says nothing or names no episode."""
    sentence = clip_tokens(one_line(text), BULLET_TOKENS)
    if not sentence or not evidence:
        return None
    return ProfileLine(text=sentence, evidence=evidence[-_EVIDENCE:], hits=len(evidence), weight=len(evidence), at=at)


def merge_repeats(lines: Iterable[ProfileLine], half_life: float) -> list[ProfileLine]:
    """Lines of which one repeats another become one; the later wording stays."""
    merged: list[ProfileLine] = []
    for line in lines:
        place = next((n for n, other in enumerate(merged) if _alike(other.text, line.text)), None)
        if place is None:
            merged.append(line)
        else:
            merged[place] = merge_lines([merged[place], line], line.text, half_life)
    return merged


def _alike(one: str, other: str) -> bool:
    return echoes(one, other, words=99) and echoes(other, one, words=99)


def merge_lines(parts: Sequence[ProfileLine], text: str, half_life: float) -> ProfileLine:
    """Several lines as one: their evidence and weight together."""
    latest = max(parts, key=lambda part: part.at)
    older = [part for part in parts if part is not latest]
    evidence = tuple(dict.fromkeys(e for part in [*older, latest] for e in part.evidence))
    return ProfileLine(
        text=text or latest.text,
        evidence=evidence[-_EVIDENCE:],
        hits=sum(part.hits for part in parts),
        weight=sum(part.faded(latest.at, half_life) for part in parts),
        at=latest.at,
    )


def sort_by_weight(lines: Iterable[ProfileLine], read: int, half_life: float) -> list[ProfileLine]:
    """Lines by their weight once ``read`` episodes were read, without those that have faded."""
    weighed = [(line.faded(read, half_life), line) for line in lines]
    weighed.sort(key=lambda pair: -pair[0])
    return [line for weight, line in weighed if weight >= _FADED]


def count_line_tokens(lines: Iterable[ProfileLine]) -> int:
    """Estimated tokens."""
    return sum(count_tokens(line.text) for line in lines)


def extend_mark(mark: str, interactions: Iterable[Interaction]) -> str:
    """A chain over ids, so that it grows by what is new and two different pasts never share one."""
    state = bytes.fromhex(mark)
    for interaction in interactions:
        state = blake2b(state + interaction.id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return state.hex()
