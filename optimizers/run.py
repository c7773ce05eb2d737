"""One compile of PersonaAlignment: the incumbent, the steps, what was tried and what it cost.

Paper Algorithm 1 (arXiv 2506.06254), with a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from optimizers.acceptance import LEAST, Gate, Split
from optimizers.election import Election
from optimizers.evidence import Challenger, Evidence, Momentum, same, support
from optimizers.loss import Simulated
from optimizers.options import Options
from optimizers.proposals import FromPast, built
from optimizers.pruning import pruned
from optimizers.simulation import Simulator
from persona_dspy.agent import PersonalProgram, as_persona
from persona_dspy.core import (
    Alignment,
    AlignmentStep,
    Bullet,
    Edit,
    Feedback,
    Interaction,
    Persona,
    Scores,
    Trial,
    Usage,
    UsageRecord,
    answer_text,
)
from persona_dspy.lm import Ledger
from persona_dspy.memory import content_words, facts

__all__ = ["Run"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one split of the interactions gives: examples to fit on, the past without the held-out ones, an election,
    and the held-out responses that no bullet may copy."""

    fit: list[dspy.Example]
    past: tuple[Interaction, ...]
    simulator: Simulator
    election: Election
    secrets: frozenset[str]


class Run:
    """``loop()``, then ``final()`` and ``record()``; ``loop`` raises BudgetExceeded with everything so far intact."""

    def __init__(
        self, options: Options, gate: Gate, program: PersonalProgram, splits: Sequence[Split], ledger: Ledger
    ) -> None:
        self.options, self.gate, self.program, self.ledger = options, gate, program, ledger
        self.incumbent = self.initial = program.persona.value
        self.follows_memory = any(b.source == "fact" for b in self.incumbent.bullets) or not self.incumbent.bullets
        places = [program.memory.position(e.interaction_id) for split in splits for e in (*split.fit, *split.held)]
        last = max((place for place in places if place is not None), default=-1)
        self.past = program.memory.interactions[: last + 1]  # what came after the examples is not for compile to know
        self.rounds = [self._round(split) for split in splits]
        self.rejected: set[frozenset[str]] = set()
        self.riders: list[Edit] = []
        self.momentum = Momentum()
        self.steps: list[AlignmentStep] = []
        self.simulated: set[str] = set()
        self.accepted = self.idle = 0
        self.leading = False
        self.stopped = ""
        self.notes: list[str] = []
        self.scores = Scores()

    def _round(self, split: Split) -> Round:
        hidden = frozenset(e.interaction_id for e in split.held)
        past = tuple(i for i in self.past if i.id not in hidden)
        simulator = Simulator(self.program, self.options.metric, hidden, self.options.concurrency)
        texts = [str(e.get(self.program.response_field, "")) for e in split.held if self.program.kind.name == "text"]
        return Round(
            fit=split.fit,
            past=past,
            simulator=simulator,
            election=Election(self.gate, simulator, split.held, lambda persona: self.as_of(persona, past)),
            secrets=frozenset(text.strip().lower() for text in texts) - {""},
        )

    def as_of(self, persona: Persona, past: Sequence[Interaction]) -> Persona:
        """The persona as it would have been then: its facts counted over ``past`` only."""
        return persona.with_facts(facts(past, self.program.kind)) if self.follows_memory else persona

    def loop(self) -> None:
        """All steps, until nothing is wrong, nothing helps, or the epochs are over."""
        first = self.rounds[0]
        self.tell("start", fit=len(first.fit), held=len(first.election.held), folds=len(self.rounds))
        if not first.election.held and self.gate.decides:
            self.stopped = f"{len(first.fit)} interactions: too few to fit on and hold out (at least {LEAST}); "
            self.stopped += "the initial persona stays"
            self._adopt_cohort()
            return
        self._before_the_first_step(first)
        self.stopped = self._epochs()
        self._compare_with_none(first)

    def _epochs(self) -> str:
        perfect, proposer = 0, self.options.proposer
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
                return f"plateau: {self.idle} steps without gain"
        return "all epochs done"

    def _before_the_first_step(self, first: Round) -> None:
        """Challengers that cost no simulation: what similar users have in common, what the past shows by itself,
        an LM's summary."""
        self.incumbent = self.as_of(self.incumbent, first.past)  # no proposer reads counts of what judges it
        sources: list[Callable[[], list[Challenger]]] = []
        if self.options.cohort is not None:
            sources.append(lambda: self._from_cohort(first))
        if isinstance(self.options.proposer, FromPast):
            proposer = self.options.proposer
            sources.append(lambda: proposer.from_past(self.incumbent, self._evidence(first)))
        if self.options.summary is not None:
            sources.append(lambda: self._summary(first))
        for propose in sources:
            if self.gate.decides and first.election.perfect(self.incumbent):
                return
            self._stand(first, propose)

    def _stand(self, round_: Round, propose: Callable[[], list[Challenger]]) -> None:
        """An election without a simulation before it, on the record as a step of epoch 0."""
        before = self.ledger.usage
        with self._reflecting():
            challengers = propose()
        if trials := self._elect(round_, challengers):
            self.steps.append(AlignmentStep(epoch=0, trials=trials, usage=self._spent(before)))
            score = round_.election.mean(self.incumbent)
            self.tell("step", epoch=0, accepted=sum(t.accepted for t in trials), score=score)

    def _from_cohort(self, first: Round) -> list[Challenger]:
        assert self.options.cohort is not None
        bullets = self.options.cohort.bullets(self.incumbent, first.past, self.program.kind)
        return self._adding(bullets, first)

    def _adding(self, bullets: Sequence[Bullet], first: Round) -> list[Challenger]:
        edits = [Edit(op="add", bullet=b) for b in bullets]
        made = built(self.incumbent, edits, self._evidence(first), len(edits)) if edits else None
        return [made] if made else []

    def _adopt_cohort(self) -> None:
        if self.options.cohort is None:
            return
        for made in self._from_cohort(self.rounds[0]):
            self.incumbent = made.persona
            self.notes.append(f"started from {len(made.edits)} rules of similar users; nothing could judge them yet")

    def _summary(self, first: Round) -> list[Challenger]:
        assert self.options.summary is not None
        earlier = self._before(self._batch(first), first)  # what is simulated next must not be told before
        if not earlier:
            return []
        try:
            bullets = self.options.summary(interactions=earlier).bullets
        except AdapterParseError:
            return []
        return self._adding(bullets, first)

    @contextmanager
    def _reflecting(self) -> Generator[None]:
        """Loss, update and summary calls: by the reflection LM, under no persona, counted and bounded like others."""
        lm = self.options.reflection_lm or self.program.own_lm()
        with dspy.context(lm=lm), as_persona("", lm=lm):
            yield

    def _before(self, batch: Sequence[dspy.Example], round_: Round) -> tuple[Interaction, ...]:
        """The past as it stood before the first of ``batch``, of which no held-out interaction is part."""
        first = self.program.memory.position(batch[0].interaction_id) if batch else None
        earlier = self.program.memory.before(first, round_.simulator.held)
        return earlier if batch else round_.past

    def _batch(self, round_: Round) -> list[dspy.Example]:
        """The latest interactions not yet simulated that no rule of the incumbent answers as the user did, oldest
        first; without a gate, always the latest."""
        if not self.gate.decides:
            return round_.fit[-self.options.recent :]
        fresh = [e for e in round_.fit if e.interaction_id not in self.simulated and not self._explained(e)]
        return fresh[-self.options.recent :]

    def _explained(self, example: dspy.Example) -> bool:
        words = content_words(str(example.get(self.program.query_field, "")))
        rule = next((b for b in self.incumbent.section("decision rules") if b.fits(words)), None)
        return rule is not None and same(answer_text(example.get(self.program.response_field, "")), rule.then)

    def _step(self, epoch: int, round_: Round, batch: list[dspy.Example]) -> None:
        before = self.ledger.usage
        then = self.as_of(self.incumbent, self._before(batch, round_))
        simulated = round_.simulator.run(then, batch)
        self.tell("simulated", epoch=epoch, scores=[s.score for s in simulated])
        feedback: list[Feedback] = []
        trials: tuple[Trial, ...] = ()
        if any(not s.right for s in simulated):
            feedback = self._feedback(simulated)
            self.momentum.add([f for f, s in zip(feedback, simulated, strict=True) if not s.right])
            with self._reflecting():
                challengers = self.options.proposer(self.incumbent, self._evidence(round_, simulated, feedback))
            trials = self._elect(round_, challengers)
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
                usage=self._spent(before),
            )
        )
        score = round_.election.mean(self.incumbent)
        self.tell("step", epoch=epoch, accepted=sum(t.accepted for t in trials), score=score)

    def _evidence(
        self, round_: Round, simulated: Sequence[Simulated] = (), feedback: Sequence[Feedback] = ()
    ) -> Evidence:
        return Evidence(
            kind=self.program.kind,
            simulated=simulated,
            feedback=feedback,
            past=round_.past,
            rejected=frozenset(self.rejected),
            secrets=round_.secrets,
            recurring=self.momentum.recurring,
            riders=tuple(self.riders),
        )

    def _feedback(self, simulated: Sequence[Simulated]) -> list[Feedback]:
        try:
            with self._reflecting():
                return self.options.loss(simulated=simulated).feedback
        except AdapterParseError:
            return [Feedback(interaction_id=s.interaction_id, score=s.score) for s in simulated]

    def _elect(self, round_: Round, challengers: Sequence[Challenger]) -> tuple[Trial, ...]:
        """Challengers of this incumbent, one after the other, until one is accepted; the rest were made for another."""
        trials: list[Trial] = []
        for challenger in challengers:
            before = self.incumbent
            lead = partial(self._lead, challenger, before)
            trial = round_.election.stand(before, challenger.persona, challenger.edits, lead)
            trials.append(trial)
            self.incumbent, self.leading = challenger.persona if trial.accepted else before, False
            if trial.accepted:
                self.accepted += 1
                self.riders = [e for e in self.riders if e.sentence not in challenger.edits]
            else:
                self._remember(round_, challenger)
            told = {"edits": list(challenger.edits), "persona": self.incumbent.render()}
            self.tell("judged", accepted=trial.accepted, score=trial.challenger_score, **told)
            if trial.accepted:
                break
        return tuple(trials)

    def _lead(self, challenger: Challenger, before: Persona, leads: bool) -> None:
        self.incumbent, self.leading = challenger.persona if leads else before, leads
        self.tell("leads", edits=list(challenger.edits) if leads else [], persona=self.incumbent.render())

    def _remember(self, round_: Round, challenger: Challenger) -> None:
        """What was refused, for the proposer; rules that the past bears out ride along with a later challenger, since
        the held-out interactions may just not have shown what they are about."""
        self.rejected.add(frozenset(challenger.edits))
        rode = {e.sentence for e in self.riders}
        if rode & set(challenger.edits):
            self.riders = []
            return
        for edit in challenger.again:
            if edit.bullet is not None and support(edit.bullet, round_.past).borne_out:
                self.riders.append(edit)

    def _compare_with_none(self, first: Round) -> None:
        """The scores for the record: at the start, at the end, without any persona; facts that do harm are left out."""
        election = first.election
        if not election.held:
            return
        without = fmean(election.score(Persona(user_id=self.program.user_id)))
        start, end = (election.score(self.as_of(p, first.past)) for p in (self.initial, self.incumbent))
        self.tell("simulated", epoch=0, scores=start)
        initial, final = fmean(start), fmean(end)
        if final < without and self.gate.decides:
            left = pruned(self.incumbent, election, follows_memory=self.follows_memory)
            if left is not None:
                self.incumbent, self.follows_memory, final = left.persona, left.follows_memory, left.score
                self.notes.append(f"left out, since it did harm on the held-out interactions: {left.out}")
        self.scores = Scores(without_persona=without, initial=initial, final=final)
        self.tell("scored", **self.scores.model_dump())

    def final(self) -> Persona:
        """The incumbent with its facts brought up to date, to the last interaction that compile was given: the gate
        judged only what is learned."""
        return self.as_of(self.incumbent, self.past)

    def record(self) -> Alignment:
        """Every step, its scores and its cost."""
        if self.leading:
            self.accepted += 1
            self.notes.append("the budget ended while the persona led, before it was compared on all held-out items")
        if self.scores.initial is None:  # the budget ended before
            means = [self.rounds[0].election.mean(p) for p in (self.initial, self.incumbent)]
            self.scores = Scores(initial=means[0], final=means[1])
        by_role = {name: UsageRecord.of(usage) for name, usage in sorted(self.ledger.by_role.items())}
        if len(self.rounds) > 1:
            self.notes.append(
                f"{len(self.rounds)} folds judged in turn: each edit was made without the fold that judged it; the "
                "scores are on the first fold, which edits judged by another could see"
            )
        return Alignment(
            user_id=self.program.user_id,
            scores=self.scores,
            gate_size=len(self.rounds[0].election.held),
            accepted=self.accepted,
            steps=tuple(self.steps),
            stopped=self.stopped,
            notes=tuple(self.notes),
            usage={**by_role, "total": UsageRecord.of(self.ledger.usage)},
            options=self.options.get_params() | {"gate": type(self.gate).__name__},
        )

    def _spent(self, before: Usage) -> UsageRecord:
        return UsageRecord.of(self.ledger.usage - before)

    def tell(self, event: str, **details: Any) -> None:
        """One event to every observer."""
        usage = self.ledger.usage
        message = {"event": event, "user_id": self.program.user_id, "calls": usage.calls, "tokens": usage.tokens}
        for observer in self.options.observers:
            observer(message | details)
