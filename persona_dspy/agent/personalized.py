"""Any DSPy program under a user's persona: ``personalize`` and ``Personalized``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from persona_dspy.agent.actions import Act
from persona_dspy.agent.program import PersonalProgram, PersonaPrediction
from persona_dspy.agent.prompt import as_persona
from persona_dspy.agent.recall import Recall
from persona_dspy.agent.steps import Ask, Steps, adrive, drive, drop_last, within_context
from persona_dspy.core import Episode, Interaction, Persona, ResponseKind
from persona_dspy.errors import InputError
from persona_dspy.memory import EpisodicMemory

__all__ = ["Personalized", "personalize"]


class Personalized(PersonalProgram):
    """Any DSPy program under a user's persona; made by ``personalize``."""

    def __init__(
        self,
        program: dspy.Module,
        *,
        memory: EpisodicMemory,
        persona: Persona | None = None,
        user_id: str | None = None,
        fields: tuple[str, str] | None = None,
        recall_k: int = 0,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(memory=memory, persona=persona, user_id=user_id, recall=Recall(k=recall_k))
        self.act = Act(policy="fixed", recall=self.recall)
        self.program = _listed(program)
        predictors: list[Any] = self.program.predictors()
        if not predictors:
            raise InputError(f"program {type(program).__name__!r}: expected a dspy.Module with at least one predictor")
        query, response = fields or (
            next(iter(predictors[0].signature.input_fields)),
            next(reversed(predictors[-1].signature.output_fields)),
        )
        self.query_field, self.response_field = query, response
        found = [p.signature.output_fields[response] for p in predictors if response in p.signature.output_fields]
        if not found and fields:
            raise InputError(f"fields {fields!r}: no predictor has an output {response!r}; name one that exists")
        responses = [i.response for i in memory.interactions]
        self.kind = ResponseKind.of_field(found[-1], responses) if found else ResponseKind.of(str, responses)
        self.adapter = adapter
        plain = (dspy.Predict, dspy.ChainOfThought)
        self._calls_tools = not isinstance(self.program, plain)  # what a program's own code calls, only calling shows
        try:
            self._settle_persona()
        except InputError as error:
            if fields:
                raise
            named = f"personalize(program, fields=({query!r}, '...'))"
            raise InputError(
                f"{error}. The response was taken to be {response!r}, the last output of the last predictor; where it "
                f"is another, name it: {named}"
            ) from None

    def forward(self, **inputs: Any) -> PersonaPrediction:
        return drive(self._flow(inputs))

    async def aforward(self, **inputs: Any) -> PersonaPrediction:
        return await adrive(self._flow(inputs))

    def _flow(self, inputs: dict[str, Any]) -> Steps[PersonaPrediction]:
        query = str(inputs.get(self.query_field, ""))
        with self._answering(query) as answer:

            def respond(episodes: Sequence[Episode]) -> Steps[dspy.Prediction]:
                turns = self._turns(episodes)
                with as_persona(answer.prompt, turns=turns, adapter=self.adapter, lm=self._lm()):
                    return (yield Ask(self.program, inputs))

            # What the program holds itself is its own to shorten.
            prediction = yield from within_context(respond, (yield from self._recalled(query)), drop_last)
            return self._traced(prediction, answer, query)

    def _recalled(self, query: str) -> Steps[Sequence[Episode]]:
        """As PersonaAgent recalls: the persona's rules have a say in the words, and in which of the found are shown."""
        if self.recall.k == 0 or not len(self.memory):
            return []
        return (yield Ask(self.act, {"query": query})).episodes

    def _asked_signature(self) -> Any:
        signatures: list[Any] = [predictor.signature for predictor in self.program.predictors()]
        return next((s for s in signatures if self.response_field in s.output_fields), signatures[-1])

    def _input_names(self) -> list[str]:
        predictors: list[Any] = self.program.predictors()
        return [name for p in predictors for name in p.signature.input_fields]

    def _field_names(self) -> list[str]:
        predictors: list[Any] = self.program.predictors()
        return [name for p in predictors for name in p.signature.fields]

    def _has_tools(self) -> bool:
        return self._calls_tools


def _listed(program: dspy.Module) -> dspy.Module:
    """``program``, or a copy of one that another optimizer compiled: DSPy leaves compiled submodules out of
    ``named_parameters()``, and so out of saved files; ours must be in."""
    if not any(getattr(part, "_compiled", False) for _, part in program.named_sub_modules()):
        return program
    copied = program.deepcopy()
    for _, part in copied.named_sub_modules():
        vars(part)["_compiled"] = False
    return copied


def personalize(
    program: dspy.Module,
    *,
    persona: Persona | None = None,
    history: Iterable[Interaction] | EpisodicMemory = (),
    user_id: str | None = None,
    fields: tuple[str, str] | None = None,
    recall_k: int = 0,
    adapter: Adapter | None = None,
) -> Personalized:
    """Any DSPy program with a user's persona in the system message of every predictor inside. ``program`` is not
    changed and may be shared between users.

    Args:
        persona: by default one of facts counted in ``history``.
        history: the user's interactions; needed for alignment and for past turns.
        fields: names of the query (an input) and of the response (an output); by default the first input of the first
            predictor and the last output of the last.
        recall_k: how many recalled episodes go in as past turns of predictors that have both fields; 0 = none.

    Raises:
        InputError: a program without predictors; a response field that none has; persona and history of different
            users.

    Example:
        >>> brief = Persona.from_text("Likes brevity.", user_id="u")
        >>> mine = personalize(dspy.Predict("question -> answer"), persona=brief)
        >>> [name for name, _ in mine.named_parameters()]
        ['program', 'persona']
    """
    memory = history if isinstance(history, EpisodicMemory) else EpisodicMemory(history, user_id=user_id)
    return Personalized(
        program, memory=memory, persona=persona, user_id=user_id, fields=fields, recall_k=recall_k, adapter=adapter
    )
