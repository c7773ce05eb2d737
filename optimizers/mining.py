"""Proposes edits by counting in the user's own past, without an LM call.

They are candidates: the gate decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from optimizers.evidence import Evidence, support
from optimizers.loss import Simulated
from persona_dspy.core import (
    NOTHING_ELSE,
    Bullet,
    Edit,
    Interaction,
    Persona,
    ResponseKind,
    count_tokens,
    parse_number,
)
from persona_dspy.memory import mined_rules

__all__ = ["fitted", "mined", "mined_style", "outdated", "shift"]

KEYWORD_TOKENS = 60  # of one keyword rule: longer ones are lists that nobody reads
_TAIL = 12  # responses looked at for openings and endings: the latest, since style drifts


def mined(incumbent: Persona, evidence: Evidence, past: Sequence[Interaction]) -> list[Edit]:
    """Drops of outdated rules, then additions of rules counted in ``past``; those that mend a recent mistake first."""
    missed = {s.gold for s in evidence.simulated if not s.right}
    rules = [current for rule in mined_rules(past, evidence.kind) if (current := _current(rule, past))]
    rules.sort(key=lambda rule: (rule.then not in missed, -rule.hits))
    bullets = [*rules, *mined_style(past, evidence.kind)]
    if rules and (default := _default(incumbent, past, evidence.kind)):
        bullets.insert(0, default)
    if moved := shift(evidence.simulated, evidence.kind):
        bullets.insert(0, moved)
    return [*outdated(incumbent, past), *(Edit(op="add", bullet=bullet) for bullet in bullets)]


def _current(rule: Bullet, past: Sequence[Interaction]) -> Bullet | None:
    """The rule with those of its words that the latest interactions still bear out; None where none is left."""
    alone = {word: rule.naming([word]) for word in rule.words}
    words = [word for word, single in alone.items() if support(single, past).borne_out]
    if len(words) == len(rule.words):
        return rule
    return rule.naming(words, id="") if words else None


def _default(incumbent: Persona, past: Sequence[Interaction], kind: ResponseKind) -> Bullet | None:
    """A rule for all other queries, with the commonest response, where the incumbent has none."""
    if kind.name != "label" or kind.positional or any(b.is_default for b in incumbent.bullets):
        return None
    then, hits = Counter(i.response for i in past).most_common(1)[0]
    if hits < 0.4 * len(past):
        return None
    ids = tuple(i.id for i in past if i.response == then)[-5:]
    return Bullet(section="what decides", when=NOTHING_ELSE, then=then, evidence=ids, hits=hits, source="learned")


def outdated(incumbent: Persona, past: Sequence[Interaction]) -> list[Edit]:
    """Edits that drop learned rules which the latest matching interactions contradict."""
    learned = [b for b in incumbent.bullets if b.when and b.source == "learned" and not b.locked]
    supports = ((b, support(b, past)) for b in learned)
    return [Edit(op="drop", id=b.id) for b, s in supports if s.fitting >= 3 and s.contradicted]


def shift(simulated: Sequence[Simulated], kind: ResponseKind) -> Bullet | None:
    """For ratings: how far the user is from us, where all recent differences point one way (at least two of them)."""
    if kind.name != "rating":
        return None
    pairs = [(parse_number(s.gold), parse_number(s.answer)) for s in simulated]
    gaps = [gold - answer for gold, answer in pairs if gold is not None and answer is not None]
    off = [gap for gap in gaps if gap]
    if len(off) < 2 or len(off) * 2 < len(gaps) or not (all(g > 0 for g in off) or all(g < 0 for g in off)):
        return None
    size = round(abs(fmean(off)), 1)
    way = "higher" if off[0] > 0 else "lower"
    ids = tuple(s.interaction_id for s in simulated if not s.right)
    text = f"Rates {size:g} {way} than you would think."
    by = size if way == "higher" else -size
    return Bullet(section="preferences", text=text, shift=by, evidence=ids[-5:], hits=len(off), source="learned")


def mined_style(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    """For free text: words that most of the latest responses begin or end with; none for fewer than four responses."""
    late = [i for i in past[-_TAIL:] if kind.name == "text"]
    if len(late) < 4:
        return []
    style_bullets: list[Bullet] = []
    for verb, end, ends in (("Starts", "opening", False), ("Ends", "ending", True)):
        phrase, items = _shared(late, ends)
        if phrase:
            ids = tuple(i.id for i in items[-5:])
            text = f'{verb} with "{phrase}".'
            values: Any = {"text": text, end: phrase, "evidence": ids, "hits": len(items), "source": "learned"}
            style_bullets.append(Bullet(section="style", **values))
    return style_bullets


def _shared(items: Sequence[Interaction], ends: bool) -> tuple[str, list[Interaction]]:
    """The longest phrase (up to 4 words) that 60% of the responses begin, or end, with."""
    for size in (4, 3, 2, 1):
        words = [i.response.split() for i in items]
        cuts = [" ".join(w[-size:] if ends else w[:size]) for w in words if len(w) > size]
        if not cuts:
            continue
        phrase, n = Counter(cuts).most_common(1)[0]
        if n >= 0.6 * len(items):
            matching = [i for i in items if (i.response.endswith(phrase) if ends else i.response.startswith(phrase))]
            return phrase.replace('"', "'"), matching
    return "", []


def fitted(persona: Persona, bullet: Bullet) -> list[Edit]:
    """How ``bullet`` is best put into ``persona``: one rule per response, no two rules for one word, one phrase for
    each end of a text.

    Its words join a learned rule with the same response where they fit in, and leave learned rules with another.
    Locked bullets, facts and rules in free words stay as they are.
    """
    end = "opening" if bullet.opening else "ending" if bullet.ending else None
    if end:
        old = [b for b in persona.section("style") if b.source == "learned" and not b.locked and getattr(b, end)]
        if old:
            return [] if old[0].text == bullet.text else [Edit(op="revise", id=old[0].id, bullet=bullet)]
    if not bullet.words:
        return [Edit(op="add", bullet=bullet)]
    edits: list[Edit] = []
    home: Bullet | None = None
    for rule in persona.section("what decides"):
        if rule.locked or rule.source != "learned" or not rule.words:
            continue
        if rule.then == bullet.then:
            home = home or rule
        elif rest := [word for word in rule.words if word not in bullet.words]:
            if len(rest) < len(rule.words):
                edits.append(Edit(op="revise", id=rule.id, bullet=rule.naming(rest)))
        else:
            edits.append(Edit(op="drop", id=rule.id))
    if home is None:
        return [*edits, Edit(op="add", bullet=bullet)]
    joined = list(dict.fromkeys([*home.words, *bullet.words]))
    if len(joined) == len(home.words):
        return edits
    evidence = tuple(dict.fromkeys([*home.evidence, *bullet.evidence]))[-5:]
    merged = home.naming(joined, evidence=evidence, hits=home.hits + bullet.hits)
    if count_tokens(merged.text) > KEYWORD_TOKENS:
        return [*edits, Edit(op="add", bullet=bullet)]
    return [*edits, Edit(op="revise", id=home.id, bullet=merged)]
