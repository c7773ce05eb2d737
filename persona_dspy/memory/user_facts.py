"""Semantic memory, counted by code: facts and rules from all of a user's episodes (paper section 3,
``P_u = f_s(S_t, D_u)``)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from statistics import fmean, median_low
from typing import Any

import regex

from persona_dspy.core import (
    Bullet,
    Counts,
    FieldsKind,
    Interaction,
    ResponseKind,
    Section,
    can_be_listed,
    count_characters,
    is_spaceless,
    normalized,
    number_of,
    parse_number,
    split_words,
)
from persona_dspy.memory.stop_words import function_words, without_function_words

__all__ = ["facts", "mined_rules"]

_EVIDENCE = 5  # ids a bullet keeps: enough to check it by, few enough to read
_NAMED = 16  # answers counted by name; the rest as "other answers"
_LATE = 6  # of the latest answers, at least so many tell a drift
_CHANCE = 0.05
_LATIN_LETTER = regex.compile(r"\p{Latin}")
_STYLE = 24  # of the latest texts, so many tell the style


def facts(interactions: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    """What can be counted, as sentences; no LM. Interactions oldest first; fewer than 3 give nothing.

    Labels: how often each. Ratings: mean, and how often each. Either: a drift beyond chance between the latest third
    and what came before. Text: length, case, closing mark, layout of the latest. Every bullet has ``source="fact"`` and
    the ids of its most recent evidence.

    Example:
        >>> past = [Interaction(user_id="u", query=f"film {n}", response="drama", id=str(n)) for n in range(4)]
        >>> facts(past, ResponseKind.of(str, ()))[0].text
        'Typical response: 1 word.'
    """
    if isinstance(kind, FieldsKind):
        return [bullet for name, one in kind.fields for bullet in _field_facts(interactions, kind, name, one)]
    if len(interactions) < 3:
        return []
    return {"label": _label_facts, "rating": _rating_facts, "text": _text_facts}[kind.name](interactions, kind)


def _field_facts(past: Sequence[Interaction], kind: FieldsKind, name: str, one: ResponseKind) -> list[Bullet]:
    """What can be counted of one of several response fields; its name opens each sentence."""
    values = [(i, kind.values(i.response).get(name)) for i in past]
    answered = [replace(i, response=str(value)) for i, value in values if value is not None]
    return [
        Bullet.model_validate({**b.model_dump(exclude={"id", "counts"}), "text": f"{name}: {b.text}"})
        for b in facts(answered, one)
    ]


def _label_facts(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    if kind.positional:
        return _topic_facts(past)
    if len({i.signal.options for i in past if i.signal and i.signal.options}) > 1:
        return []  # how often each was answered says little where not each could be
    lines = [_counts(past, labels=kind.labels)]
    if len(past) >= 2 * _LATE:
        late = past[-max(_LATE, len(past) // 3) :]
        before, now = (Counter(i.response for i in part) for part in (past[: -len(late)], late))
        label, times = now.most_common(1)[0]
        listed = label in kind.labels or can_be_listed(label)
        if listed and not _may_be_chance(times, len(late), before[label], before.total()):
            text = f'Lately answers "{label}" more often than before: {times} of the last {len(late)}, '
            text += f"{before[label]} of the {before.total()} before."
            lines.append(_fact("who", text, late, times))
    return lines


def _counts(
    past: Sequence[Interaction], opening: str = "", *, on_scale: bool = False, labels: Collection[str] = ()
) -> Bullet:
    """How often each answer was given, as a sentence (the most frequent first, or ``on_scale`` from its low end) and as
    typed counts. Named are ``labels`` that the task declares, and answers that may stand in a system message."""
    counts = Counter(i.response for i in past)
    ranked = counts.most_common()
    named = [(label, times) for label, times in ranked if label in labels or can_be_listed(label)]
    named = named if len(named) == len(ranked) <= _NAMED + 1 else named[:_NAMED]
    rest = len(past) - sum(times for _, times in named)
    if on_scale:
        named = sorted(named, key=lambda pair: number_of(pair[0]) or 0.0)
    parts = [f'"{label}" {times}' for label, times in named]
    if rest:
        parts.append(f"{len(ranked) - len(named)} other answers {rest}")
    text = f"{opening}Answers so far ({len(past)}): {', '.join(parts)}."
    most = ranked[0][1]
    return _fact("who", text, past, most, counts=Counts(total=len(past), each=tuple(ranked)))


def _may_be_chance(times: int, of: int, before: int, of_before: int) -> bool:
    """Whether a share ``times / of`` over an earlier ``before / of_before`` may be chance (Fisher, one-sided, 5%)."""
    if times / of <= before / max(1, of_before):
        return True
    from scipy.stats import fisher_exact  # a second to import, for the few who may have changed

    table = [[times, of - times], [before, of_before - before]]
    result: Any = fisher_exact(table, alternative="greater")
    return bool(result.pvalue > _CHANCE)


def _topic_facts(past: Sequence[Interaction]) -> list[Bullet]:
    """Where responses only point at a place ("[1]", "B"), how often each was given says nothing of the user; what the
    user's own items are about does: words of their titles (else of the queries) that come back."""
    by_word: dict[str, list[Interaction]] = defaultdict(list)
    for item in past:
        for word in content_words(str(item.metadata.get("title") or item.query)):
            by_word[word].append(item)
    least = max(2, len(past) // 12)
    frequent = sorted(
        ((w, i) for w, i in by_word.items() if len(i) >= least), key=lambda pair: (-len(pair[1]), pair[0])
    )
    if not frequent:
        return []
    words = ", ".join(f"{word} ({len(items)})" for word, items in frequent[:16])
    evidence = {i.id: i for _, items in frequent[:16] for i in items}
    return [_fact("who", f"Own work is often about: {words}.", list(evidence.values()), len(evidence))]


def _rating_facts(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    values = [number for i in past if (number := parse_number(i.response)) is not None]
    if len(values) < 3:
        return []
    opening = f"On a scale from {kind.low:g} to {kind.high:g} the middle one of this user's answers is "
    opening += f"{median_low(values):g}, their average {fmean(values):.1f}. "
    lines = [_counts(past, opening, on_scale=True)]
    if len(values) >= 2 * _LATE:
        cut = len(values) - max(_LATE, len(values) // 3)
        early, late = values[:cut], values[cut:]
        shift = fmean(late) - fmean(early)
        if abs(shift) >= (kind.high - kind.low) / 8 and not _same_ratings(early, late):
            text = f"Lately gives {fmean(late):.1f} on average, {fmean(early):.1f} before."
            lines.append(_fact("who", text, past[cut:], len(late)))
    return lines


def _same_ratings(early: Sequence[float], late: Sequence[float]) -> bool:
    """Whether two series of ratings may differ by chance alone (Mann-Whitney, two-sided, 5%)."""
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(early, late).pvalue > _CHANCE)


def _text_facts(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    recent = past[-_STYLE:]  # style changes; what holds now counts
    texts = [i.response.strip() for i in recent]
    unit = "character" if is_spaceless("".join(texts)) else "word"
    lengths = sorted(count_characters(t) if unit == "character" else len(t.split()) for t in texts)
    typical, low, high = (lengths[round(q * (len(lengths) - 1))] for q in (0.5, 0.1, 0.9))
    text = f"Typical response: {typical} {unit}{'' if typical == 1 else 's'}"
    lines = [_fact("style", text + (f", most have {low} to {high}." if low < high else "."), recent, len(recent))]
    checks: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("Starts in lower case", lambda t: t[:1].islower()),
        ("Ends without a full stop", lambda t: bool(t) and not regex.search(r"\p{STerm}$", t)),
        ("Uses exclamation marks", lambda t: regex.search("[!！՜]", t) is not None),
        ("Asks questions", lambda t: regex.search("[?？؟;՞፧]", t) is not None),
        ("Writes several paragraphs or a list", lambda t: "\n" in t),
        (
            "Writes In Title Case",
            lambda t: len(t.split()) > 2 and sum(w[:1].isupper() for w in t.split()) / len(t.split()) > 0.7,
        ),
    )
    for sentence, holds in checks:
        agreeing = [i for i, t in zip(recent, texts, strict=True) if holds(t)]
        if len(agreeing) >= 0.7 * len(recent):
            share = "" if len(agreeing) == len(recent) else f" ({len(agreeing)} of {len(recent)})"
            lines.append(_fact("style", f"{sentence}{share}.", agreeing, len(agreeing)))
    return lines


def mined_rules(interactions: Sequence[Interaction], kind: ResponseKind, *, most: int = 6) -> list[Bullet]:
    """Decision rules that this user's own episodes bear out, found by counting words; candidates, not truths.

    A word marks a response when it stands in at least two of the user's queries, at least three quarters of them were
    answered so, and that is more than the response's share overall. Words of one response make one rule.
    Returns at most ``most`` rules, those with the most hits first; none for free text, none where responses only point
    at a place.
    """
    if kind.name == "text" or kind.positional or len(interactions) < 4:
        return []
    label_counts = Counter(i.response for i in interactions)
    by_word: dict[str, list[Interaction]] = defaultdict(list)
    for item in interactions:
        for word in content_words(item.query):
            by_word[word].append(item)
    by_label: dict[str, list[tuple[float, str, list[Interaction]]]] = defaultdict(list)
    for word, items in by_word.items():
        label, n = Counter(i.response for i in items).most_common(1)[0]
        overall = label_counts[label] / len(interactions)
        if n >= 2 and n / len(items) >= 0.75 and n / len(items) > overall:
            by_label[label].append((n * (n / len(items) - overall), word, [i for i in items if i.response == label]))
    rules: list[Bullet] = []
    for label, words in by_label.items():
        if label_counts[label] / len(interactions) >= 0.6:
            continue  # "if nothing else fits" says it already, and its words are those of everything
        words.sort(key=lambda mark: (-mark[0], mark[1]))
        best = words[:6]
        ids = {i.id: i for _, _, items in best for i in items}
        rules.append(
            Bullet(
                section="what decides",
                words=tuple(word for _, word, _ in best),
                then=label,
                evidence=tuple(list(ids)[-_EVIDENCE:]),
                hits=len(ids),
                source="learned",
            )
        )
    rules.sort(key=lambda rule: (-rule.hits, rule.then))
    return rules[:most]


def content_words(text: str) -> set[str]:
    """Words that may say what a text is about, lower case: no numbers and no function words of the text's language; of
    four letters or more in Latin script, of two or more in others.

    Example:
        >>> sorted(content_words("The robots of 1984, été")), sorted(content_words("это фильм о войне"))
        (['robots'], ['войне', 'фильм'])
    """
    letters = regex.sub(r"\p{N}+", " ", normalized(text, "NFC").lower())
    words = split_words(without_function_words(letters))
    return {word for word in words if _says_something(word)} - function_words(words)


def _says_something(word: str) -> bool:
    return len(word) >= (4 if word.isascii() or _LATIN_LETTER.search(word) else 2)


def _fact(section: Section, text: str, items: Sequence[Interaction], hits: int, **typed: Any) -> Bullet:
    return Bullet(section=section, text=text, evidence=_recent(items), hits=hits, source="fact", **typed)


def _recent(items: Sequence[Interaction]) -> tuple[str, ...]:
    return tuple(i.id for i in items[-_EVIDENCE:])
