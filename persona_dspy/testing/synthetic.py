"""Synthetic users of several kinds, each with a hidden preference; deterministic in their seed.

With an LM that follows only the rules it is shown (``rule_following_lm``) they make claims about alignment testable
without a model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

import dspy

from persona_dspy.core import Interaction
from persona_dspy.memory import content_words
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.rule_follower import (
    CHOICES,
    FILLER,
    LABELS,
    QUALITY,
    STANDARD,
    TOPICS,
    RuleFollower,
    described,
    minutes_of,
)

__all__ = [
    "KINDS",
    "LABELS",
    "TOPICS",
    "HeadlineFilm",
    "PickFilm",
    "RateFilm",
    "SyntheticUser",
    "TagFilm",
    "rule_following_lm",
]

Tag = Literal["sci-fi", "romance", "thriller", "horror", "comedy", "history"]
Kind = Literal["topic rule", "label bias", "threshold shift", "style", "drift", "threshold"]
Given = Literal["answers", "edits", "comments", "thumbs", "choices"]
KINDS: tuple[Kind, ...] = get_args(Kind)[:-1]
"""Kinds whose preference words tell; for what a ``threshold`` user likes it takes a sentence with a number."""

_OPENINGS = ("honestly", "my take:", "in short:", "dear diary,", "quick note:")
_ENDINGS = ("over and out", "thanks a lot", "enough said", "so it goes", "mark my words")


class TagFilm(dspy.Signature):
    """Tag the film as this user would."""

    description: str = dspy.InputField()
    tag: Tag = dspy.OutputField()


class RateFilm(dspy.Signature):
    """Rate the film as this user would."""

    description: str = dspy.InputField()
    rating: Literal["1", "2", "3", "4", "5"] = dspy.OutputField()


class PickFilm(dspy.Signature):
    """Say whether this user would watch the film or skip it."""

    description: str = dspy.InputField()
    choice: Literal["watch", "skip"] = dspy.OutputField()


class HeadlineFilm(dspy.Signature):
    """Write a headline for the film as this user would."""

    description: str = dspy.InputField()
    headline: str = dspy.OutputField()


@dataclass(frozen=True, kw_only=True)
class SyntheticUser:
    """A user with own ideas about films.

    Args:
        seed: decides everything else.
        kind: ``topic rule``: tags some topics otherwise than the world does; ``label bias``: uses one tag for most
            topics; ``threshold shift``: rates one or two points higher or lower; ``style``: begins and ends every
            headline alike; ``drift``: a topic rule that changes at ``changes_at``; ``threshold``: skips films that run
            longer than some number of minutes, but for one topic, of which the user watches all.
        odd_topics: how many of the six topics the user tags in an own way.
        noise: share of responses that are random.
        changes_at: for drift, the first interaction after the change.

    Example:
        >>> user = SyntheticUser(seed=1)
        >>> user.interactions(5) == SyntheticUser(seed=1).interactions(5)
        True
    """

    seed: int = 0
    kind: Kind = "topic rule"
    odd_topics: int = 3
    noise: float = 0.0
    changes_at: int = 16
    user_id: str = ""
    preference: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "preference", self._preference(f"preference-{self.seed}"))
        name = f"synthetic-{self.seed}" if self.kind == "topic rule" else f"{self.kind.replace(' ', '-')}-{self.seed}"
        object.__setattr__(self, "user_id", self.user_id or name)

    def _preference(self, seed: str) -> dict[str, str]:
        """Topic -> tag, rating of the world -> rating, or end of a text -> phrase."""
        rng = random.Random(seed)
        if self.kind == "threshold shift":
            by = rng.choice([-2, -1, 1, 2])
            return {rating: str(min(5, max(1, int(rating) + by))) for rating in QUALITY}
        if self.kind == "threshold":
            return {"minutes": str(rng.randrange(95, 140, 5)), "but": rng.choice(sorted(TOPICS))}
        if self.kind == "style":
            return {"opening": rng.choice(_OPENINGS), "ending": rng.choice(_ENDINGS)}
        odd = rng.sample(sorted(TOPICS), self.odd_topics + (self.kind == "label bias"))
        if self.kind == "label bias":
            favourite = rng.choice([x for x in LABELS if x not in {STANDARD[t] for t in odd}])
            return {t: favourite if t in odd else STANDARD[t] for t in TOPICS}
        return {t: rng.choice([x for x in LABELS if x != STANDARD[t]]) if t in odd else STANDARD[t] for t in TOPICS}

    @property
    def signature(self) -> type[dspy.Signature]:
        """What this user does with films."""
        own = {"threshold shift": RateFilm, "style": HeadlineFilm, "threshold": PickFilm}
        return own.get(self.kind, TagFilm)

    def response(self, query: str) -> str:
        """What this user answers now: the truth that an agent tries to learn."""
        return self._response(query, self.preference)

    def _response(self, query: str, preference: Mapping[str, str]) -> str:
        words = content_words(query)
        if self.kind == "style":
            return f"{preference['opening']} {described(query)} {preference['ending']}"
        if self.kind == "threshold":
            exempt = words & set(TOPICS[preference["but"]])
            return "skip" if minutes_of(query) > int(preference["minutes"]) and not exempt else "watch"
        known = QUALITY if self.kind == "threshold shift" else TOPICS
        return preference[next(key for key, marks in known.items() if words & set(marks))]

    def interactions(self, n: int, *, start: int = 0, given: Given = "answers") -> list[Interaction]:
        """``n`` dated interactions, oldest first; ``start`` continues an earlier series (held-out queries).

        Args:
            given: what the user gives. ``"answers"``: what the user answered. Else something on a draft of a kind that
                anybody might have been shown: ``"edits"`` of it, a ``"comments"`` on it where it is not what the user
                would say, ``"thumbs"``, or ``"choices"`` between it and another draft.
        """
        before = self._preference(f"before-{self.seed}") if self.kind == "drift" else self.preference
        made: list[Interaction] = []
        for i in range(start, start + n):
            rng = random.Random(f"interaction-{self.seed}-{i}")
            topic = rng.choice(sorted(TOPICS))
            words = [*rng.sample(TOPICS[topic], 2), *rng.sample(FILLER, 3)]
            if self.kind == "threshold shift":
                words.append(rng.choice(QUALITY[rng.choice(sorted(QUALITY))]))
            rng.shuffle(words)
            query = " ".join(words)
            if self.kind == "threshold":
                query += f" runs {rng.randrange(70, 170)} minutes"
            said = self._response(query, before if i < self.changes_at else self.preference)
            if rng.random() < self.noise:
                said = self._random(rng, query)
            time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=i)
            told: dict[str, Any] = {"response": said} if given == "answers" else self._signal(rng, query, said, given)
            made.append(Interaction(user_id=self.user_id, query=query, time=time, id=f"i{i}", **told))
        return made

    def _signal(self, rng: random.Random, query: str, said: str, given: Given) -> dict[str, Any]:
        """What the user, who would have answered ``said``, makes of a draft."""
        draft = said if given == "thumbs" and rng.random() < 0.5 else self._random(rng, query)
        draft = described(query) if self.kind == "style" else draft
        right = draft == said
        if given == "edits":
            return {"response": said, "signal": {"draft": draft}}
        if given == "choices":
            other = draft if not right else self._random(rng, query)
            return {"signal": {"preferred": said, "rejected": [other] if other != said else []}}
        if given == "thumbs":
            return {"signal": {"draft": draft, "thumbs": "up" if right else "down"}}
        wish = f"I call that {said}"
        if self.kind == "style":
            head, _, tail = said.partition(described(query))
            wish = f'it starts with "{head.strip()}" and ends with "{tail.strip()}", if you ask me'
        return {
            "signal": {"draft": draft, "comment": "just right" if right else wish, "thumbs": "up" if right else None}
        }

    def _random(self, rng: random.Random, query: str) -> str:
        if self.kind == "style":
            return f"{rng.choice(_OPENINGS)} {described(query)} {rng.choice(_ENDINGS)}"
        if self.kind == "threshold":
            return rng.choice(CHOICES)
        return rng.choice(sorted(QUALITY) if self.kind == "threshold shift" else LABELS)


def rule_following_lm(*, heeds_turns: bool = False, **options: Any) -> dspy.LM:
    """A ``FakeLM`` over ``RuleFollower``.

    Example:
        >>> with dspy.context(lm=rule_following_lm()):
        ...     dspy.Predict(TagFilm)(description="a rocket leaves the planet").tag
        'sci-fi'
    """
    return FakeLM(RuleFollower(heeds_turns=heeds_turns), **options)
