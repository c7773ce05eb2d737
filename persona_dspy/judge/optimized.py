"""Other ways to a persona, behind the ``compile`` of an optimizer: GEPA's search, and an LM's summary alone."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import dspy
import gepa

from optimizers import HeldOutGate, PersonaGEPAAdapter
from persona_dspy.agent import PersonalProgram, as_persona
from persona_dspy.core import Alignment, Persona, Scores, plural
from persona_dspy.lm import Ledger, current_ledger, reserved, role
from persona_dspy.memory import SemanticMemory, facts

__all__ = ["GEPA", "Portrait"]

_MINIBATCH = 3


class GEPA:
    """``gepa.optimize`` over the persona's text (arXiv 2507.19457), scored as PersonaAlignment scores.

    The held-out interactions are its validation set: none of them is recalled or reflected on. It stops before an
    iteration that would, at the calls a rollout took so far, pass ``calls``; reflection counts.

    Args:
        gate: says which interactions are held out; nothing else of it is used.
        calls: LM calls at most for one user.
        seed: of its search.
    """

    def __init__(self, *, gate: HeldOutGate, calls: int = 120, seed: int = 0) -> None:
        self.gate, self.calls, self.seed = gate, calls, seed

    def compile(self, student: PersonalProgram, *, trainset: list[dspy.Example]) -> PersonalProgram:
        """A copy of ``student`` under the candidate that scored best on the held-out interactions."""
        (split,) = self.gate.splits(trainset)
        program = student.deepcopy()
        if not split.held:
            program.alignment = Alignment(
                user_id=program.user_id,
                stopped=f"{plural(len(trainset), 'interaction')}: too few to search on and hold out",
            )
            return program
        adapter: Any = PersonaGEPAAdapter(program, held=[e.interaction_id for e in split.held])
        ledger = Ledger(user_id=program.user_id, parent=current_ledger())

        def spent(gepa_state: Any) -> bool:
            rollouts = 2 * _MINIBATCH + len(split.held)  # of one iteration: a minibatch twice, the validation set
            each = ledger.usage.calls / max(1, gepa_state.total_num_evals)
            return ledger.usage.calls + rollouts * each + 1 > self.calls

        with ledger.recording():
            result: Any = gepa.optimize(
                seed_candidate=adapter.seed,
                trainset=split.fit,
                valset=split.held,
                adapter=adapter,
                reflection_lm=_reflect,
                reflection_minibatch_size=_MINIBATCH,
                stop_callbacks=[spent, _perfect],
                seed=self.seed,
                logger=_Quiet(),
            )
        if result.best_idx:
            program = adapter.program_of(result.best_candidate)
        program.alignment = Alignment(
            user_id=program.user_id,
            gate_size=len(split.held),
            accepted=len(result.candidates) - 1,
            scores=Scores(initial=result.val_aggregate_scores[0], final=result.val_aggregate_scores[result.best_idx]),
            stopped=f"GEPA: {plural(len(result.candidates), 'candidate')}",
        )
        return program


def _reflect(prompt: Any) -> str:
    """The LM of the run, asked as it is: GEPA brings its own prompt."""
    lm: Any = dspy.settings.lm
    with role("update"), reserved():
        answer = lm(prompt) if isinstance(prompt, str) else lm(messages=prompt)
    return answer[0] if isinstance(answer[0], str) else str(answer[0].get("text") or "")


def _perfect(gepa_state: Any) -> bool:
    """Nothing is left to gain: a candidate is right on the whole validation set."""
    scores = [list(by_item.values()) for by_item in gepa_state.prog_candidate_val_subscores]
    return any(fmean(values) >= 1.0 for values in scores if values)


class _Quiet:
    def log(self, message: str) -> None:
        """GEPA's progress is not shown."""


class Portrait:
    """The persona is an LM's summary of the history and the counted facts; nothing is simulated, nothing judged.

    Args:
        counts: whether facts counted by code are part of it.
    """

    def __init__(self, *, counts: bool = True) -> None:
        self.counts = counts

    def compile(self, student: PersonalProgram, *, trainset: list[dspy.Example]) -> PersonalProgram:
        """A copy of ``student`` under that persona; the initial one stays where the LM's summary cannot be read."""
        program = student.deepcopy()
        past = program.memory.interactions
        adapter: Any = program.adapter
        with as_persona("", adapter=adapter):  # asks the budget before each call
            bullets = SemanticMemory()(interactions=past, asked=program.asked()).bullets
        if bullets:
            given = [b for b in program.persona.value.bullets if b.source != "fact" or b.locked]
            persona = Persona(user_id=program.user_id, bullets=(*given, *bullets), version=1, parent=0)
            program = program.with_persona(persona.with_facts(facts(past, program.kind)) if self.counts else persona)
        program.alignment = Alignment(user_id=program.user_id, stopped=f"a portrait of {plural(len(bullets), 'line')}")
        return program
