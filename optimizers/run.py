"""Runs one compile of PersonaAlignment: simulate, get feedback, propose, elect; step after step.

Paper Algorithm 1 (arXiv 2506.06254), with a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from optimizers.acceptance import LEAST, Gate, Split
from optimizers.election import Election
from optimizers.evidence import Challenger, Evidence, Momentum, Tried, same, support
from optimizers.loss import Simulated
from optimizers.mistakes import Mistakes, mistakes_of
from optimizers.options import Observer, Options
from optimizers.proposals import FromPast, built
from optimizers.reflection import Reflection, reflecting
from optimizers.simulation import Simulator
from optimizers.text_judge import PairJudge
from persona_dspy.agent import PersonalProgram
from persona_dspy.core import (
    AlignmentStep,
    Bullet,
    Edit,
    Feedback,
    Interaction,
    Persona,
    Scores,
    Trial,
    Usage,
    answer_text,
    plural,
)
from persona_dspy.lm import Ledger, is_small
from persona_dspy.memory import content_words, facts

__all__ = ["Run"]

ENOUGH = 12  # interactions of a past that can spare the latest


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one split of the interactions gives: examples to fit on, the past without the held-out ones, an election."""

    fit: list[dspy.Example]
    past: tuple[Interaction, ...]
    judged: tuple[Interaction, ...]
    simulator: Simulator
    election: Election


class Run:
    """``loop()``, then ``final()`` and ``record_of``; ``loop`` raises BudgetExceeded with everything so far intact."""

    def __init__(
        self,
        options: Options,
        gate: Gate,
        program: PersonalProgram,
        splits: Sequence[Split],
        ledger: Ledger,
        watching: Sequence[Observer] = (),
    ) -> None:
        self.observers = (*options.observers, *watching)
        self.options, self.gate, self.program, self.ledger = options, gate, program, ledger
        self.proposer = options.proposer_for(self._reflector())
        self.loss = options.loss_for(self._reflector())
        self.initial = program.persona.value
        self.only_counts = all(b.source == "fact" for b in self.initial.bullets)
        # Counts are challengers like any other: nobody is left with them where no persona at all does better.
        self.incumbent = self.initial
        if self.only_counts and gate.decides:
            self.incumbent = self.initial.model_copy(update={"bullets": ()})
        places = [program.memory.position(e.interaction_id) for split in splits for e in (*split.fit, *split.held)]
        last = max((place for place in places if place is not None), default=-1)
        self.past = program.memory.interactions[: last + 1]  # what came after the examples is not for compile to know
        examples = {e.interaction_id for split in splits for e in (*split.fit, *split.held)}
        self.judged = tuple(i for i in program.memory.signals if not i.answered and i.id in examples)
        spoken = [i for i in (*self.past, *self.judged) if i.signal is not None]
        judge = PairJudge(program.kind, spoken, self.reflecting)
        self.judge = None if options.metric is not None or is_small(self._reflector()) else judge
        held = [e for split in splits for e in split.held]
        texts = [answer_text(e.get(program.response_field, "")) for e in held if program.kind.name == "text"]
        self.secrets = frozenset(text.strip() for text in texts) - {""}
        self.rounds = [self._round(split) for split in splits]
        self.tried: list[Tried] = []
        self.riders: list[Edit] = []
        self.momentum = Momentum()
        self.steps: list[AlignmentStep] = []
        self.simulated: set[str] = set()
        self.accepted = self.idle = 0
        self.leading = self.counts_judged = False
        self.stopped = ""
        self.notes: list[str] = []
        self.left_out = 0
        self.scores = Scores()
        self.unread: list[str] = []
        self.quoting = self.unlisted = 0
        self.read = 0

    def _round(self, split: Split) -> Round:
        hidden = frozenset(e.interaction_id for e in split.held)
        past, judged = (tuple(i for i in items if i.id not in hidden) for items in (self.past, self.judged))
        simulator = Simulator(self.program, self.options.metric, hidden, self.options.concurrency)
        election = Election(self.gate, simulator, split.held, partial(self.as_of, past=past), self.judge)
        return Round(fit=split.fit, past=past, judged=judged, simulator=simulator, election=election)

    def as_of(self, persona: Persona, past: Sequence[Interaction]) -> Persona:
        """The persona with its facts counted over ``past`` only."""
        if not any(b.source == "fact" for b in persona.bullets):
            return persona
        return persona.with_facts(facts(past, self.program.kind))

    def loop(self) -> None:
        """Runs all steps, until no mistake is left, nothing helps, or the epochs are over."""
        first = self.rounds[0]
        self.tell("start", fit=len(first.fit), held=len(first.election.held), folds=len(self.rounds))
        if not first.election.held and self.gate.decides:
            self.stopped = (
                f"{plural(len(first.fit), 'interaction')}: too few to fit on and hold out (at least {LEAST}); "
            )
            self.stopped += "the initial persona stays"
            self.incumbent = self.initial
            self._adopt_cohort()
            return
        if not self._may_judge(first):
            self.stopped = "the judge did not agree with the user's own edits and choices; the initial persona stays"
            self.incumbent = self.initial
            return
        self._before_the_first_step(first)
        self.stopped = self._epochs()
        self._settle(first)

    def _may_judge(self, first: Round) -> bool:
        """Whether an LM may judge drafts that the user wrote nothing to: where the user's edits and choices can tell,
        it has to agree with half of them or more."""
        unanswered = [e for e in first.election.held if e.get(self.program.response_field) is None]
        if self.judge is None or not any(map(self.judge.needed, unanswered)):
            return True
        agreed, decided = self.judge.agreement(self.past)
        if decided:
            self.notes.append(f"the judge agreed with {agreed} of {decided} of the user's edits and choices")
        return decided < LEAST or 2 * agreed >= decided

    def _epochs(self) -> str:
        perfect, proposer = 0, self.proposer
        for epoch in range(1, self.options.epochs + 1):
            round_ = self.rounds[(epoch - 1) % len(self.rounds)]
            self.incumbent = self.as_of(self.incumbent, round_.past)
            if self.gate.decides and round_.election.perfect(self.incumbent):
                perfect += 1
                if perfect == len(self.rounds):
                    return "nothing left to gain on the held-out interactions"
                continue
            perfect = 0
            if 1 < epoch <= len(self.rounds) and isinstance(proposer, FromPast):
                self._stand(round_, partial(proposer.from_past, self.incumbent, self._evidence(round_)))
            batch = self._batch(round_)
            if not batch:
                return "nothing wrong left"
            self._step(epoch, round_, batch)
            if self.idle >= self.options.patience:
                return f"plateau: {plural(self.idle, 'step')} without gain"
        return "all epochs done"

    def _before_the_first_step(self, first: Round) -> None:
        """Challengers that cost no simulation: what code counts, what the past shows by itself, what similar users have
        in common, an LM's summary."""
        self.incumbent = self.as_of(self.incumbent, first.past)  # no proposer reads counts of what judges it
        counts = self._counts(first)
        proposer = self.proposer if isinstance(self.proposer, FromPast) else None
        portrays = getattr(proposer, "portrait", None) is not None  # worth having where nothing is left to gain, too
        speaks = proposer is not None and (portrays or not self._perfect(first))
        together = bool(counts) and speaks and bool(getattr(proposer, "with_counts", False))
        if counts and not together:
            self._stand(first, lambda: counts)
        if self.options.cohort is not None and not self._perfect(first):
            self._stand(first, lambda: self._from_cohort(first))
        if proposer is not None and speaks:
            base = counts[0].persona if together else self.incumbent
            evidence = self._evidence(first)
            earlier = self._before(self._batch(first), first)
            ids = {e.interaction_id for e in self._batch(first)}
            judged = tuple(i for i in evidence.judged if i.id not in ids)
            if (
                portrays and len(earlier) + len(judged) >= ENOUGH
            ):  # having read what is simulated next, it would know it
                evidence = replace(evidence, past=earlier, judged=judged)
            self._stand(first, lambda: proposer.from_past(base, evidence))
            if together and not self.incumbent.bullets:
                self._stand(first, lambda: counts)
        if self.options.summary is not None and not self._perfect(first):
            self._stand(first, lambda: self._summary(first))

    def _perfect(self, round_: Round) -> bool:
        return self.gate.decides and round_.election.perfect(self.incumbent)

    def _counts(self, round_: Round) -> list[Challenger]:
        """What code counts over the past, as a challenger of the empty persona it then begins with."""
        if not (self.gate.decides and self.only_counts):
            return []
        counted = self.incumbent.with_facts(facts(round_.past, self.program.kind))
        if not counted.bullets:
            return []
        return [Challenger(persona=counted, edits=(f"count {len(round_.past)} answers",), harmless=True)]

    def _stand(self, round_: Round, propose: Callable[[], list[Challenger]]) -> None:
        """Holds an election without a simulation before it; the record has it as a step of epoch 0."""
        before, unread = self.ledger.usage, len(self.unread)
        with self.reflecting():
            challengers = propose()
        trials = self._elect(round_, challengers)
        if trials or len(self.unread) > unread:
            step = AlignmentStep(epoch=0, trials=trials, unread=len(self.unread) - unread, usage=self._spent(before))
            self.steps.append(step)
            score = round_.election.mean(self.incumbent)
            self.tell("step", epoch=0, accepted=sum(t.accepted for t in trials), score=score)

    def _from_cohort(self, first: Round) -> list[Challenger]:
        assert self.options.cohort is not None
        bullets = self.options.cohort.bullets(self.incumbent, first.past, self.program.kind)
        return self._adding(bullets, first)

    def _adding(self, bullets: Sequence[Bullet], first: Round) -> list[Challenger]:
        edits = [Edit(op="add", bullet=b) for b in bullets]
        challenger = built(self.incumbent, edits, self._evidence(first), len(edits)) if edits else None
        return [challenger] if challenger else []

    def _adopt_cohort(self) -> None:
        if self.options.cohort is None:
            return
        for challenger in self._from_cohort(self.rounds[0]):
            self.incumbent = challenger.persona
            count = len(challenger.edits)
            self.notes.append(f"started from {plural(count, 'rule')} of similar users; nothing could judge them yet")

    def _summary(self, first: Round) -> list[Challenger]:
        assert self.options.summary is not None
        earlier = self._before(self._batch(first), first)  # what is simulated next must not be told before
        if not earlier:
            return []
        try:
            bullets = self.options.summary(interactions=earlier, asked=self.program.asked()).bullets
        except AdapterParseError as failure:
            self.unread.append(f"no summary that could be read: {failure}"[:200])
            return []
        self.read += 1
        return self._adding(bullets, first)

    def _reflector(self) -> Any:
        return self.options.reflection_lm or self.program.own_lm()

    @contextmanager
    def reflecting(self) -> Generator[Reflection]:
        """Loss, update, portrait and judge calls: by the reflection LM, under no persona, counted and bounded."""
        with reflecting(self._reflector()) as reflection:
            yield reflection
        self.unread += reflection.unread
        self.quoting += reflection.quoting
        self.unlisted += reflection.unlisted
        self.read += reflection.read

    def _before(self, batch: Sequence[dspy.Example], round_: Round) -> tuple[Interaction, ...]:
        """The past as it stood before the first of ``batch``, of which no held-out interaction is part."""
        if not batch:
            return round_.past
        first = self.program.memory.get(batch[0].interaction_id)
        place = self.program.memory.position(batch[0].interaction_id)
        cut = place if place is not None or first is None else first.time
        return self.program.memory.before(cut, round_.simulator.held)

    def _batch(self, round_: Round) -> list[dspy.Example]:
        """The latest interactions not yet simulated that no rule of the incumbent answers as the user did, oldest
        first; without a gate, always the latest."""
        if not self.gate.decides:
            return round_.fit[-self.options.recent :]
        fresh = [e for e in round_.fit if e.interaction_id not in self.simulated and not self._explained(e)]
        return fresh[-self.options.recent :]

    def _explained(self, example: dspy.Example) -> bool:
        words = content_words(str(example.get(self.program.query_field, "")))
        rule = next((b for b in self.incumbent.section("what decides") if b.fits(words)), None)
        return rule is not None and same(answer_text(example.get(self.program.response_field, "")), rule.then)

    def _step(self, epoch: int, round_: Round, batch: list[dspy.Example]) -> None:
        before, unread = self.ledger.usage, len(self.unread)
        earlier = self._before(batch, round_)
        simulated = round_.simulator.run_or_given(self.as_of(self.incumbent, earlier), batch, self.initial)
        self.tell("simulated", epoch=epoch, scores=[s.score for s in simulated])
        feedback: list[Feedback] = []
        trials: tuple[Trial, ...] = ()
        if self.loss.mode == "every" or any(not s.right or s.said for s in simulated):
            feedback = self._feedback(simulated)
            self.momentum.add([f for f, s in zip(feedback, simulated, strict=True) if not s.right])
            with self.reflecting():
                challengers = self.proposer(self.incumbent, self._evidence(round_, simulated, feedback))
            trials = self._elect(round_, challengers, self._mistakes(round_, batch, simulated, earlier))
            self.idle = 0 if any(t.accepted for t in trials) else self.idle + 1
        # What stayed wrong now is not asked again: the next step looks at other interactions instead.
        self.simulated |= {s.interaction_id for s in simulated}
        self.steps.append(
            AlignmentStep(
                epoch=epoch,
                simulated=tuple(s.interaction_id for s in simulated),
                scores=tuple(round(s.score, 4) for s in simulated),
                feedback=tuple(f.text for f in feedback),
                trials=trials,
                unread=len(self.unread) - unread,
                usage=self._spent(before),
            )
        )
        score = round_.election.mean(self.incumbent)
        self.tell("step", epoch=epoch, accepted=sum(t.accepted for t in trials), score=score)

    def _mistakes(
        self,
        round_: Round,
        batch: Sequence[dspy.Example],
        simulated: Sequence[Simulated],
        earlier: Sequence[Interaction],
    ) -> Mistakes:
        seen = self.simulated | {e.interaction_id for e in batch}
        return mistakes_of(
            round_.simulator,
            batch,
            simulated,
            [e for e in round_.fit if e.interaction_id not in seen],
            as_then=partial(self.as_of, past=earlier),
            as_now=partial(self.as_of, past=round_.past),
            judge=self.judge,
        )

    def _evidence(
        self, round_: Round, simulated: Sequence[Simulated] = (), feedback: Sequence[Feedback] = ()
    ) -> Evidence:
        return Evidence(
            kind=self.program.kind,
            asked=self.program.asked(),
            simulated=simulated,
            feedback=feedback,
            past=round_.past,
            judged=round_.judged,
            tried=tuple(self.tried),
            secrets=self.secrets,
            recurring=self.momentum.recurring,
            riders=tuple(self.riders),
        )

    def _feedback(self, simulated: Sequence[Simulated]) -> list[Feedback]:
        with self.reflecting():
            notes = self.incumbent.render()
            return self.loss(simulated=simulated, task=self.program.asked(), notes=notes).feedback

    def _elect(
        self, round_: Round, challengers: Sequence[Challenger], mistakes: Mistakes | None = None
    ) -> tuple[Trial, ...]:
        """Challengers of this incumbent, one after the other, until one is accepted; the rest were made for another."""
        trials: list[Trial] = []
        for challenger in challengers:
            before = self.incumbent
            lead = partial(self._lead, challenger, before)
            shown = mistakes if challenger.from_mistakes else None
            trial = round_.election.stand(before, challenger, shown, lead)
            trials.append(trial)
            self.counts_judged = True
            self.incumbent, self.leading = challenger.persona if trial.accepted else before, False
            if trial.accepted:
                self.accepted += self.incumbent.version > before.version  # counts by themselves are nothing learned
                self.riders = [e for e in self.riders if e.sentence not in challenger.edits]
            else:
                self._remember(round_, challenger, trial)
            told = {"edits": list(challenger.edits), "persona": self.incumbent.render()}
            self.tell("judged", accepted=trial.accepted, score=trial.challenger_score, **told)
            if trial.accepted:
                break
        return tuple(trials)

    def _lead(self, challenger: Challenger, before: Persona, leads: bool) -> None:
        self.incumbent, self.leading = challenger.persona if leads else before, leads
        self.tell("leads", edits=list(challenger.edits) if leads else [], persona=self.incumbent.render())

    def _remember(self, round_: Round, challenger: Challenger, trial: Trial) -> None:
        """What was refused, for the proposer; rules that the past bears out ride along with a later challenger, since
        the held-out interactions may just not have shown what they are about."""
        if all(b.source == "fact" for b in challenger.persona.bullets):
            return  # counts are not the proposer's to try
        self.tried.append(Tried(edits=challenger.edits, outcome=trial.outcome))
        rode = {e.sentence for e in self.riders}
        if rode & set(challenger.edits):
            self.riders = []
            return
        for edit in challenger.again:
            if edit.bullet is not None and edit.bullet.words and support(edit.bullet, round_.past).borne_out:
                self.riders.append(edit)

    def _settle(self, first: Round) -> None:
        """The scores for the record: at the start, at the end, without any persona. Where none does better than what
        was learned, as a fold that judged later may show, nothing learned or counted is kept."""
        election = first.election
        if not election.held:
            return
        nobody = Persona(user_id=self.program.user_id)
        begun = nobody if self.only_counts and self.gate.decides else self.as_of(self.initial, first.past)
        without, start, end = (
            fmean(election.score(p)) for p in (nobody, begun, self.as_of(self.incumbent, first.past))
        )
        self.tell("simulated", epoch=0, scores=election.score(begun))
        if end < without and self.gate.decides:
            kept = tuple(b for b in self.incumbent.bullets if b.locked or b.source == "given")
            bare = self.incumbent.model_copy(update={"bullets": kept})
            score = fmean(election.score(bare))
            if score > end:
                self.incumbent, end, self.accepted = bare, score, 0
                self.notes.append("left out what was learned and counted: it did harm on the held-out interactions")
        if self.quoting:
            self.notes.append(f"lines left out since they quote an answer that judges: {self.quoting}")
        if self.unlisted:
            self.notes.append(f"not looked at, since the reflecting LM listed too many in one answer: {self.unlisted}")
        self.scores = Scores(without_persona=without, initial=start, final=end)
        self.tell("scored", **self.scores.model_dump())

    def final(self) -> Persona:
        """The incumbent with its facts brought up to date, to the last interaction that compile was given. Where the
        budget ended before anything was judged, the initial persona."""
        judged = self.counts_judged or self.leading or self.incumbent.bullets
        return self.as_of(self.incumbent if judged else self.initial, self.past)

    def _spent(self, before: Usage) -> Usage:
        return (self.ledger.usage - before).rounded()

    def tell(self, event: str, **details: Any) -> None:
        """Sends one event to every observer."""
        usage = self.ledger.usage
        message = {"event": event, "user_id": self.program.user_id, "calls": usage.calls, "tokens": usage.tokens}
        for observer in self.observers:
            observer(message | details)
