"""The evidence that a proposer may use, and the support of a rule in the user's own past.

Frequencies come from code, never from an LM: a rule is counted against the past before an LM call is spent on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from optimizers.loss import Simulated
from persona_dspy.core import Bullet, Edit, Feedback, Interaction, Outcome, Persona, ResponseKind, one_line, shared_runs
from persona_dspy.memory import content_words

__all__ = ["Challenger", "Evidence", "Momentum", "Support", "Tried", "grounded", "same", "support"]

RUN = 4  # words in a row that a line may not share with a text that judges, nor a condition with what was shown
KEPT = 5  # ids a bullet keeps: enough to check it by, few enough to read

RECENT = 6  # interactions a rule is checked against: enough to outvote one odd response
FADE = 0.7  # what each counts of the next later one: few enough to follow drift


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Refused edits, as sentences, and what came of them (``Trial.outcome``)."""

    edits: tuple[str, ...]
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a proposer may see. Nothing of the interactions that will judge its challengers is in it.

    ``asked``: what the program is asked, in words. ``past``: interactions that are not held out, oldest first;
    ``judged``: drafts that the user judged without an answer, likewise.
    ``tried``: challengers that the gate refused. ``secrets``: the texts that judge, in any fold, of which no line may
    hold a run of words.
    ``recurring``: feedback that came up in several steps, and in how many, most often first. ``riders``: edits that
    did not win, are borne out by the past, and stand again beside others.
    """

    kind: ResponseKind
    simulated: Sequence[Simulated]
    feedback: Sequence[Feedback]
    past: Sequence[Interaction]
    judged: Sequence[Interaction] = ()
    asked: str = ""
    tried: Sequence[Tried] = ()
    secrets: frozenset[str] = frozenset()
    recurring: Sequence[tuple[str, int]] = ()
    riders: Sequence[Edit] = ()

    @property
    def rejected(self) -> frozenset[frozenset[str]]:
        """The edits of each refused challenger, as sentences."""
        return frozenset(frozenset(t.edits) for t in self.tried)

    def copies(self, text: str) -> bool:
        """Whether a line holds a run of words of a text that judges; a phrase that came back in the past, which a
        writer knows from there, is none."""
        shared = {run for secret in self.secrets for run in shared_runs(text, secret, words=RUN)}
        return any(not self._comes_back(run) for run in shared)

    def _comes_back(self, run: tuple[str, ...]) -> bool:
        phrase = " ".join(run)
        return sum(bool(shared_runs(phrase, i.response, words=len(run))) for i in self.past) >= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenger:
    """A persona that stands for election, the edits that made it (for the record and the list of what was tried), and
    those of them that may stand again beside others if it neither wins nor loses. ``harmless``: it says who the user
    is, from counts or all of the past, and is kept where it does no harm. ``from_mistakes``: it was written from those
    just simulated, one of which it has to mend."""

    persona: Persona
    edits: tuple[str, ...] = field(default=())
    again: tuple[Edit, ...] = field(default=())
    harmless: bool = False
    from_mistakes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Of the latest interactions that a rule speaks of: how many, how many of them it answers as the user did, their
    share, in [0, 1], in which later ones count more (1 where there are none), and whether the last one agrees."""

    fitting: int
    agreeing: int
    share: float
    latest: bool = True

    @property
    def contradicted(self) -> bool:
        """Whether more of them speak against the rule than for it."""
        return self.share < 0.5

    @property
    def turned(self) -> bool:
        """They speak against it, but the last one for it: an odd response, or the first of a user who changed."""
        return self.contradicted and self.latest

    @property
    def borne_out(self) -> bool:
        """Whether at least two speak for it, and hardly any against."""
        return self.agreeing >= 2 and self.share >= 0.75


def support(rule: Bullet, past: Sequence[Interaction]) -> Support:
    """What the past (oldest first) says about a decision rule that names words; nothing about any other bullet.

    Example:
        >>> past = [Interaction(user_id="u", query=f"a ghost story {n}", response="comedy") for n in range(3)]
        >>> rule = Bullet(section="what decides", words=("ghost",), then="comedy")
        >>> support(rule, past)
        Support(fitting=3, agreeing=3, share=1.0, latest=True)
    """
    if not rule.words:
        return Support(fitting=0, agreeing=0, share=1.0)
    agree: list[bool] = []  # latest first
    for item in reversed(past):
        if rule.fits(content_words(item.query)):
            agree.append(same(item.response, rule.then))
            if len(agree) == RECENT:
                break
    weights = [FADE**age for age in range(len(agree))]
    share = sum(w for w, a in zip(weights, agree, strict=True) if a) / sum(weights) if agree else 1.0
    return Support(fitting=len(agree), agreeing=sum(agree), share=share, latest=all(agree[:1]))


def grounded(bullet: Bullet, evidence: Evidence) -> Bullet:
    """The bullet with the interactions that speak for it as its evidence (the latest few) and their number as hits.

    A decision rule: those answered as it says whose query has a word that its condition names in quotation marks, or,
    for a condition in free words, one of its words. A phrase that responses start or end with: those that do. Any other
    line: of the simulated ones those whose feedback, else whose query or response, shares words with it. None may.

    Example:
        >>> past = [Interaction(user_id="u", query=f"a ghost {n}", response=r, id=r) for n, r in enumerate("ab")]
        >>> rule = Bullet(section="what decides", words=("ghost",), then="b")
        >>> grounded(rule, Evidence(kind=ResponseKind(name="text"), simulated=(), feedback=(), past=past)).evidence
        ('b',)
    """
    texts = {i.id: (i.query, i.response) for i in evidence.past}
    texts |= {s.interaction_id: (s.query, s.gold) for s in evidence.simulated if s.interaction_id not in texts}
    if bullet.when:
        ids = [i for i, (query, said) in texts.items() if same(said, bullet.then) and _concerns(bullet, query)]
    elif bullet.opening or bullet.ending:
        has, phrase = (str.startswith, bullet.opening) if bullet.opening else (str.endswith, bullet.ending)
        plain = {i: said.strip().lower().replace('"', "'") for i, (_, said) in texts.items()}  # as the phrase is quoted
        ids = [i for i, said in plain.items() if has(said, phrase.lower())]
    else:
        ids = _sharing(content_words(bullet.text), evidence)
    return bullet.model_copy(update={"evidence": tuple(ids[-KEPT:]), "hits": len(ids)})


def _concerns(rule: Bullet, query: str) -> bool:
    words = content_words(query)
    return rule.is_default or (rule.fits(words) if rule.words else bool(words & content_words(rule.when)))


def _sharing(words: set[str], evidence: Evidence) -> list[str]:
    """Ids of the wrong ones whose feedback shares the words, in two or more where there are as many; else of the shown
    interactions that do themselves."""
    least = min(2, len(words))
    wrong = {s.interaction_id for s in evidence.simulated if not s.right}
    feedback_by_id = {f.interaction_id: f.text for f in evidence.feedback if f.interaction_id in wrong}
    simulated_by_id = {s.interaction_id: f"{s.query} {s.gold}" for s in evidence.simulated}
    for texts in (feedback_by_id, simulated_by_id or {i.id: f"{i.query} {i.response}" for i in evidence.past}):
        if sharing_ids := [i for i, text in texts.items() if least and len(words & content_words(text)) >= least]:
            return sharing_ids
    return []


def same(response: str, then: str) -> bool:
    """Whether two responses are equal apart from case and white space."""
    return one_line(response).lower() == one_line(then).lower()


class Momentum:
    """Feedback collected over the steps: a complaint that recurs weighs more, however it is worded.

    Example:
        >>> momentum = Momentum()
        >>> for step in range(2):
        ...     momentum.add([Feedback(interaction_id=f"i{step}", score=0.0, text="Prefers short, dry answers.")])
        >>> momentum.recurring
        [('Prefers short, dry answers.', 2)]
    """

    def __init__(self) -> None:
        self._seen: list[tuple[frozenset[str], str, int]] = []

    def add(self, feedback: Sequence[Feedback]) -> None:
        """The feedback of one step; the same complaint twice in a step counts once."""
        new: list[tuple[frozenset[str], str]] = []
        for text in dict.fromkeys(f.text for f in feedback if f.text):
            words = frozenset(re.findall(r"\w+", text.lower()))
            if words and not any(_alike(words, other) for other, _ in new):
                new.append((words, text))
        for words, text in new:
            at = next((n for n, (old, _, _) in enumerate(self._seen) if _alike(words, old)), None)
            times = self._seen.pop(at)[2] if at is not None else 0
            self._seen.append((words, text, times + 1))

    @property
    def recurring(self) -> list[tuple[str, int]]:
        """(latest wording, number of steps) of what came up in two steps or more, most often first."""
        repeated = [(text, times) for _, text, times in reversed(self._seen) if times > 1]
        return sorted(repeated, key=lambda pair: -pair[1])


def _alike(a: frozenset[str], b: frozenset[str]) -> bool:
    return len(a & b) >= 0.5 * len(a | b)
