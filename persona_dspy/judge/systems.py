"""A variant's name to a program for one user.

Every system gets the same signature, memory, LM and token caps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from persona_dspy.agent import Act, KnowledgeSource, PersonaAgent, PersonalProgram, Policy, Recall
from persona_dspy.core import Alignment, Persona, PersonaDocument, load_document, persona_file_name, write_text
from persona_dspy.data import Task
from persona_dspy.errors import BudgetExceeded
from persona_dspy.judge import baselines
from persona_dspy.judge.variant import CONTROL, Variant
from persona_dspy.memory import EpisodicMemory

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
    """Makes the optimizer of a variant: its ``recent`` and ``epochs``, or the defaults where it has none."""

    def __call__(self, *, recent: int | None, epochs: int | None) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all systems share: how many episodes are shown, tokens of each, and the optimizer's maker.

    ``actions`` and ``knowledge``: PersonaAgent's policy, and where its knowledge tool looks (None = no such tool).
    """

    align: Maker
    k: int = 4
    turn_tokens: int = 96
    actions: Policy = "fixed"
    knowledge: KnowledgeSource | None = None


class Prepared:
    """One user's program of one variant: ``prepare`` once, then call it with the query's field."""

    def __init__(self, variant: Variant, setting: Setting, task: Task, memory: EpisodicMemory) -> None:
        self.variant, self.setting, self.task, self.memory = variant, setting, task, memory
        self.user_id = memory.user_id or "user"
        k = setting.k if variant.k is None else variant.k
        self.program: Any
        if variant.system == "persona":
            self.program = self._persona(k)
        else:
            self.program = _BASELINES[variant.system](
                task.signature(),
                history=memory,
                user_id=self.user_id,
                k=k,
                turn_tokens=setting.turn_tokens,
                labels="own" if CONTROL in variant.changes else "declared",
            )

    def _persona(self, k: int) -> PersonalProgram:
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
            labels="declared" if "any-label" in changes else "own",
        )
        program.turn_tokens = self.setting.turn_tokens
        return program

    def _act(self, k: int) -> Act:
        changes, policy = self.variant.changes, self.setting.actions
        if "no-action" in changes:
            policy = "plain"
        if "no-memory" in changes and self.setting.knowledge is None:
            policy = "none"  # and no knowledge either to choose from: nothing to look up
        knowledge = None if "no-knowledge" in changes else self.setting.knowledge
        return Act(policy=policy, recall=Recall(k=k), knowledge=knowledge, personal="no-memory" not in changes)

    @property
    def needs_preparation(self) -> bool:
        """Whether there is LM work to do before the first query."""
        aligned = not {"no-alignment", "no-persona"} & set(self.variant.changes)
        return aligned and self.variant.system in ("persona", "pag", "membank")

    def prepare(self, folder: Path) -> str:
        """Do that work, or read what an earlier run kept of it under ``folder``; returns a note for the record.

        Raises:
            BudgetExceeded: the run's time is over; nothing is kept.
        """
        path = folder / self.variant.name.replace("@", "-") / persona_file_name(self.user_id)
        if self.variant.system != "persona":
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
        optimizer = self.setting.align(recent=self.variant.recent, epochs=self.variant.epochs)
        examples = self.program.examples()
        if not examples:
            return "no history: not aligned"
        aligned = optimizer.compile(self.program, trainset=examples)
        record: Alignment = aligned.alignment or Alignment(user_id=self.user_id)
        if record.stopped.startswith("budget"):
            raise BudgetExceeded(record.stopped)
        self.program = aligned
        write_text(path, PersonaDocument.of(aligned.persona.value, alignment=record).to_json())
        return f"{record.accepted} edits accepted; {record.stopped}"

    def __call__(self, query: str) -> Any:
        return self.program(**{self.task.query_field: query})[self.task.response_field]
