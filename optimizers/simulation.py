"""Simulates past interactions under a persona and scores the answers."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from optimizers.drafts import attempt_of, score_by_signal
from optimizers.loss import Metric, Simulated, score_of
from persona_dspy.agent import PersonalProgram, Step, on_loop, run_all_on_loop, trace_of
from persona_dspy.core import Persona, answer_text, one_line, unheard
from persona_dspy.errors import BudgetExceeded, ModelError

__all__ = ["RUBBISH", "Simulator"]

RUBBISH = 4
"""So many answers, none of which can be read, end a user's alignment."""


class Simulator:
    """Answers past interactions as if they were new: with memory as it stood just before each, and never with
    anything that is ``held`` out (contract 4: no leakage).

    Args:
        program: whose predictors and memory are used; not changed.
        metric: scores a prediction in [0, 1]; None = by the response's type.
        held: ids of interactions that no simulation may recall.
        concurrency: how many simulations run at once.
    """

    def __init__(
        self, program: PersonalProgram, metric: Metric | None, held: frozenset[str] = frozenset(), concurrency: int = 1
    ) -> None:
        self.program, self.metric, self.held, self.concurrency = program, metric, held, concurrency
        self._asked, self._read, self._why = 0, False, "it is blank"

    def run(
        self,
        persona: Persona,
        examples: Sequence[dspy.Example],
        *,
        failed: Callable[[Exception], Simulated] | None = None,
    ) -> list[Simulated]:
        """One ``Simulated`` for each example, in order. An answer that cannot be parsed scores 0; LM failures raise.

        Args:
            failed: makes what stands for an example that raises; a spent budget raises all the same.

        Raises:
            ModelError: of the answers asked for so far, ``RUBBISH`` or more, none can be read.
        """
        program = self.program.with_persona(persona)

        def one(example: dspy.Example) -> Simulated:
            try:
                return self._one(program, example)
            except BudgetExceeded:
                raise
            except Exception as failure:
                if failed is None:
                    raise
                return failed(failure)

        simulated = self._map(one, examples)
        self._asked += len(simulated)
        if not self._read and self._asked >= RUBBISH:
            raise ModelError(
                f"user {program.user_id!r}: none of {self._asked} answers of {program.lm_name() or 'the LM'!r} can be "
                f"read ({self._why}); expected answers in the form that is asked for: is it the right model, and are "
                "max_tokens enough?"
            )
        return simulated

    def _one(self, program: PersonalProgram, example: dspy.Example) -> Simulated:
        field, steps = program.response_field, ()
        try:
            prediction: Any = program.simulate(example, exclude=self.held)
            steps = trace_of(prediction).steps
            answer = prediction.get(field)
            self._read = self._read or not (answer is None or (isinstance(answer, str) and not answer.strip()))
        except AdapterParseError as failure:
            prediction, self._why = dspy.Prediction(**{field: ""}), one_line(str(failure))[:200]
        recalled_ids = dict.fromkeys(r.id for s in steps for r in s.recalled)
        past = {i.id: i for i in program.memory.interactions} if recalled_ids else {}
        if example.get(field) is None:  # the user only said something of another answer
            score, comment = score_by_signal(example.get("signal"), answer_text(prediction.get(field, ""))), ""
        else:
            score, comment = score_of(self.metric, program.kind, example, prediction, field)
        heard = [s.observation for s in steps if s.observation]  # a tool's words must not become the persona's
        given = None if example.get(field) is not None else self.given(example)
        return Simulated(
            interaction_id=str(example.get("interaction_id", "")),
            query=str(example.get(program.query_field, "")),
            answer=unheard(answer_text(prediction.get(field, "")), heard),
            gold=answer_text(example.get(field, "")),
            score=score,
            said=unheard(comment, heard),
            actions=tuple(
                f"{s.action}({unheard(s.query, heard)})" for s in steps if not _by_query(s, program, example)
            ),
            episodes=tuple(recalled_ids),
            recalled=tuple(past[i].response for i in recalled_ids if i in past),
            context=_context(program, example),
            draft=given.draft if given else "",
            heard=given.heard if given else "",
        )

    def run_or_given(self, persona: Persona, examples: Sequence[dspy.Example], begun: Persona) -> list[Simulated]:
        """As ``run``, but what the user was really given under this persona, or judged, is not asked again; ``begun``:
        the persona that answered the user until now."""
        given = {e.interaction_id: one for e in examples if (one := self._given_under(persona, e, begun)) is not None}
        asked = [e for e in examples if e.interaction_id not in given]
        ran = {s.interaction_id: s for s in self.run(persona, asked)}
        return [(given | ran)[e.interaction_id] for e in examples]

    def _given_under(self, persona: Persona, example: dspy.Example, begun: Persona) -> Simulated | None:
        interaction = self.program.memory.get(example.interaction_id)
        if interaction is None or interaction.signal is None:
            return None
        version = interaction.signal.version
        if interaction.answered and version is not None:  # an edit of what another persona gave is simulated anew
            lines, own = ([b for b in p.bullets if b.source != "fact"] for p in (persona, begun))
            if version != begun.version or lines != own:
                return None
        return self.given(example)

    def given(self, example: dspy.Example) -> Simulated | None:
        """The answer that the user was really given then, with what the user made of it; None where there was none."""
        interaction = self.program.memory.get(str(example.get("interaction_id", "")))
        attempt = attempt_of(interaction, self.program.kind) if interaction else None
        if attempt is None or self.metric is None or not attempt.gold:
            return attempt and replace(attempt, context=_context(self.program, example))
        prediction = dspy.Prediction(**self.program.response_values(attempt.answer))
        score, said = score_of(self.metric, self.program.kind, example, prediction, self.program.response_field)
        return replace(attempt, score=score, said=attempt.said or said, context=_context(self.program, example))

    def _map(self, work: Callable[[dspy.Example], Simulated], items: Iterable[dspy.Example]) -> list[Simulated]:
        items = list(items)
        if self.concurrency <= 1 or len(items) <= 1:
            return [work(item) for item in items]
        if on_loop():
            return run_all_on_loop([partial(work, item) for item in items])
        with ThreadPoolExecutor(self.concurrency) as pool:  # dspy.context does not cross threads by itself
            runs = [pool.submit(contextvars.copy_context().run, work, item) for item in items]
            return [run.result() for run in runs]


def _by_query(step: Step, program: PersonalProgram, example: dspy.Example) -> bool:
    """Whether a step only recalled by the query itself, as every answer does."""
    return step.action == "recall_history" and step.query == one_line(str(example.get(program.query_field, "")))


def _context(program: PersonalProgram, example: dspy.Example) -> str:
    """What is known of an interaction beside its query: other inputs, and its title."""
    known = {n: v for n, v in example.inputs().items() if n != program.query_field}
    if offered := known.pop("options", None):
        known["could be chosen"] = "; ".join(map(str, offered))
    if interaction := program.memory.get(str(example.get("interaction_id", ""))):
        known |= {n: v for n, v in interaction.metadata.items() if n == "title" and v != interaction.query}
    return "\n".join(f"{name}: {one_line(str(value), 200)}" for name, value in known.items())
