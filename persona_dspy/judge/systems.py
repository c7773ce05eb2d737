"""A variant's name to a program for one user.

Every system gets the same signature, memory, LM and token caps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import dspy

from optimizers import HeldOutGate, PersonaAlignment, RewriteProposer
from persona_dspy.agent import (
    Act,
    KnowledgeSource,
    PersonaAgent,
    PersonalProgram,
    Policy,
    Recall,
    Steering,
    personalize,
)
from persona_dspy.core import (
    Alignment,
    Interaction,
    Persona,
    PersonaDocument,
    load_document,
    metric_score,
    persona_file_name,
    plural,
    write_text,
)
from persona_dspy.data import Question, Task
from persona_dspy.errors import BudgetExceeded
from persona_dspy.judge import baselines
from persona_dspy.judge.optimized import GEPA, Portrait
from persona_dspy.judge.variant import CONTROL, OPTIMIZED, Variant
from persona_dspy.lm import Budget, current_ledger
from persona_dspy.memory import BM25, EpisodicMemory, Retriever

__all__ = ["Maker", "Prepared", "Setting"]

_BASELINES = {
    "direct": baselines.Direct,
    "icl": baselines.ICL,
    "rag": baselines.RAG,
    "pag": baselines.PAG,
    "react": baselines.ReAct,
    "membank": baselines.MemoryBank,
    "majority": baselines.Majority,
    "nearest": baselines.Nearest,
}


_NEUTRAL = "Has habits of their own."


class Maker(Protocol):
    """Makes the optimizer of the persona system: ``recent`` and ``epochs`` of its variant."""

    def __call__(self, *, recent: int, epochs: int) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all systems share.

    Args:
        k: episodes shown.
        turn_tokens: estimated tokens that an episode's query may have.
        recent, epochs, gate: of alignment: interactions simulated a step, steps at most, interactions held out by its
            gate (None = a quarter, 2 to 8).
        optimizer_calls: LM calls that any optimizer may spend on a user; None = as many as it takes (GEPA: 120).
        actions, knowledge: our agent's policy, and where its knowledge tool looks (None = no such tool).
        retrievers: how episodes are found, by name; ``retrieval`` is the name of the default, ``paper_retrieval`` that
            of the paper's agent.
        seed: of GEPA's search.
        align: makes the optimizer of the persona system; by default ``PersonaAlignment`` with the numbers above.
        program, metric: of one's own, see ``EvaluationOptions``.
    """

    k: int = 4
    turn_tokens: int = 96
    recent: int = 3
    epochs: int = 3
    gate: int | None = None
    optimizer_calls: int | None = None
    actions: Policy = "fixed"
    knowledge: KnowledgeSource | None = None
    retrieval: str = "bm25"
    paper_retrieval: str = "dense"
    retrievers: Mapping[str, Retriever] = field(default_factory=lambda: {"bm25": BM25()})
    seed: int = 0
    align: Maker | None = None
    program: Any = None
    metric: Any = None

    def optimizer(self, variant: Variant) -> Any:
        """What makes the persona of a variant: an object with ``compile(program, trainset=...)``."""
        recent, epochs = variant.recent or self.recent, variant.epochs or self.epochs
        if variant.system == "persona" and self.align is not None:
            return self.align(recent=recent, epochs=epochs)
        if variant.system == "portrait" or "no-alignment" in variant.changes:  # the paper's: a summary, not aligned
            return Portrait(counts=variant.system != "as-in-paper")
        gate = HeldOutGate(self.gate)
        if variant.system == "gepa":
            return GEPA(gate=gate, calls=self.optimizer_calls or 120, seed=self.seed)
        budget = None if self.optimizer_calls is None else Budget(calls=self.optimizer_calls)
        numbers: dict[str, Any] = {"recent": recent, "epochs": epochs, "budget": budget, "metric": self.metric}
        if variant.system == "as-in-paper":
            if "no-memory" in variant.changes:
                numbers["summary"] = None  # the summary is semantic memory
            return PersonaAlignment.as_in_paper(**numbers, patience=epochs)
        if variant.system == "textgrad":
            return PersonaAlignment(proposer=RewriteProposer(), loss="each", gate=gate, **numbers)
        return PersonaAlignment(gate=None if self.gate is None else gate, **numbers)


class Prepared:
    """One user's program of one variant: ``prepare`` once, then call it with the query's field."""

    def __init__(
        self, variant: Variant, setting: Setting, task: Task, history: Sequence[Interaction], user_id: str
    ) -> None:
        self.variant, self.setting, self.task, self.user_id = variant, setting, task, user_id
        default = setting.paper_retrieval if variant.system == "as-in-paper" else setting.retrieval
        retriever = setting.retrievers[variant.retrieval or default]
        self.memory = EpisodicMemory(history, user_id=user_id, retriever=retriever)
        self.is_agent = variant.system == "persona" or variant.system in OPTIMIZED
        k = setting.k if variant.k is None else variant.k
        self.program: Any
        if setting.program is not None and (self.is_agent or variant.system == "direct"):
            self.program = self._own()
        elif variant.system == "as-in-paper":
            self.program = self._paper_agent(k)
        elif self.is_agent:
            self.program = self._agent(k)
        else:
            self.program = _BASELINES[variant.system](
                task.signature(),
                history=self.memory,
                user_id=self.user_id,
                k=k,
                turn_tokens=setting.turn_tokens,
                labels="own" if CONTROL in variant.changes else "declared",
            )

    def _own(self) -> PersonalProgram:
        """The program of one's own for this user; without any persona where none is asked for."""
        program = self.setting.program
        if isinstance(program, PersonalProgram):
            program = program.for_user(self.user_id, self.memory)
        elif isinstance(program, dspy.Module):
            program = personalize(program, history=self.memory, user_id=self.user_id)
        else:
            program = program(self.memory, self.user_id)
        without = self.variant.system == "direct" or "no-persona" in self.variant.changes
        return program.with_persona(Persona(user_id=self.user_id)) if without else program

    def _agent(self, k: int) -> PersonalProgram:
        changes, signature = self.variant.changes, self.task.signature()
        persona = Persona(user_id=self.user_id) if "no-persona" in changes else None
        if "no-memory" in changes:
            # An empty persona would be filled with facts counted in memory; one with a line is left alone.
            persona = Persona.from_text(_NEUTRAL, user_id=self.user_id)
        program: PersonalProgram = PersonaAgent(
            signature,
            history=self.memory,
            user_id=self.user_id,
            persona=persona,
            actions=self._act(0 if "no-memory" in changes else k),
            episodes_as="block" if "block" in changes else "turns",
            steering=replace(Steering.of(dspy.settings.get("lm")), labels=False) if "any-label" in changes else None,
        )
        program.turn_tokens = self.setting.turn_tokens
        return program

    def _paper_agent(self, k: int) -> PersonalProgram:
        """The paper's agent, or it without one of its parts; what is left of the initial persona names what is left."""
        changes = self.variant.changes
        without_memory, knowledge = "no-memory" in changes, self._knowledge
        policy: Policy = "plain" if "no-steering" in changes else "react"
        if "no-action" in changes or (without_memory and knowledge is None):
            policy = "none"  # nothing to look up
        recall = Recall(k=0 if without_memory or "no-action" in changes else k)
        program: PersonalProgram = PersonaAgent.as_in_paper(
            self.task.signature(),
            history=self.memory,
            user_id=self.user_id,
            persona=Persona(user_id=self.user_id) if "no-persona" in changes else None,
            actions=Act(policy=policy, recall=recall, knowledge=knowledge, personal=not without_memory),
            episodes_as="block" if "block" in changes else "turns",
        )
        program.turn_tokens = self.setting.turn_tokens
        return program

    @property
    def _knowledge(self) -> KnowledgeSource | None:
        return None if "no-knowledge" in self.variant.changes else self.setting.knowledge

    def _act(self, k: int) -> Act:
        changes, policy = self.variant.changes, self.setting.actions
        if "no-steering" in changes:
            policy = "plain"
        if "no-action" in changes or ("no-memory" in changes and self.setting.knowledge is None):
            policy = "none"  # nothing to look up
        return Act(policy=policy, recall=Recall(k=k), knowledge=self._knowledge, personal="no-memory" not in changes)

    @property
    def needs_preparation(self) -> bool:
        """Whether there is LM work to do before the first query."""
        if "no-persona" in self.variant.changes:
            return False
        if "no-alignment" in self.variant.changes:
            return self.variant.system == "as-in-paper" and "no-memory" not in self.variant.changes
        return self.is_agent or self.variant.system in ("pag", "membank")

    def prepare(self, folder: Path) -> str:
        """Do that work, or read what an earlier run kept of it under ``folder``; returns a note for the record.

        Raises:
            BudgetExceeded: the run's time is over; nothing is kept.
        """
        path = folder / self.variant.name.replace("@", "-") / persona_file_name(self.user_id)
        if not self.is_agent:
            path = path.with_suffix(".txt")
            if path.exists():
                self.program.profile = path.read_text("utf-8")
                return "kept"
            self.program.prepare()
            write_text(path, self.program.profile)
            return ""
        if path.exists():
            self.program = self.program.with_persona(load_document(path).persona())
            return "kept"
        optimizer = self.setting.optimizer(self.variant)
        examples = self.program.examples()
        if not examples:
            return "no history: not aligned"
        aligned = optimizer.compile(self.program, trainset=examples)
        record: Alignment = aligned.alignment or Alignment(user_id=self.user_id)
        ledger = current_ledger()
        if record.stopped.startswith("budget") and ledger is not None and ledger.ended:  # of the run, not of this user
            raise BudgetExceeded(record.stopped)
        self.program = aligned
        write_text(path, PersonaDocument.of(aligned.persona.value, alignment=record).to_json())
        return f"{plural(record.accepted, 'edit')} accepted; {record.stopped}"

    def __call__(self, query: str, options: Sequence[str] = ()) -> Any:
        """The prediction for a query."""
        offered = {"options": list(options)} if options else {}
        return self.program(**{self.task.query_field: query}, **offered)

    def score(self, question: Question, prediction: Any) -> float | None:
        """By the metric of one's own; None where there is none, or no known answer to score by."""
        if self.setting.metric is None or question.gold is None:
            return None
        fields = {self.task.query_field: question.query, self.task.response_field: question.gold}
        example = dspy.Example(**fields).with_inputs(self.task.query_field)
        name = str(getattr(self.setting.metric, "__name__", "metric"))
        return metric_score(self.setting.metric(example, prediction), name, question.id)[0]
