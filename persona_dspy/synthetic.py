"""Synthetic users with a hidden preference, and an LM that follows the rules it is shown. Owns: both.

Deterministic in their seed; the LM knows only what a request holds: it must be *told* what a user likes. Together
they make claims about alignment testable without a model (STYLE, invariants I1-I7).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import dspy

from persona_dspy.memory.semantic import content_words
from persona_dspy.records import Interaction
from persona_dspy.testing import FakeLM, Prompt

__all__ = ["TOPICS", "RuleFollower", "SyntheticUser", "rule_following_lm"]

TOPICS: dict[str, tuple[str, ...]] = {
    "space": ("rocket", "planet", "astronaut", "galaxy", "orbit"),
    "love": ("wedding", "kiss", "romance", "sweetheart", "honeymoon"),
    "crime": ("detective", "murder", "heist", "gangster", "alibi"),
    "fear": ("ghost", "haunted", "scream", "demon", "cellar"),
    "laughs": ("prank", "clumsy", "joke", "sitcom", "slapstick"),
    "past": ("castle", "knight", "emperor", "pharaoh", "viking"),
}
"""Topic -> words that give it away; no word belongs to two topics."""

STANDARD = {
    "space": "sci-fi", "love": "romance", "crime": "thriller", "fear": "horror", "laughs": "comedy", "past": "history",
}  # fmt: skip
LABELS = tuple(STANDARD.values())
_FILLER = ("story", "young", "small", "town", "family", "long", "journey", "night", "friends", "secret")
Tag = Literal["sci-fi", "romance", "thriller", "horror", "comedy", "history"]


class TagFilm(dspy.Signature):
    """Tag the film as this user would."""

    description: str = dspy.InputField()
    tag: Tag = dspy.OutputField()


@dataclass(frozen=True, kw_only=True)
class SyntheticUser:
    """A user who tags films by topic, with own ideas about some topics.

    Args:
        seed: decides everything else.
        odd_topics: how many of the six topics the user tags otherwise than the world does.
        noise: share of responses that are random.

    Example:
        >>> user = SyntheticUser(seed=1)
        >>> user.interactions(5) == SyntheticUser(seed=1).interactions(5)
        True
    """

    seed: int = 0
    odd_topics: int = 3
    noise: float = 0.0
    user_id: str = ""
    preference: Mapping[str, str] = field(init=False)

    signature = TagFilm

    def __post_init__(self) -> None:
        rng = random.Random(f"preference-{self.seed}")
        odd = rng.sample(sorted(TOPICS), self.odd_topics)
        own = {t: rng.choice([x for x in LABELS if x != STANDARD[t]]) if t in odd else STANDARD[t] for t in TOPICS}
        object.__setattr__(self, "preference", own)
        object.__setattr__(self, "user_id", self.user_id or f"synthetic-{self.seed}")

    def response(self, query: str) -> str:
        """What this user answers: the truth that an agent tries to learn."""
        words = content_words(query)
        topic = next(t for t, marks in TOPICS.items() if words & set(marks))
        return self.preference[topic]

    def interactions(self, n: int, *, start: int = 0) -> list[Interaction]:
        """``n`` dated interactions, oldest first; ``start`` continues an earlier series (held-out queries)."""
        made: list[Interaction] = []
        for i in range(start, start + n):
            rng = random.Random(f"interaction-{self.seed}-{i}")
            topic = rng.choice(sorted(TOPICS))
            words = [*rng.sample(TOPICS[topic], 2), *rng.sample(_FILLER, 3)]
            rng.shuffle(words)
            query = " ".join(words)
            said = rng.choice(LABELS) if rng.random() < self.noise else self.response(query)
            time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=i)
            made.append(Interaction(user_id=self.user_id, query=query, response=said, time=time, id=f"i{i}"))
        return made


class RuleFollower:
    """Handlers of an LM that does what its prompt says and knows the world's standard tags, but no user.

    Respond: the first decision rule of the system message with a word of the query; then, if ``heeds_turns``, a past
    turn that shares a topic word; then the standard tag. Feedback and edits: read off the mistakes shown.
    """

    def __init__(self, *, heeds_turns: bool = False) -> None:
        self.heeds_turns = heeds_turns

    def __call__(self, prompt: Prompt) -> dict[str, Any] | None:
        if "about_the_user" in prompt.outputs:
            return {"about_the_user": _critique(prompt.fields["attempt"])}
        if "edits" in prompt.outputs:
            return {"edits": _edits(prompt.fields["mistakes"])}
        if "new_notes" in prompt.outputs:
            return {"new_notes": _rewrite(prompt.fields["notes"], prompt.fields["feedback"])}
        if "lines" in prompt.outputs:
            return {"lines": []}
        if prompt.outputs and prompt.choices(prompt.outputs[-1]):
            said: dict[str, Any] = dict.fromkeys(prompt.outputs[:-1], "because of the notes")
            return {**said, prompt.outputs[-1]: self._respond(prompt)}
        return None

    def _respond(self, prompt: Prompt) -> str:
        query = next(iter(prompt.fields.values()), prompt.user)
        words, default = content_words(query), ""
        for when, then in re.findall(r'If (.+?), answer "(.+?)"\.', prompt.system):
            if words & set(re.findall(r'"([^"]+)"', when)):
                return then
            if when == "nothing else fits":
                default = then
        topics = {t for t, marks in TOPICS.items() if words & set(marks)}
        if self.heeds_turns:
            for user, assistant in reversed(prompt.turns):
                if topics & {t for t, marks in TOPICS.items() if content_words(user) & set(marks)}:
                    return next((c for c in prompt.choices(prompt.outputs[-1]) if c in assistant), "")
        choices = prompt.choices(prompt.outputs[-1])
        standard = [STANDARD[t] for t in sorted(topics) if STANDARD[t] in choices]
        return (standard or [default or choices[0]])[0]


def _critique(attempt: str) -> str:
    said = []
    for query, gold in re.findall(r"query: (.*?)\nour response: .*?\nthe user's own response: (\S+)", attempt):
        marks = sorted(content_words(query) - set(_FILLER))
        said.append(f'This user answers "{gold}" for: {", ".join(marks)}.')
    return " ".join(said)


def _edits(mistakes: str) -> list[dict[str, str]]:
    found: dict[str, list[str]] = {}
    for gold, marks in re.findall(r'This user answers "(.+?)" for: (.+?)\.', mistakes):
        found.setdefault(gold, []).extend(marks.split(", "))
    rules = []
    for gold, marks in list(found.items())[:3]:
        topics = [t for t, words in TOPICS.items() if set(marks) & set(words)]
        quoted = " or ".join(f'"{w}"' for w in TOPICS[topics[0]][:5]) if topics else ""
        rules.append({"when_the_query": f"mentions {quoted or marks[0]}", "answer": gold})
    return rules


def _rewrite(notes: str, feedback: str) -> str:
    old = re.findall(r"^- (.+)$", notes, re.MULTILINE)
    rules = [f'If the query {r["when_the_query"]}, answer "{r["answer"]}".' for r in _edits(feedback)]
    return "\n".join([*(line for line in old if line not in rules), *rules])


def rule_following_lm(*, heeds_turns: bool = False, **options: Any) -> dspy.LM:
    """A ``FakeLM`` over ``RuleFollower``.

    Example:
        >>> with dspy.context(lm=rule_following_lm()):
        ...     dspy.Predict(TagFilm)(description="a rocket leaves the planet").tag
        'sci-fi'
    """
    return FakeLM(RuleFollower(heeds_turns=heeds_turns), **options)
