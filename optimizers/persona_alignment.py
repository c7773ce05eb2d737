"""PersonaAlignment: learns a user's persona from the user's recent interactions by textual feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import dspy
from dspy.teleprompt import Teleprompter

from optimizers.acceptance import AlwaysAccept, Gate, Split, gate_for
from optimizers.cohort import Cohort
from optimizers.loss import Metric, TextualLoss
from optimizers.options import Observer
from optimizers.proposals import EditProposer, Proposer, RewriteProposer
from optimizers.run import Run
from optimizers.trainset import fitting, remembered
from persona_dspy.agent import PersonalProgram
from persona_dspy.errors import BudgetExceeded, InputError
from persona_dspy.lm import Budget, Ledger, current_ledger
from persona_dspy.memory import SemanticMemory

__all__ = ["Observer", "PersonaAlignment"]


class PersonaAlignment(Teleprompter):
    """Tunes the persona parameter of a PersonaAgent or of ``personalize(program)``; nothing else of the program.

    First, rules drawn from the past stand for election (no simulation, at most one LM call). Then a step simulates the
    user's ``recent`` latest interactions that no rule explains yet, with memory as it stood before each; an LM says
    what the mistakes show of the user; challengers are proposed; the gate lets one replace the incumbent or none. The
    interactions that judge are never fitted on. Needs 4 interactions; with fewer the initial persona stays.

    Args:
        metric: ``metric(example, prediction, trace=None)`` -> float in [0, 1], or ``dspy.Prediction(score, feedback)``
            as GEPA's; by default by the response's type, and the LM writes the feedback.
        recent: interactions simulated a step (the paper's n).
        epochs: steps at most (the paper's E; gains level off after 3).
        patience: steps without gain before it stops.
        gate: who decides; by default ``HeldOutGate()``, or ``KFoldGate()`` for fewer than 12 interactions.
        proposer: how challengers are made, ``EditProposer()`` by default.
        loss: how feedback is written: ``"each"`` = a call for each mistake, as in the paper; ``"batch"`` = one call a
            step; or a ``TextualLoss``.
        summary: an LM summary of the past as a first challenger; None = none.
        cohort: what similar users have in common, as a first challenger; None = no other user matters.
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
        patience: int = 2,
        gate: Gate | None = None,
        proposer: Proposer | None = None,
        loss: TextualLoss | Literal["each", "batch"] = "each",
        summary: SemanticMemory | None = None,
        cohort: Cohort | None = None,
        reflection_lm: Any = None,
        budget: Budget | None = None,
        observers: Sequence[Observer] = (),
        concurrency: int = 1,
    ) -> None:
        super().__init__()
        counts = (("recent", recent), ("epochs", epochs), ("patience", patience), ("concurrency", concurrency))
        for name, value in counts:
            if value < 1:
                raise InputError(f"PersonaAlignment({name}={value!r}): expected a whole number, 1 or more")
        self.metric, self.recent, self.epochs, self.concurrency = metric, recent, epochs, concurrency
        self.patience, self.gate = patience, gate
        self.proposer: Proposer = proposer or EditProposer()
        self.loss = TextualLoss(loss) if isinstance(loss, str) else loss
        self.summary, self.cohort, self.reflection_lm, self.budget = summary, cohort, reflection_lm, budget
        self.observers = tuple(observers)

    @classmethod
    def as_in_paper(cls, metric: Metric | None = None, *, hold_out: int = 0, **options: Any) -> Self:
        """The paper's settings: no gate, the whole persona rewritten, n = 3, 3 iterations, summary in the initial
        persona. ``hold_out`` interactions are kept out and scored for the record; they decide nothing."""
        options = {"recent": 3, "epochs": 3, "patience": 3, "summary": SemanticMemory(), **options}
        return cls(metric, gate=AlwaysAccept(hold_out), proposer=RewriteProposer(), **options)

    def get_params(self) -> dict[str, Any]:
        """Scalars only, as a copy: MLflow's autologging writes them down and may change what it is given."""
        return {
            "recent": self.recent,
            "epochs": self.epochs,
            "concurrency": self.concurrency,
            "patience": self.patience,
            "gate": type(self.gate).__name__ if self.gate else "by the number of interactions",
            "proposer": type(self.proposer).__name__,
            "loss": self.loss.mode,
            "summary": self.summary is not None,
            "cohort": len(self.cohort) if self.cohort else 0,
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
            trainset: the user's interactions as examples (``student.examples()``), dictionaries or ``Interaction``s, in
                any order: they are put into the user's own time. Without any, the initial persona stays.
            valset: examples for the gate, which are then not fitted on even where ``trainset`` has them too; by default
                (None or none) the gate holds out the latest of ``trainset``. What memory holds after the latest of both
                is not looked at.
            teacher: not used.

        Raises:
            InputError: a student without a persona; an example without query or response, or another user's.
        """
        if not isinstance(student, PersonalProgram):
            raise InputError(
                f"student {type(student).__name__!r}: expected a PersonaAgent; wrap it: personalize(program)"
            )
        program = student.deepcopy()
        fit = remembered(program, trainset)
        held = remembered(program, valset) if valset else []  # what both have is known by now
        ledger = Ledger(user_id=program.user_id, budget=self.budget, parent=current_ledger())
        with ledger.recording():
            (fit, notes), (held, more) = fitting(program, fit), fitting(program, held)
            gate = self.gate or gate_for(len(fit))
            splits = [_split(fit, held, gate)] if held else gate.splits(fit)
            run = Run(self, gate, program, splits, ledger)
            run.notes += dict.fromkeys([*notes, *more])
            try:
                run.loop()
            except BudgetExceeded as spent:
                run.stopped = f"budget: {spent}"
        program.persona.value = run.final()
        program.alignment = run.record()
        run.tell("end", accepted=program.alignment.accepted, scores=program.alignment.scores.model_dump())
        return program


def _split(fit: list[dspy.Example], val: list[dspy.Example], gate: Gate) -> Split:
    """A given valset as the held-out part; anchors, which the gate expects last, judge beside it."""
    anchors: frozenset[str] = getattr(gate, "anchors", frozenset())
    held = {e.interaction_id: e for e in val if e.interaction_id not in anchors}
    held |= {e.interaction_id: e for e in (*fit, *val) if e.interaction_id in anchors}
    return Split(fit=[e for e in fit if e.interaction_id not in held], held=list(held.values()))
