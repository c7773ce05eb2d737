"""Which recalled episodes are shown, once a persona has a say. Owns: the order by relevance, recency and typicality.

Not here: how near an episode is to a query (``retrieval.py``), what a persona says (``persona.py``).

The three terms are those of generative agents' memory (Park et al., arXiv 2304.03442, section 4.1), each in [0, 1];
what they call importance is here how typical an episode's response is of this user, as the persona says. So a persona
decides what a model sees of the past, which weak models heed more than a system message. The weights were chosen on
histories alone, no held-out query (docs/results/judge-log.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from persona_dspy.core import Episode, Persona

__all__ = ["counted", "counts_sentence", "favoured", "ranked"]

RECENCY, HALF_LIFE, TYPICAL, RULE = 0.5, 2.0, 1.0, 0.5
_COUNTED = re.compile(r'"([^"]+)" (\d+) times?\b')
_TOTAL = re.compile(r"Answered (\d+) times so far: ")
_OPENING = "Answered {} times so far: "


def counts_sentence(total: int, counts: Sequence[tuple[str, int]]) -> str:
    """How often this user gave each response, as a persona says it; ``favoured`` reads it back.

    Example:
        >>> counts_sentence(3, [("drama", 2), ("horror", 1)])
        'Answered 3 times so far: "drama" 2 times, "horror" 1 time.'
    """
    said = ", ".join(f'"{label}" {n} time{"s" * (n != 1)}' for label, n in counts)
    return f"{_OPENING.format(total)}{said}."


def counted(persona: Persona) -> int:
    """How many answers of the user the persona counts; 0 where it counts none.

    Example:
        >>> counted(Persona.from_text('Answered 4 times so far: "a" 4 times.', user_id="u"))
        4
    """
    found = (_TOTAL.match(bullet.text) for bullet in persona.bullets)
    return max((int(match.group(1)) for match in found if match), default=0)


def favoured(persona: Persona, words: set[str]) -> dict[str, float]:
    """Response -> how much the persona speaks for it, >= 0, for a query with these content ``words`` (lower case).

    A response's share of the user's past, as the persona has it, plus ``RULE`` where a decision rule fits the query.

    Example:
        >>> favoured(Persona.from_text('Who: \\nAnswered 4 times so far: "a" 3 times, "b" 1 time.', user_id="u"), set())
        {'a': 0.75, 'b': 0.25}
    """
    found: dict[str, float] = {}
    for bullet in persona.bullets:
        opening = _TOTAL.match(bullet.text)
        if opening and (total := int(opening.group(1))):
            for label, n in _COUNTED.findall(bullet.text):
                found[label] = found.get(label, 0.0) + TYPICAL * min(1.0, int(n) / total)
    rules = [b for b in persona.section("decision rules") if b.when]
    # A counted default by itself says no more than the counts do; beside learned rules it says what they leave over.
    learned = any(b.source != "fact" for b in rules)
    fitting = [b for b in rules if b.fits(words)] or [b for b in rules if b.is_default and learned]
    for rule in fitting[:2]:
        found[rule.then] = found.get(rule.then, 0.0) + RULE
    return found


def ranked(episodes: Sequence[Episode], favours: Mapping[str, float], k: int) -> list[Episode]:
    """The ``k`` best of ``episodes``, best first, their new scores set. With no ``favours``: the order they came in.

    ``score = relevance / highest relevance + RECENCY * 0.5 ** (age / HALF_LIFE) + favour of the response``; age counts
    the positions between an episode and the newest of ``episodes``.
    """
    if not favours or not episodes:
        return list(episodes[:k])
    highest = max(max(e.score for e in episodes), 1e-9)
    newest = max(e.position for e in episodes)

    def score(episode: Episode) -> float:
        recency = RECENCY * 0.5 ** ((newest - episode.position) / HALF_LIFE)
        return max(episode.score, 0.0) / highest + recency + favours.get(episode.interaction.response, 0.0)

    best = sorted(((score(e), e.position, e) for e in episodes), key=lambda scored: scored[:2], reverse=True)[:k]
    return [replace(episode, score=found) for found, _, episode in best]
