"""Lets GEPA search over personas, with our program and our scores.

``dspy.GEPA`` evolves a program's instructions; with this adapter, ``gepa.optimize`` evolves the persona's text
instead, and every evaluation sees memory as it stood before the interaction it scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from gepa import EvaluationBatch

from optimizers.loss import Metric, Simulated
from optimizers.simulation import Simulator
from persona_dspy.agent import PersonalProgram
from persona_dspy.core import Persona, fenced, one_line
from persona_dspy.errors import InputError
from persona_dspy.memory import facts

__all__ = ["PersonaGEPAAdapter"]

COMPONENT = "persona"


class PersonaGEPAAdapter:
    """For ``gepa.optimize(adapter=...)``: candidates are ``{"persona": text}``, a line a bullet.

    Args:
        program: a PersonaAgent or what ``personalize`` returned; not changed.
        metric: as for PersonaAlignment; by default by the response's type.
        held: interaction ids of the valset: no evaluation recalls them.
        concurrency: evaluations at once.

    Example:
        >>> from persona_dspy.agent import PersonaAgent
        >>> agent = PersonaAgent("film -> tag", persona=Persona.from_text("Likes horror.", user_id="u"))
        >>> PersonaGEPAAdapter(agent).seed["persona"].splitlines()[-1]
        '- Likes horror.'
    """

    def __init__(
        self,
        program: PersonalProgram,
        metric: Metric | None = None,
        *,
        held: Sequence[str] = (),
        concurrency: int = 1,
    ) -> None:
        self.program = program
        self.propose_new_texts = None  # GEPA's own reflection writes the candidates
        self.simulator = Simulator(program, metric, frozenset(held), concurrency)

    @property
    def seed(self) -> dict[str, str]:
        """The program's own persona as the first candidate; its facts are counted without what is held out."""
        persona = self.program.persona.value
        if any(b.source == "fact" for b in persona.bullets):
            seen = self.program.memory.before(None, self.simulator.held)
            persona = persona.with_facts(facts(seen, self.program.kind))
        return {COMPONENT: persona.render() or "Nothing is known of this user yet."}

    def persona(self, candidate: Mapping[str, str]) -> Persona:
        """A candidate as the next version of the program's persona; locked bullets stay whatever the text says."""
        current = self.program.persona.value
        return Persona.from_text(candidate[COMPONENT], user_id=current.user_id, source="learned", like=current)

    def program_of(self, candidate: Mapping[str, str]) -> PersonalProgram:
        """The program under a candidate, such as ``result.best_candidate``."""
        return self.program.with_persona(self.persona(candidate))

    def evaluate(
        self, batch: list[dspy.Example], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Simulated, str]:
        """Scores in [0, 1], one for each example; a candidate without text, or over the cap, scores 0 everywhere.

        ``objective_scores``: for each example its ``score``, and ``exact``, whether it is the user's own response. An
        example that raises scores 0, with the error as feedback, and ends nothing; where all do, the first is raised.

        Raises:
            BudgetExceeded: the budget is spent. Whatever the LM raises, where it answers no example of the batch.
        """
        try:
            persona = self.persona(candidate)
        except InputError as refusal:
            simulated = [_nothing(f"Not used: {refusal}")] * len(batch)
        else:
            failures: list[Exception] = []

            def failed(failure: Exception) -> Simulated:
                failures.append(failure)
                return _nothing(f"No answer, {type(failure).__name__}: {one_line(str(failure))[:200]}")

            simulated = self.simulator.run(persona, batch, failed=failed)
            if failures and len(failures) == len(batch):
                raise failures[0]
        return EvaluationBatch(
            outputs=[s.answer for s in simulated],
            scores=[s.score for s in simulated],
            trajectories=simulated if capture_traces else None,
            objective_scores=[{"score": s.score, "exact": float(s.right)} for s in simulated],
        )

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Simulated, str], components_to_update: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """What GEPA's reflection reads: query, our response, and what the user said instead, each fenced."""
        records = [
            {
                "Inputs": {"query": fenced(s.query, "query")},
                "Generated Outputs": fenced(s.answer, "our response"),
                "Feedback": _feedback(s),
            }
            for s in eval_batch.trajectories or []
        ]
        return dict.fromkeys(components_to_update, records)


def _nothing(said: str) -> Simulated:
    return Simulated(interaction_id="", query="", answer="", gold="", score=0.0, said=said)


def _feedback(simulated: Simulated) -> str:
    if simulated.right:
        return "This is the user's own response."
    if simulated.said:
        return fenced(simulated.said, "feedback")
    return "The user's own response was:\n" + fenced(simulated.gold, "the user's own response")
