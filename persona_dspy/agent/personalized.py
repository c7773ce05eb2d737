"""Any DSPy program under a user's persona: ``personalize`` and ``Personalized``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from persona_dspy.agent.actions import Act
from persona_dspy.agent.dspy_private import with_parts_listed
from persona_dspy.agent.history import memory_of
from persona_dspy.agent.program import PersonalProgram
from persona_dspy.agent.prompt import as_persona
from persona_dspy.agent.recall import Recall
from persona_dspy.agent.responses import joint_kind, joint_name, outputs_of
from persona_dspy.agent.steps import Ask, Steps, adrive, drive, drop_last, within_context
from persona_dspy.core import Episode, Interaction, Persona, answer_text
from persona_dspy.errors import InputError
from persona_dspy.memory import EpisodicMemory

__all__ = ["Personalized", "personalize"]


class Personalized(PersonalProgram):
    """Any DSPy program under a user's persona; made by ``personalize``."""

    names_its_calls = True  # spans of LM calls are named by the program's predictors

    def __init__(
        self,
        program: dspy.Module,
        *,
        memory: EpisodicMemory,
        persona: Persona | None = None,
        user_id: str | None = None,
        fields: Sequence[str] | None = None,
        recall_k: int = 0,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(memory=memory, persona=persona, user_id=user_id, recall=Recall(k=recall_k))
        self.act = Act(policy="fixed", recall=self.recall)
        for part in (program, *(part for _, part in program.named_sub_modules())):
            if isinstance(part, PersonalProgram):
                raise InputError(
                    f"program {type(program).__name__!r}: it answers for user {part.user_id!r} already, and one answer "
                    "has one persona; personalize the program inside, or type program.for_user(...)"
                )
        self.program = with_parts_listed(program)
        predictors: list[Any] = self.program.predictors()
        if not predictors:
            raise InputError(f"program {type(program).__name__!r}: expected a dspy.Module with at least one predictor")
        inputs = [name for p in predictors for name in p.signature.input_fields]
        outputs = [name for p in reversed(predictors) for name in reversed(p.signature.output_fields)]
        if not fields and not (inputs and outputs):
            raise InputError(
                f"program {type(program).__name__!r}: expected predictors with an input and an output, such as "
                "'question -> answer', or personalize(program, fields=('question', 'answer'))"
            )
        query, *responses = fields or (inputs[0], outputs[0])
        if isinstance(fields, str) or not responses or len(set(responses)) < len(responses):
            raise InputError(
                f"fields {fields!r}: expected the name of the query, and of one response or more, each once, such as "
                f"fields=({inputs[0] if inputs else 'question'!r}, {outputs[0] if outputs else 'answer'!r})"
            )
        self.query_field, self.response_field = query, joint_name(responses)
        # A field that no predictor has may be one that the program's own code writes.
        self.kind = joint_kind(outputs_of(predictors, responses), [i.response for i in memory.interactions])
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
                f"{error}. The response was taken to be {outputs[0]!r}, the last output of the last predictor; where "
                f"it is another, name it: {named}"
            ) from None

    def forward(self, *args: Any, **inputs: Any) -> Any:
        return drive(self._flow(args, inputs))

    async def aforward(self, *args: Any, **inputs: Any) -> Any:
        return await adrive(self._flow(args, inputs))

    def _flow(self, args: tuple[Any, ...], inputs: dict[str, Any]) -> Steps[Any]:
        named = self._named(args, inputs)
        query = answer_text(named[self.query_field] if self.query_field in named else next(iter(named.values()), ""))
        with self._answering(query) as answer:

            def respond(episodes: Sequence[Episode]) -> Steps[Any]:
                with as_persona(answer.prompt, turns=self._turns(episodes), adapter=self._plain_adapter()):
                    return (yield Ask(self.program, inputs, args))

            # What the program holds itself is its own to shorten.
            given = yield from within_context(respond, (yield from self._recalled(query)), drop_last)
            return self._traced(given, answer, query, named)

    def _plain_adapter(self) -> Adapter:
        """The adapter that the program has without us: DSPy's default is ChatAdapter with its fallback."""
        return self.adapter or dspy.settings.get("adapter") or dspy.ChatAdapter()

    def _named(self, args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, however they were given; those that have none by their place, and first."""
        if not args and (self.query_field in inputs or not inputs):
            return inputs
        try:
            forward: Any = getattr(type(self.program), "forward")  # noqa: B009 - a module's own, not dspy.Module's
            bound = inspect.signature(forward).bind(self.program, *args, **inputs)
            bound.apply_defaults()
            named = dict(list(bound.arguments.items())[1:])
        except (AttributeError, TypeError):  # the program itself says what is wrong
            named = {}
        return named if self.query_field in named else {**{str(n): arg for n, arg in enumerate(args)}, **inputs}

    def _recalled(self, query: str) -> Steps[Sequence[Episode]]:
        """As PersonaAgent recalls: the persona's rules have a say in the words, and in which of the found are shown."""
        if self.recall.k == 0 or not len(self.memory):
            return []
        return (yield Ask(self.act, {"query": query})).episodes

    def _asked_signature(self) -> Any:
        signatures: list[Any] = [predictor.signature for predictor in self.program.predictors()]
        return next((s for s in signatures if self.response_fields[0] in s.output_fields), signatures[-1])

    def _outputs(self) -> dict[str, Any]:
        return outputs_of(self.program.predictors(), self.response_fields)

    def _input_fields(self) -> dict[str, Any]:
        predictors: list[Any] = self.program.predictors()
        fields: dict[str, Any] = {}
        for predictor in predictors:
            for name, field in predictor.signature.input_fields.items():
                if (
                    name == self.query_field or name not in self.response_fields
                ):  # one step's response may be the next one's input
                    fields.setdefault(name, field)
        return fields

    def _field_names(self) -> list[str]:
        predictors: list[Any] = self.program.predictors()
        return [name for p in predictors for name in p.signature.fields]

    def _has_tools(self) -> bool:
        return self._calls_tools


def personalize(
    program: dspy.Module,
    *,
    persona: Persona | None = None,
    history: Iterable[Interaction | Mapping[str, Any]] | EpisodicMemory = (),
    user_id: str | None = None,
    fields: Sequence[str] | None = None,
    recall_k: int = 0,
    adapter: Adapter | None = None,
) -> Personalized:
    """Any DSPy program with a user's persona in the system message of every predictor inside. ``program`` is not
    changed and may be shared between users.

    Args:
        persona: by default one of facts counted in ``history``.
        history: the user's interactions; needed for alignment and for past turns.
        fields: names of the query (an input) and of the response (a field of what the program returns); by default
            the first input of the first predictor and the last output of the last. More names are more responses, such
            as a label that an inner predictor gives beside a reply: ``fields=("message", "reply", "label")``. A user's
            answer is then an object of one or more of them, and plain text is the first's.
        recall_k: how many recalled episodes go in as past turns of predictors that have both fields; 0 = none.

        adapter: by default the one the program has without us: the configured one, else ChatAdapter.

    Positional arguments, ``dspy.Parallel``, ``batch``, ``asyncify`` and ``streamify`` work as with ``program``, and
    what it returns - a prediction, text, a list, None - is returned; a prediction has a ``.trace``.

    Raises:
        InputError: a program without predictors, without inputs or outputs, or with a persona already; persona and
            history of different users. When called: no LM call carried the persona.

    Example:
        >>> brief = Persona.from_text("Likes brevity.", user_id="u")
        >>> mine = personalize(dspy.Predict("question -> answer"), persona=brief)
        >>> [name for name, _ in mine.named_parameters()]
        ['program', 'persona']
    """
    memory = memory_of(history, user_id)
    return Personalized(
        program, memory=memory, persona=persona, user_id=user_id, fields=fields, recall_k=recall_k, adapter=adapter
    )
