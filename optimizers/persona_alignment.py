"""PersonaAlignment: learns a user's persona from the user's recent interactions by textual feedback.

Owns: the loop (paper Algorithm 1, arXiv 2506.06254), its stops and its record. Not here: simulation, proposals,
gates - each its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import dspy
from dspy.teleprompt import Teleprompter
from dspy.utils.exceptions import AdapterParseError

from optimizers.acceptance import AlwaysAccept, Gate, HeldOutGate
from optimizers.election import Election
from optimizers.proposals import EditProposer, Evidence, Proposer, RewriteProposer
from optimizers.simulation import Simulator
from persona_dspy.agent import PersonalProgram
from persona_dspy.alignment import Alignment, AlignmentStep, Scores, UsageRecord
from persona_dspy.errors import BudgetExceeded, InputError
from persona_dspy.feedback import Metric, Simulated, TextualLoss
from persona_dspy.ledger import Budget, Ledger, current_ledger
from persona_dspy.memory.episodic import EpisodicMemory
from persona_dspy.memory.semantic import SemanticMemory, facts
from persona_dspy.persona import Bullet, Edit, Persona
from persona_dspy.records import Feedback, Interaction, Usage
from persona_dspy.responses import ResponseKind
from persona_dspy.system_prompt import as_persona

__all__ = ["Observer", "PersonaAlignment"]

Observer = Callable[[dict[str, Any]], None]
"""Gets one event dict a step, keys ``event`` and ``user_id`` always; must not raise."""


class PersonaAlignment(Teleprompter):
    """Tunes the persona parameter of a PersonaAgent or of ``personalize(program)``; nothing else of the program.

    A step simulates the user's ``recent`` latest interactions not yet answered right, with memory as it stood before
    each; an LM says what the mistakes show of the user; challengers are proposed; the gate lets one replace the
    incumbent or none. The latest interactions are held out for the gate and never fitted on.

    Args:
        metric: ``metric(example, prediction, trace=None)`` -> float in [0, 1], or ``dspy.Prediction(score, feedback)``
            as GEPA's; by default by the response's type, and the LM writes the feedback.
        recent: interactions simulated a step (the paper's n).
        epochs: steps at most (the paper's E; gains level off after 3).
        gate: who decides, ``HeldOutGate()`` by default.
        proposer: how challengers are made, ``EditProposer()`` by default.
        loss: how feedback is written, ``TextualLoss()`` by default.
        summary: an LM summary of the past as a first challenger; None = none.
        reflection_lm: a stronger LM for loss, update and summary; by default the program's own.
        budget: bounds of the whole compile; it then ends with the best persona so far.
        observers: called with one event dict a step.
        concurrency: simulations at once.

    Example:
        >>> PersonaAlignment(recent=3, epochs=3).get_params()["recent"]
        3
    """

    def __init__(  # noqa: PLR0913 - keyword-only, each with a default
        self,
        metric: Metric | None = None,
        *,
        recent: int = 3,
        epochs: int = 3,
        gate: Gate | None = None,
        proposer: Proposer | None = None,
        loss: TextualLoss | None = None,
        summary: SemanticMemory | None = None,
        reflection_lm: Any = None,
        budget: Budget | None = None,
        observers: Sequence[Observer] = (),
        concurrency: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("recent", recent), ("epochs", epochs), ("concurrency", concurrency)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"PersonaAlignment({name}={value!r}): expected a whole number, 1 or more")
        self.metric, self.recent, self.epochs, self.concurrency = metric, recent, epochs, concurrency
        self.gate: Gate = gate or HeldOutGate()
        self.proposer: Proposer = proposer or EditProposer()
        self.loss = loss or TextualLoss()
        self.summary, self.reflection_lm, self.budget = summary, reflection_lm, budget
        self.observers = tuple(observers)

    @classmethod
    def as_in_paper(cls, metric: Metric | None = None, *, hold_out: int = 0, **options: Any) -> Self:
        """The paper's settings: no gate, the whole persona rewritten, n = 3, 3 iterations, summary in the initial
        persona. ``hold_out`` interactions are kept out and scored for the record; they decide nothing."""
        options = {"recent": 3, "epochs": 3, "summary": SemanticMemory(), **options}
        return cls(metric, gate=AlwaysAccept(hold_out), proposer=RewriteProposer(), **options)

    def get_params(self) -> dict[str, Any]:
        """Scalars only, as a copy: MLflow's autologging writes them down and may change what it is given."""
        return {
            "recent": self.recent,
            "epochs": self.epochs,
            "concurrency": self.concurrency,
            "gate": type(self.gate).__name__,
            "proposer": type(self.proposer).__name__,
            "loss": self.loss.mode,
            "summary": self.summary is not None,
            "metric": getattr(self.metric, "__name__", None),
        }

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: list[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> PersonalProgram:
        """A copy of ``student`` with an aligned persona and ``.alignment``, the record of every step.

        Args:
            student: a PersonaAgent or what ``personalize`` returned; not changed.
            trainset: the user's interactions as examples, oldest first (``student.examples()``).
            valset: examples for the gate; by default the gate holds out the latest of ``trainset``.
            teacher: not used.

        Raises:
            InputError: a student without a persona, or an empty trainset.
        """
        if not isinstance(student, PersonalProgram):
            raise InputError(
                f"student {type(student).__name__!r}: expected a PersonaAgent; wrap it: personalize(program)"
            )
        if not trainset:
            raise InputError("trainset []: expected the user's interactions, such as trainset=agent.examples()")
        program = student.deepcopy()
        remembered = _remember(program, [*trainset, *(valset or [])])
        fit, held = (
            self.gate.split(remembered[: len(trainset)])
            if valset is None
            else (
                remembered[: len(trainset)],
                remembered[len(trainset) :],
            )
        )
        ledger = Ledger(user_id=program.user_id, budget=self.budget, parent=current_ledger())
        with ledger.recording():
            run = _Run(self, program, fit, held, ledger)
            try:
                run.loop()
            except BudgetExceeded as spent:
                run.stopped = f"budget: {spent}"
        program.persona.value = run.final()
        program.alignment = run.record()
        run.tell("end", accepted=program.alignment.accepted, scores=program.alignment.scores.model_dump())
        return program


class _Run:
    """One compile: the incumbent, what was tried, what it cost."""

    def __init__(
        self,
        options: PersonaAlignment,
        program: PersonalProgram,
        fit: list[dspy.Example],
        held: list[dspy.Example],
        ledger: Ledger,
    ) -> None:
        self.options, self.program, self.fit, self.ledger = options, program, fit, ledger
        hidden = frozenset(e.interaction_id for e in held)
        self.past = tuple(i for i in program.memory.interactions if i.id not in hidden)
        self.simulator = Simulator(program, options.metric, hidden, options.concurrency)
        self.election = Election(options.gate, self.simulator, held, lambda p: self.as_of(p, self.past))
        self.incumbent = program.persona.value
        self.follows_memory = any(b.source == "fact" for b in self.incumbent.bullets) or not self.incumbent.bullets
        self.secrets = frozenset(
            str(e.get(program.response_field, "")).strip().lower() for e in held if program.kind.name == "text"
        ) - {""}
        self.facts = facts
        self.rejected: set[str] = set()
        self.steps: list[AlignmentStep] = []
        self.solved: set[str] = set()
        self.accepted = 0
        self.stopped = ""
        self.scores = Scores()

    def as_of(self, persona: Persona, past: Sequence[Interaction]) -> Persona:
        """The persona as it would have been then: its facts counted over ``past`` only."""
        return persona.with_facts(self.facts(past, self.program.kind)) if self.follows_memory else persona

    def loop(self) -> None:
        self.tell("start", fit=len(self.fit), held=len(self.election.held))
        if not self.election.held and not isinstance(self.options.gate, AlwaysAccept):
            self.stopped = f"{len(self.fit)} interactions: too few to fit on and hold out; the initial persona stays"
            return
        self._first()
        self._summarise()
        for epoch in range(1, self.options.epochs + 1):
            if self.election.perfect:
                self.stopped = "nothing left to gain on the held-out interactions"
                return
            batch = self._batch()
            if not batch:
                self.stopped = "nothing wrong left"
                return
            self._step(epoch, batch)
        self.stopped = "all epochs done"

    def _first(self) -> None:
        """Score no persona and the initial one; facts that do harm by the gate are left out from the start."""
        if not self.election.held:
            return
        empty = Persona(user_id=self.program.user_id)
        without = self.election.install(empty, as_is=True)
        self.scores = Scores(without_persona=without)
        initial = self.election.install(self.incumbent)
        self.scores = self.scores.model_copy(update={"initial": initial, "final": initial})
        if initial < without and self.follows_memory and not isinstance(self.options.gate, AlwaysAccept):
            for kept_facts in (_without_rules, _none):
                self.facts = kept_facts
                self.incumbent = self.as_of(self.incumbent, self.past)
                kept = self.election.install(self.incumbent)
                self.scores = self.scores.model_copy(update={"final": kept})
                if kept >= without:
                    break
        self.tell("scored", **self.scores.model_dump())

    def _summarise(self) -> None:
        if self.options.summary is None:
            return
        before = self.ledger.usage
        try:
            with self._reflecting():
                bullets = self.options.summary(interactions=self.past).bullets
        except AdapterParseError:
            return
        edits = [Edit(op="add", bullet=b) for b in bullets if not any(s in b.sentence.lower() for s in self.secrets)]
        if not edits:
            return
        try:
            challenger = self.incumbent.apply(edits)
        except InputError:
            return
        trial = self._try(challenger, tuple(e.sentence for e in edits))
        self.steps.append(AlignmentStep(epoch=0, trials=(trial,), usage=self._spent(before)))

    @contextmanager
    def _reflecting(self) -> Generator[None]:
        """Loss, update and summary calls: by the reflection LM, under no persona, counted and bounded like others."""
        lm = self.options.reflection_lm or dspy.settings.get("lm")
        with dspy.context(lm=lm), as_persona("", lm=lm):
            yield

    def _batch(self) -> list[dspy.Example]:
        """The latest interactions not yet seen right, oldest first; without a gate, always the latest."""
        if isinstance(self.options.gate, AlwaysAccept):
            return self.fit[-self.options.recent :]
        window = self.fit[-self.options.recent * (self.options.epochs + 1) :]
        return [e for e in window if e.interaction_id not in self.solved][-self.options.recent :]

    def _step(self, epoch: int, batch: list[dspy.Example]) -> None:
        before = self.ledger.usage
        first = self.program.memory.position(batch[0].interaction_id)
        simulated = self.simulator.run(self.as_of(self.incumbent, self.program.memory.before(first)), batch)
        self.solved |= {s.interaction_id for s in simulated if s.right}
        feedback = self._feedback(simulated)
        self.tell("simulated", epoch=epoch, scores=[s.score for s in simulated])
        trials = []
        if any(not s.right for s in simulated):
            evidence = Evidence(
                kind=self.program.kind,
                simulated=simulated,
                feedback=feedback,
                past=self.past,
                rejected=frozenset(self.rejected),
                secrets=self.secrets,
            )
            with self._reflecting():
                challengers = self.options.proposer(self.incumbent, evidence)
            trials = [self._try(c.persona, c.edits) for c in challengers if c.persona.parent == self.incumbent.version]
        # What stayed wrong now is not asked again: the next step looks at older interactions instead.
        self.solved |= {s.interaction_id for s in simulated}
        self.steps.append(
            AlignmentStep(
                epoch=epoch,
                simulated=tuple(s.interaction_id for s in simulated),
                scores=tuple(round(s.score, 4) for s in simulated),
                feedback=tuple(f.text for f in feedback),
                trials=tuple(trials),
                usage=self._spent(before),
            )
        )
        self.tell("step", epoch=epoch, accepted=sum(t.accepted for t in trials), score=self.scores.final)

    def _feedback(self, simulated: Sequence[Simulated]) -> list[Feedback]:
        try:
            with self._reflecting():
                return self.options.loss(simulated=simulated).feedback
        except AdapterParseError:
            return [Feedback(interaction_id=s.interaction_id, score=s.score) for s in simulated]

    def _try(self, challenger: Persona, edits: tuple[str, ...]) -> Any:
        trial = self.election.stand(self.incumbent, challenger, edits)
        if trial.accepted:
            self.incumbent, self.accepted = challenger, self.accepted + 1
            self.scores = self.scores.model_copy(update={"final": trial.challenger_score})
        else:
            self.rejected |= set(edits)
        self.tell("judged", accepted=trial.accepted, edits=list(edits), score=trial.challenger_score)
        return trial

    def final(self) -> Persona:
        """The incumbent with its facts brought up to date: they follow memory, the gate judged only what is learned."""
        return self.as_of(self.incumbent, self.program.memory.interactions)

    def record(self) -> Alignment:
        by_role = {name: UsageRecord.of(usage) for name, usage in sorted(self.ledger.by_role.items())}
        return Alignment(
            user_id=self.program.user_id,
            scores=self.scores,
            gate_size=len(self.election.held),
            accepted=self.accepted,
            steps=tuple(self.steps),
            stopped=self.stopped,
            usage={**by_role, "total": UsageRecord.of(self.ledger.usage)},
            options=self.options.get_params(),
        )

    def _spent(self, before: Usage) -> UsageRecord:
        return UsageRecord.of(self.ledger.usage - before)

    def tell(self, event: str, **facts_: Any) -> None:
        usage = self.ledger.usage
        message = {
            "event": event,
            "user_id": self.program.user_id,
            "calls": usage.calls,
            "tokens": usage.tokens,
            **facts_,
        }
        for observer in self.options.observers:
            observer(message)


def _without_rules(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    return [bullet for bullet in facts(past, kind) if not bullet.when]


def _none(past: Sequence[Interaction], kind: ResponseKind) -> list[Bullet]:
    return []


def _remember(program: PersonalProgram, examples: Sequence[dspy.Example]) -> list[dspy.Example]:
    """The examples, each with an id that the program's memory knows; unknown ones are added to its (own) memory."""
    known = {i.id for i in program.memory.interactions}
    fresh: list[Interaction] = []
    named: list[dspy.Example] = []
    for example in examples:
        for field in (program.query_field, program.response_field):
            if example.get(field) is None:
                raise InputError(
                    f"example {dict(example)!r}: expected a field {field!r}; use trainset=agent.examples()"
                )
        item = Interaction(
            user_id=program.user_id,
            query=str(example[program.query_field]),
            response=str(example[program.response_field]),
            time=example.get("time"),
            id=str(example.get("interaction_id") or ""),
        )
        if item.id not in known:
            fresh.append(item)
            known.add(item.id)
        named.append(example.copy(interaction_id=item.id))
    if fresh:
        program.memory = EpisodicMemory([*program.memory.interactions, *fresh], user_id=program.user_id)
    return named
