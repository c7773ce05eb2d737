"""Gives a new user the decision rules that similar users share.

Opt-in: nothing uses it by itself.

No text of another user passes: only (word, response) pairs of typed decision rules, each held by at least ``least``
users, the response one of the task's labels. What fewer users share stays with them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from persona_dspy.core import Bullet, Interaction, Persona, ResponseKind
from persona_dspy.errors import InputError
from persona_dspy.memory import content_words, facts

__all__ = ["Cohort"]

WORDS = 6  # words a rule names at most


class Cohort:
    """The personas of other users, from which shared rules are drawn.

    Args:
        personas: one a user; of several of one user the last counts.
        least: how many users must hold a (word, response) pair before another may see it, 3 or more.
        nearest: how many similar users are asked.

    Raises:
        InputError: ``least`` below 3 (a pair held by two users tells each of them what the other wrote).

    Example:
        >>> def persona(n):
        ...     rule = Bullet(section="what decides", words=("ghost",), then="comedy", source="learned")
        ...     return Persona(user_id=f"u{n}", bullets=(rule,))
        >>> cohort = Cohort(persona(n) for n in range(3))
        >>> kind = ResponseKind(name="label", labels=("comedy", "horror"))
        >>> [b.sentence for b in cohort.bullets(Persona(user_id="new"), [], kind)]
        ['If it mentions "ghost", answer "comedy".']
    """

    def __init__(self, personas: Iterable[Persona], *, least: int = 3, nearest: int = 20) -> None:
        if least < 3:
            raise InputError(f"Cohort(least={least!r}): expected 3 or more users who share what is passed on")
        if nearest < least:
            raise InputError(f"Cohort(nearest={nearest!r}): expected at least least={least}")
        self.least, self.nearest = least, nearest
        self._members = {p.user_id: p for p in personas}

    def __len__(self) -> int:
        return len(self._members)

    def bullets(self, persona: Persona, past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
        """Rules that at least ``least`` of the users most similar to this one share; none for free text.

        Similar: the cosine of how often each response was given, by the rules and facts of a persona and by the
        user's own ``past``; with an empty past all users count alike. Words on which the users disagree are left out.
        """
        if not kind.labels:
            return []
        others = [p for user, p in self._members.items() if user != persona.user_id]
        own_profile = _profile([*persona.bullets, *facts(past, kind)], [i.response for i in past])
        others.sort(key=lambda other: (-_cosine(own_profile, _profile(other.bullets, [])), other.user_id))
        held: dict[str, Counter[str]] = defaultdict(Counter)
        for other in others[: self.nearest]:
            for word, then in {(w, r.then) for r in other.section("what decides") for w in _words(r)}:
                if then in kind.labels:
                    held[word][then] += 1
        rules: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for word, answers in held.items():
            then, users = answers.most_common(1)[0]
            if users >= self.least and users * 4 >= answers.total() * 3:
                rules[then].append((users, word))
        return [self._rule(then, found) for then, found in sorted(rules.items())]

    def _rule(self, then: str, found: list[tuple[int, str]]) -> Bullet:
        words = [word for _, word in sorted(found, key=lambda pair: (-pair[0], pair[1]))[:WORDS]]
        return Bullet(section="what decides", words=tuple(words), then=then, source="learned")


def _words(rule: Bullet) -> set[str]:
    """Single plain words that a rule names; phrases and anything with digits or signs stay with their user."""
    return {word for word in rule.words if content_words(word) == {word}}


def _profile(bullets: Iterable[Bullet], responses: Sequence[str]) -> Counter[str]:
    counts = Counter(responses)
    for bullet in bullets:
        if bullet.then:
            counts[bullet.then] += max(1, bullet.hits)
    return counts


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    norm = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return sum(n * b[key] for key, n in a.items()) / norm if norm else 0.0
