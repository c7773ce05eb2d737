"""Semantic memory: what is true of a user over all of the user's episodes (paper section 3, ``P_u = f_s(S_t, D_u)``).

Owns: what code counts: facts and rules, as persona bullets with evidence ids. Not here: the LM's summary (profile.py),
single episodes (episodic.py), learning from mistakes (optimizers).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, median, pstdev
from typing import Any

from persona_dspy.core import NOTHING_ELSE, Bullet, Interaction, ResponseKind, mentions, one_line, parse_number
from persona_dspy.memory.ranking import counts_sentence
from persona_dspy.memory.stop_words import STOP_WORDS

__all__ = ["facts", "mined_rules"]

_EVIDENCE = 5  # ids a bullet keeps: enough to check it by, few enough to read


def facts(interactions: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    """What can be counted, as sentences; no LM. Interactions oldest first; fewer than 3 give nothing.

    Labels: how often each, drift between early and late. Ratings: mean, spread, commonest. Text: length,
    case, closing mark. Every bullet has ``source="fact"`` and the ids of its most recent evidence.

    Example:
        >>> past = [Interaction(user_id="u", query=f"film {n}", response="drama", id=str(n)) for n in range(4)]
        >>> facts(past, ResponseKind.of(str, ()))[0].text
        'Typical response: 1 word.'
    """
    if len(interactions) < 3:
        return []
    return {"label": _label_facts, "rating": _rating_facts, "text": _text_facts}[kind.name](interactions, kind)


def _label_facts(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    if kind.positional:
        return _topic_facts(past)
    counts = Counter(i.response for i in past)
    ranked = [(label, n) for label, n in counts.most_common() if n > 0][:4]
    (top, most) = ranked[0]
    found = [_fact("who", counts_sentence(len(past), ranked), past, most)]
    if most / len(past) >= 0.4 and one_line(top):  # a label of prompt structure alone says nothing
        found.append(_rule_fact(NOTHING_ELSE, top, [i for i in past if i.response == top]))
    if len(past) >= 12:
        late = past[-max(4, len(past) // 3) :]
        early = Counter(i.response for i in past[: -len(late)])
        now = Counter(i.response for i in late)
        (new, n), (old, _) = now.most_common(1)[0], early.most_common(1)[0]
        if new != old and n / len(late) >= 0.5 and early[new] / (len(past) - len(late)) <= 0.25:
            found.append(
                _fact("preferences", f'Lately answers "{new}" more often ({n} of the last {len(late)}).', late, n)
            )
    return found


def _topic_facts(past: Sequence[Interaction]) -> list[Bullet]:
    """Where responses only point at a place ("[1]", "B"), how often each was given says nothing of the user; what the
    user's own items are about does: words of their titles (else of the queries) that come back."""
    having: dict[str, list[Interaction]] = defaultdict(list)
    for item in past:
        for word in content_words(str(item.metadata.get("title") or item.query)):
            having[word].append(item)
    least = max(2, len(past) // 12)
    found = sorted(((w, i) for w, i in having.items() if len(i) >= least), key=lambda pair: (-len(pair[1]), pair[0]))
    if not found:
        return []
    said = ", ".join(f"{word} ({len(items)})" for word, items in found[:16])
    shown = {i.id: i for _, items in found[:16] for i in items}
    return [_fact("who", f"Own work is often about: {said}.", list(shown.values()), len(shown))]


def _rating_facts(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    values = [number for i in past if (number := parse_number(i.response)) is not None]
    if len(values) < 3:
        return []
    mean, spread = fmean(values), pstdev(values)
    common, n = Counter(i.response for i in past).most_common(1)[0]
    middle = (kind.low + kind.high) / 2
    level = "low" if mean < middle - 0.5 else "high" if mean > middle + 0.5 else "near the middle"
    text = f"Rates {level}: {mean:.1f} on average on a scale from {kind.low:g} to {kind.high:g}."
    counts = Counter(i.response for i in past)
    found = [_fact("who", text, past, n), _fact("who", counts_sentence(len(past), counts.most_common(4)), past, n)]
    if n / len(past) >= 0.4:
        found.append(_rule_fact(NOTHING_ELSE, common, [i for i in past if i.response == common]))
    if spread < 0.6:
        found.append(_fact("preferences", "Rates almost everything alike.", past, len(values)))
    elif spread > 1.3:
        found.append(_fact("preferences", "Uses the whole scale, extremes included.", past, len(values)))
    if len(values) >= 12:
        cut = len(values) * 2 // 3
        shift = fmean(values[cut:]) - fmean(values[:cut])
        if abs(shift) >= 0.6:
            way = "higher" if shift > 0 else "lower"
            found.append(
                _fact(
                    "preferences",
                    f"Lately rates {way} than before, by {abs(shift):.1f}.",
                    past[cut:],
                    len(values) - cut,
                )
            )
    return found


def _text_facts(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    texts = [i.response.strip() for i in past]
    words = median(len(t.split()) for t in texts)
    found = [_fact("style", f"Typical response: {words:g} word{'' if words == 1 else 's'}.", past, len(past))]
    checks: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("Starts in lower case.", lambda t: t[:1].islower()),
        ("Ends without a full stop.", lambda t: t[-1:] not in ".!?"),
        ("Uses exclamation marks.", lambda t: "!" in t),
        ("Asks questions.", lambda t: "?" in t),
        (
            "Writes In Title Case.",
            lambda t: len(t.split()) > 2 and sum(w[:1].isupper() for w in t.split()) / len(t.split()) > 0.7,
        ),
    )
    for sentence, holds in checks:
        agree = [i for i, t in zip(past, texts, strict=True) if holds(t)]
        if len(agree) >= 0.7 * len(past):
            found.append(_fact("style", sentence, agree, len(agree)))
    return found


def mined_rules(interactions: Sequence[Interaction], kind: ResponseKind, *, most: int = 6) -> list[Bullet]:
    """Decision rules that this user's own episodes bear out, found by counting words; candidates, not truths.

    A word marks a response when it stands in at least two of the user's queries, at least three quarters of them were
    answered so, and that is more than the response's share overall. Words of one response make one rule.
    Returns at most ``most`` rules, those with the most hits first; none for free text, none where responses only point
    at a place.
    """
    if kind.name == "text" or kind.positional or len(interactions) < 4:
        return []
    share = Counter(i.response for i in interactions)
    having: dict[str, list[Interaction]] = defaultdict(list)
    for item in interactions:
        for word in content_words(item.query):
            having[word].append(item)
    marks: dict[str, list[tuple[float, str, list[Interaction]]]] = defaultdict(list)
    for word, items in having.items():
        label, n = Counter(i.response for i in items).most_common(1)[0]
        usual = share[label] / len(interactions)
        if n >= 2 and n / len(items) >= 0.75 and n / len(items) > usual:
            marks[label].append((n * (n / len(items) - usual), word, [i for i in items if i.response == label]))
    rules: list[Bullet] = []
    for label, found in marks.items():
        if share[label] / len(interactions) >= 0.6:
            continue  # "if nothing else fits" says it already, and its words are those of everything
        found.sort(key=lambda mark: (-mark[0], mark[1]))
        best = found[:6]
        ids = {i.id: i for _, _, items in best for i in items}
        rules.append(
            Bullet(
                section="decision rules",
                when=mentions([word for _, word, _ in best]),
                then=label,
                evidence=tuple(list(ids)[-_EVIDENCE:]),
                hits=len(ids),
                source="learned",
            )
        )
    rules.sort(key=lambda rule: (-rule.hits, rule.then))
    return rules[:most]


def content_words(text: str) -> set[str]:
    """Lower-case words of four letters or more that are not English function words."""
    return {w for w in re.findall(r"[^\W\d_]{4,}", text.lower()) if w not in STOP_WORDS}


def _fact(section: Any, text: str, items: Sequence[Interaction], hits: int) -> Bullet:
    return Bullet(section=section, text=text, evidence=_recent(items), hits=hits, source="fact")


def _rule_fact(when: str, then: str, items: Sequence[Interaction]) -> Bullet:
    return Bullet(
        section="decision rules", when=when, then=then, evidence=_recent(items), hits=len(items), source="fact"
    )


def _recent(items: Sequence[Interaction]) -> tuple[str, ...]:
    return tuple(i.id for i in items[-_EVIDENCE:])
