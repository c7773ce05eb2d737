"""Chooses which of the similar episodes are shown: a varied selection, or, for small models, those that the persona
favours.

The three terms of ``ranked`` are those of generative agents' memory (Park et al., arXiv 2304.03442, section 4.1), each
in [0, 1]; what they call importance is here how typical an episode's response is of this user, as the persona counts.
The weights were chosen on histories alone, no held-out query (docs/results/judge-log.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from persona_dspy.core import Episode, Persona

__all__ = ["counted", "favoured", "ranked", "varied"]

RECENCY, HALF_LIFE, TYPICAL, RULE = 0.5, 2.0, 1.0, 0.5


def counted(persona: Persona) -> int:
    """How many answers of the user the persona counts; 0 where it counts none."""
    return max((b.counts.total for b in persona.bullets if b.counts), default=0)


def favoured(persona: Persona, words: set[str]) -> dict[str, float]:
    """Response -> how much the persona speaks for it, >= 0, for a query with these content ``words`` (lower case).

    A response's share of the user's past, as the persona counts it, plus ``RULE`` where a decision rule fits the query.

    Example:
        >>> from persona_dspy.core import Bullet, Counts
        >>> line = Bullet(section="who", text="Mostly a.", counts=Counts(total=4, each=(("a", 3), ("b", 1))))
        >>> favoured(Persona(user_id="u", bullets=(line,)), set())
        {'a': 0.75, 'b': 0.25}
    """
    favours: dict[str, float] = {}
    for counts in (bullet.counts for bullet in persona.bullets):
        for label, times in counts.each if counts and counts.total else ():
            favours[label] = favours.get(label, 0.0) + TYPICAL * min(1.0, times / counts.total)  # type: ignore[union-attr]
    rules = [b for b in persona.section("what decides") if b.when]
    # A counted default by itself says no more than the counts do; beside learned rules it says what they leave over.
    learned = any(b.source != "fact" for b in rules)
    fitting = [b for b in rules if b.fits(words)] or [b for b in rules if b.is_default and learned]
    for rule in fitting[:2]:
        favours[rule.then] = favours.get(rule.then, 0.0) + RULE
    return favours


def varied(episodes: Sequence[Episode], k: int, *, every_answer: bool = True) -> list[Episode]:
    """``k`` of ``episodes`` (nearest first), nearest first: near ones, recent ones, and of each answer not too many.

    First the nearest episode of each answer, for at most half of ``k`` answers, so that rare answers and near contrasts
    are among them; then in turn the latest and the nearest. No answer has more than half of the places while others
    are left. Where every answer is another, as in free text, only nearness and recency count; so too without
    ``every_answer``, for answers on a scale: there a sample that has more of the rare ones misleads (the median of 12
    past ratings is off by .83 with them, by .75 without, docs/results/retrieval.md).

    Example:
        >>> from persona_dspy.core import Interaction
        >>> def episode(n, response):
        ...     said = Interaction(user_id="u", query=f"film {n}", response=response)
        ...     return Episode(interaction=said, position=n, score=-n)
        >>> [e.interaction.response for e in varied([episode(n, "ab"[n == 9]) for n in range(10)], 4)]
        ['a', 'a', 'a', 'b']
    """
    if len(episodes) <= k:
        return list(episodes)
    by_answer: dict[str, Episode] = {}
    for episode in episodes if every_answer else ():
        by_answer.setdefault(episode.interaction.response, episode)
    per_answer = max(1, k // 2) if len(by_answer) > 1 else k
    chosen = {e.id: e for e in list(by_answer.values())[: max(1, k // 2)]}
    shown_answers = Counter(e.interaction.response for e in chosen.values())
    queues = [sorted(episodes, key=lambda e: -e.position), list(episodes)]
    for limit in (per_answer, k):  # the second time for places that only a frequent answer can fill
        turn = 0
        while len(chosen) < k and any(queues):
            queue = queues[turn % 2]
            while queue and (queue[0].id in chosen or shown_answers[queue[0].interaction.response] >= limit):
                queue.pop(0)
            if queue:
                episode = queue.pop(0)
                chosen[episode.id] = episode
                shown_answers[episode.interaction.response] += 1
            turn += 1
        queues = [sorted(episodes, key=lambda e: -e.position), list(episodes)]
    return [e for e in episodes if e.id in chosen]


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
    return [replace(episode, score=new_score) for new_score, _, episode in best]
