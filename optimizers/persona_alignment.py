"""PersonaAlignment: learns a user's persona from the user's recent interactions by textual feedback."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import dspy
from dspy.teleprompt import Teleprompter

from optimizers.acceptance import LEAST, AlwaysAccept, Gate, Split, gate_for
from optimizers.cohort import Cohort
from optimizers.drafts import in_order, spoken_of
from optimizers.keywords import KeywordProposer
from optimizers.loss import Metric, TextualLoss
from optimizers.options import Observer
from optimizers.portrait import Portrait
from optimizers.progress import progress_bar
from optimizers.proposals import EditProposer, Proposer, RewriteProposer
from optimizers.record import record_of
from optimizers.run import Run
from optimizers.trainset import fitting, remembered
from persona_dspy.agent import PersonalProgram, run_on_loop, tag_run
from persona_dspy.core import plural
from persona_dspy.errors import BudgetExceeded, InputError
from persona_dspy.lm import Budget, Ledger, current_ledger, is_small
from persona_dspy.memory import SemanticMemory

__all__ = ["Observer", "PersonaAlignment"]


Auto = Literal["light", "medium", "heavy"]

_AUTO: dict[Auto, dict[str, int]] = {
    "light": {"recent": 3, "epochs": 1, "patience": 1, "most": 4, "challengers": 1, "parts": 1},
    "medium": {"recent": 3, "epochs": 3, "patience": 2, "most": 8, "challengers": 1, "parts": 2},
    "heavy": {"recent": 4, "epochs": 6, "patience": 3, "most": 12, "challengers": 2, "parts": 4},
}


class PersonaAlignment(Teleprompter):
    """Tunes the persona parameter of a PersonaAgent or of ``personalize(program)``; nothing else of the program.

    First a portrait of the user, written by an LM from the past, and what code counts stand for election. Then a step
    simulates the user's ``recent`` latest interactions, with memory as it stood before each; an LM says what the
    mistakes show of the user; edits of the persona's lines are proposed; the gate lets a challenger replace the
    incumbent or none: it has to mend what was wrong and to break nothing. The interactions that judge are never fitted
    on. Needs 4 interactions; with fewer the initial persona stays. What is returned does no worse on the interactions
    that judge than the program without a persona.

    Args:
        metric: ``metric(example, prediction, trace=None)`` -> float in [0, 1], or ``dspy.Prediction(score, feedback)``
            as GEPA's; by default by the response's type (free text: an LM compares drafts), and the LM writes the
            feedback.
        auto: how much is spent: ``"light"`` some 20 calls a user, ``"medium"`` (the default) some 40, ``"heavy"`` 100;
            ``calls(n)`` says the most. What is given below overrides it.
        recent: interactions simulated a step (the paper's n).
        epochs: steps at most (the paper's E; gains level off after 3).
        patience: steps without gain before it stops.
        gate: who decides; by default ``HeldOutGate()``.
        proposer: how challengers are made; by default ``EditProposer()``, and ``KeywordProposer()`` for a small local
            LM.
        loss: how feedback is written: ``"batch"`` = one call a step, right answers beside wrong ones; ``"each"`` = a
            call for each mistake; ``"every"`` = a call for each interaction, right or wrong, as in the paper; or a
            ``TextualLoss``. By default ``"batch"``, and ``"each"`` for a small local LM.
        summary: an LM summary of the past as a first challenger; None = none.
        cohort: what similar users have in common, as a first challenger; None = no other user matters.
        reflection_lm: a stronger LM for portrait, loss, update and judging; by default the program's own.
        budget: bounds of the whole compile; it then ends with the best persona so far.
        observers: called with one event dict a step.
        concurrency: simulations at once.
        progress: a progress bar on standard error where that is a terminal or a notebook.

    Example:
        >>> PersonaAlignment(recent=3, epochs=3).get_params()["recent"]
        3
        >>> PersonaAlignment(auto="light").calls(40)
        37
    """

    def __init__(  # noqa: PLR0913 - keyword-only, each with a default
        self,
        metric: Metric | None = None,
        *,
        auto: Auto | None = None,
        recent: int | None = None,
        epochs: int | None = None,
        patience: int | None = None,
        gate: Gate | None = None,
        proposer: Proposer | None = None,
        loss: TextualLoss | Literal["each", "batch", "every"] | None = None,
        summary: SemanticMemory | None = None,
        cohort: Cohort | None = None,
        reflection_lm: Any = None,
        budget: Budget | None = None,
        observers: Sequence[Observer] = (),
        concurrency: int = 1,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if auto is not None and auto not in _AUTO:
            raise InputError(f"PersonaAlignment(auto={auto!r}): expected one of {', '.join(map(repr, _AUTO))}")
        self.auto: Auto | None = auto
        amount = _AUTO[auto or "medium"]
        self.recent = amount["recent"] if recent is None else recent
        self.epochs = amount["epochs"] if epochs is None else epochs
        self.patience = amount["patience"] if patience is None else patience
        self.concurrency = concurrency
        for name in ("recent", "epochs", "patience", "concurrency"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"PersonaAlignment({name}={getattr(self, name)!r}): expected a whole number, 1 or more"
                )
        self.metric, self.gate, self.proposer = metric, gate, proposer
        self.loss = TextualLoss(loss) if isinstance(loss, str) else loss
        self.summary, self.cohort, self.reflection_lm, self.budget = summary, cohort, reflection_lm, budget
        self.observers, self.progress = tuple(observers), progress

    @classmethod
    def as_in_paper(cls, metric: Metric | None = None, *, hold_out: int = 0, **options: Any) -> Self:
        """The paper's Algorithm 1: an LM's summary in the initial persona; n = 3, 3 iterations; a textual gradient for
        each of the n latest interactions, right or wrong, about the persona, its search words and its tools; the whole
        persona rewritten from all of them; no gate. For the paper's agent: ``PersonaAgent.as_in_paper``.

        One thing is not as there: an interaction is simulated with memory as it stood before it, and the summary is
        made of what came before the first of them.

        Args:
            hold_out: so many interactions are kept out and scored for the record; they decide nothing.
            **options: as of ``PersonaAlignment``.
        """
        options = {
            "recent": 3, "epochs": 3, "patience": 3, "summary": SemanticMemory(), "loss": "every",
            "proposer": RewriteProposer(), **options,
        }  # fmt: skip
        return cls(metric, gate=AlwaysAccept(hold_out), **options)

    def gate_for(self, interactions: int) -> Gate:
        """The gate for a user of so many interactions."""
        return self.gate or gate_for(interactions, most=_AUTO[self.auto or "medium"]["most"])

    def proposer_for(self, lm: Any) -> Proposer:
        """The proposer that suits the LM that reflects."""
        if self.proposer is not None:
            return self.proposer
        if is_small(lm):
            return KeywordProposer()
        amount = _AUTO[self.auto or "medium"]
        return EditProposer(portrait=Portrait(parts=amount["parts"]), challengers=amount["challengers"])

    def loss_for(self, lm: Any) -> TextualLoss:
        """The textual loss that suits the LM that reflects."""
        return self.loss or TextualLoss("each" if is_small(lm) else "batch")

    def calls(self, interactions: int) -> int:
        """The most LM calls that aligning a user of so many interactions takes with a capable LM, before anything is
        spent; for free text, whose drafts are compared by an LM too, up to a third more. Half of it is usual."""
        if interactions < LEAST:
            return 0
        gate = self.gate_for(interactions)
        anchors: frozenset[str] = getattr(gate, "anchors", frozenset())
        examples = [dspy.Example(interaction_id=str(n)) for n in range(interactions - len(anchors))]
        examples += [dspy.Example(interaction_id=one) for one in anchors]
        held_out = max(len(split.held) for split in gate.splits(examples))
        challengers = getattr(self.proposer, "challengers", _AUTO[self.auto or "medium"]["challengers"])
        parts = _AUTO[self.auto or "medium"]["parts"]
        portrait = parts + (parts > 1)
        step = self.recent + 2 + challengers * (self.recent + held_out + 4 * self.recent)
        return held_out * 3 + portrait + self.epochs * step

    def get_params(self) -> dict[str, Any]:
        """Scalars only, as a copy: MLflow's autologging writes them down and may change what it is given."""
        return {
            "auto": self.auto,
            "recent": self.recent,
            "epochs": self.epochs,
            "concurrency": self.concurrency,
            "patience": self.patience,
            "gate": type(self.gate).__name__ if self.gate else "by the number of interactions",
            "proposer": type(self.proposer).__name__ if self.proposer else "by the LM",
            "loss": self.loss.mode if self.loss else "by the LM",
            "summary": self.summary is not None,
            "cohort": len(self.cohort) if self.cohort else 0,
            "metric": getattr(self.metric, "__name__", None),
            "reflection_lm": getattr(self.reflection_lm, "model", None),
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
        tag_run(student.user_id)
        program = student.deepcopy()
        fit = remembered(program, trainset)
        held = remembered(program, valset) if valset else []  # what both have is known by now
        parent = current_ledger()
        ledger = Ledger(user_id=program.user_id, budget=self.budget, parent=parent)
        bar = progress_bar(program.user_id, self.calls(len(fit)), shown=self.progress and parent is None)
        with ledger.recording(), bar as watching:
            (fit, notes), (held, more) = fitting(program, fit), fitting(program, held)
            spoken = self._spoken(program, fit, held)
            judged = in_order(program, [*fit, *spoken]) if self.metric is None else fit
            gate = self.gate_for(len(judged))
            splits = [_split(judged, held, gate)] if held else gate.splits(judged)
            if judged is fit and spoken:  # a metric of the user's own judges; drafts are learned from all the same
                splits = [replace(split, fit=in_order(program, [*split.fit, *spoken])) for split in splits]
            run = Run(self, gate, program, splits, ledger, watching)
            run.left_out = len(spoken_of(program)) if self._is_deaf(program) else 0
            unheard = self._unheard(program, run.left_out, said=parent is None) if run.left_out else []
            run.notes += dict.fromkeys([*notes, *more, *unheard])
            try:
                run.loop()
            except BudgetExceeded as spent:
                run.stopped = f"budget: {spent}"
        program.persona.value = run.final()
        program.alignment = record_of(run)
        run.tell("end", accepted=program.alignment.accepted, scores=program.alignment.scores.model_dump())
        return program

    async def acompile(
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: list[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> PersonalProgram:
        """``compile`` as an asyncio task: the same steps with the same result, and the loop goes on while an LM, a tool
        or an encoder is waited for. Users align beside each other as tasks of one loop, ``concurrency`` of each too.

        A program that calls an LM by itself, and not by DSPy's predictors, holds the loop up meanwhile.

        Example:
            >>> import asyncio
            >>> from persona_dspy.agent import PersonaAgent
            >>> from persona_dspy.testing import SyntheticUser, TagFilm, rule_following_lm
            >>> async def align(users):
            ...     agents = [PersonaAgent(TagFilm, history=user.interactions(12)) for user in users]
            ...     tasks = [PersonaAlignment().acompile(agent, trainset=agent.examples()) for agent in agents]
            ...     return await asyncio.gather(*tasks)
            >>> with dspy.context(lm=rule_following_lm()):
            ...     aligned = asyncio.run(align([SyntheticUser(seed=1), SyntheticUser(seed=2)]))
            >>> [agent.user_id for agent in aligned] == [SyntheticUser(seed=1).user_id, SyntheticUser(seed=2).user_id]
            True
        """
        given: dict[str, Any] = {"trainset": trainset, "teacher": teacher, "valset": valset, **kwargs}
        return await run_on_loop(partial(self.compile, student, **given))

    def _spoken(
        self, program: PersonalProgram, fit: Sequence[dspy.Example], held: Sequence[dspy.Example]
    ) -> list[dspy.Example]:
        """Drafts that the user judged without an answer, up to the last interaction that compile was given; none for a
        small LM, which reads mistakes only."""
        if self._is_deaf(program):
            return []
        given = in_order(program, [*fit, *held])
        latest = program.memory.interactions[-1:]
        if not latest or (given and given[-1].interaction_id == latest[0].id):
            return spoken_of(program)
        return spoken_of(program, given[-1]) if given else []

    def _is_deaf(self, program: PersonalProgram) -> bool:
        """Whether the LM that learns is too small to make anything of what users say in words."""
        return is_small(self.reflection_lm or program.own_lm())

    def _unheard(self, program: PersonalProgram, drafts: int, *, said: bool) -> list[str]:
        """A note on the drafts that no small LM learns from; ``said``: as a warning too."""
        model = getattr(self.reflection_lm or program.own_lm(), "model", "the LM")
        note = f"not used: {plural(drafts, 'draft')} that user {program.user_id!r} only commented on, rated or gave a "
        note += f"thumb; {model} counts as too small to learn from them; give the user's own answers or edits, or "
        note += "PersonaAlignment(reflection_lm=...) a larger LM"
        if said:
            warnings.warn(note, stacklevel=3)
        return [note]


def _split(fit: list[dspy.Example], val: list[dspy.Example], gate: Gate) -> Split:
    """A given valset as the held-out part; anchors, which the gate expects last, judge beside it."""
    anchors: frozenset[str] = getattr(gate, "anchors", frozenset())
    held = {e.interaction_id: e for e in val if e.interaction_id not in anchors}
    held |= {e.interaction_id: e for e in (*fit, *val) if e.interaction_id in anchors}
    return Split(fit=[e for e in fit if e.interaction_id not in held], held=list(held.values()))
