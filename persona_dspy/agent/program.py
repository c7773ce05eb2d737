"""PersonalProgram: the base of every program with a persona."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import dspy

from persona_dspy.agent.autologged import tag_trace
from persona_dspy.agent.checkpoint import LoadsCheckpoints
from persona_dspy.agent.context import Answering, Delivery, Turn, answering, current_answer, recording
from persona_dspy.agent.drafts import OUTCOME, RecentDrafts, draft_of, looked_up
from persona_dspy.agent.feedback import TakesFeedback
from persona_dspy.agent.history import memory_of
from persona_dspy.agent.inputs import json_safe, other_inputs, shown_input, typed_input
from persona_dspy.agent.instructions import described
from persona_dspy.agent.offered import OPTIONS, shown_options
from persona_dspy.agent.pickling import pickled
from persona_dspy.agent.prediction import PersonaPrediction, as_prediction
from persona_dspy.agent.recall import Recall
from persona_dspy.agent.responses import respelled
from persona_dspy.agent.steering import Steering
from persona_dspy.agent.trace import Trace
from persona_dspy.agent.watcher import Watcher
from persona_dspy.core import (
    Alignment,
    Episode,
    Interaction,
    Persona,
    PersonaParameter,
    ResponseKind,
    Signal,
    clip_middle,
    clip_tokens,
)
from persona_dspy.errors import InputError
from persona_dspy.lm import Sizes, lm_name
from persona_dspy.memory import EpisodicMemory, MemoryCut, facts

__all__ = ["PersonalProgram", "Watcher"]

_LONGER = 3  # times as long as a past query the user's own answer to it may be: it is what is imitated


class PersonalProgram(TakesFeedback, LoadsCheckpoints, dspy.Module):
    """What PersonaAgent and Personalized share: a persona parameter, a handle on one user's memory, and the names of
    the query and response fields. The predictors may be shared between users; a call changes nothing but contexts."""

    persona: PersonaParameter
    memory: EpisodicMemory
    query_field: str
    response_field: str
    kind: ResponseKind
    alignment: Alignment | None = None  # set on what PersonaAlignment returns
    online: Watcher | None = None  # of a service's program: see Watcher
    replays: bool = False  # see ``replaying``
    steering: Steering | None = None  # None = what suits the LM that answers
    sizes: Sizes | None = None
    takes_options: bool = False  # whether a call may say what can be answered, without an input for it
    outcomes: bool = False  # what was looked up and answered is kept beside an answer that is observed
    turn_tokens: int | None = None  # of a past query shown as a turn, where it is not to be ``sizes.turn``

    def __init__(self, *, memory: EpisodicMemory, persona: Persona | None, user_id: str | None, recall: Recall) -> None:
        super().__init__()
        user = user_id or (persona.user_id if persona else None) or memory.user_id or "user"
        for named, other in (("persona", persona.user_id if persona else None), ("history", memory.user_id)):
            if other not in (None, user):
                raise InputError(f"{named} of user {other!r}: expected user {user!r}; one program answers for one user")
        self.memory, self.recall = memory, recall
        self._given = persona
        self._user_id = user
        self._drafts = RecentDrafts()

    def _settle_persona(self) -> None:
        if not self.kind.is_free:
            for interaction in self.memory.interactions:
                self._check_response(interaction)
            self.memory.respell(partial(respelled, self.kind))
        given = self._given or Persona(user_id=self._user_id).with_facts(facts(self.memory.interactions, self.kind))
        self.persona = PersonaParameter(given)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if self.online is None:
            return super().__call__(*args, **inputs)
        self.online.refresh(self)
        with dspy.context(**self._service_context(self.online)):
            return super().__call__(*args, **inputs)

    async def acall(self, *args: Any, **inputs: Any) -> Any:
        if self.online is None:
            return await super().acall(*args, **inputs)
        await self.online.arefresh(self)
        with dspy.context(**self._service_context(self.online)):
            return await super().acall(*args, **inputs)

    def _service_context(self, online: Watcher) -> dict[str, Any]:
        """DSPy's own history keeps the prompts of all users in the shared program."""
        traces = {"persona_traces": online.traces} if online.traces is not None else {}
        return {"disable_history": True, "persona_since": online.state, **traces}

    def _check_response(self, interaction: Interaction) -> None:
        try:
            self.kind.response(interaction.response)
        except InputError as error:
            raise InputError(f"interaction {interaction.id!r} of user {self._user_id!r}: {error}") from None

    @property
    def user_id(self) -> str:
        return self._user_id

    def for_user(
        self,
        user_id: str,
        history: Iterable[Interaction | Mapping[str, Any]] | EpisodicMemory = (),
        persona: Persona | None = None,
    ) -> Self:
        """This program for another user: the same predictors, another persona and memory. Light: nothing is copied."""
        memory = memory_of(history, user_id)
        for named, other in (("persona", persona.user_id if persona else None), ("history", memory.user_id)):
            if other not in (None, user_id):
                raise InputError(f"{named} of user {other!r}: expected user {user_id!r}")
        twin = self._twin()
        twin.memory, twin._given, twin._user_id = memory, persona, user_id
        twin._drafts = RecentDrafts()
        twin.take_kind(self.kind.for_user([i.response for i in memory.interactions]))
        vars(twin).pop("alignment", None)  # the record of this user's persona, not of that one's
        vars(twin).pop("online", None)
        twin._settle_persona()
        return twin

    def take_kind(self, kind: ResponseKind) -> None:
        """Responses are of this kind, which was decided elsewhere, as over all users of a fleet."""
        self.kind = kind

    def with_persona(self, persona: Persona) -> Self:
        """This program under another persona of the same user; predictors, memory and initial persona are shared."""
        if persona.user_id != self._user_id:
            raise InputError(f"persona of user {persona.user_id!r}: expected user {self._user_id!r}")
        twin = self._twin()
        vars(twin).pop("online", None)  # a service would put the current version in its place
        twin.persona = PersonaParameter(persona, self.persona.initial)
        return twin

    def replaying(self) -> Self:
        """This program as ``dspy.Evaluate`` or one of DSPy's optimizers may run it on the user's own past.

        Called as it is, a program finds a past query in memory, the user's answer beside it. Here a query that memory
        has is answered with memory as it stood before, without any interaction of the same query. ``simulate`` does so
        for a single example; PersonaAlignment needs neither.
        """
        twin = self._twin()
        twin.replays = True
        return twin

    def _twin(self) -> Self:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.history, twin.callbacks = [], list(self.callbacks)
        return twin

    def reset_copy(self) -> Self:
        """DSPy's, for optimizers that start from bare predictors: the persona is the user's, not theirs, and stays."""
        fresh = super().reset_copy()
        fresh.persona.value = self.persona.value
        return fresh

    def examples(self) -> list[dspy.Example]:
        """The user's interactions as DSPy examples, oldest first: a trainset for PersonaAlignment.

        Inputs are the query field and metadata of the same name as other input fields; ``interaction_id`` tells the
        optimizer which moment of the past an example is.
        """
        return [self.example(i) for i in self.memory.interactions]

    def example(self, interaction: Interaction) -> dspy.Example:
        """One interaction as a DSPy example; without the response where the user gave none."""
        fields = self._input_fields()
        others = [n for n in fields if n != self.query_field and n in interaction.metadata]
        values = {name: typed_input(fields[name].annotation, interaction.metadata[name]) for name in others}
        if interaction.signal and interaction.signal.options and (self.takes_options or OPTIONS in fields):
            values[OPTIONS], others = list(interaction.signal.options), [*others, OPTIONS]
        values[self.query_field] = interaction.query
        if interaction.answered:
            values |= self.response_values(interaction.response)
        return dspy.Example(**values, interaction_id=interaction.id).with_inputs(self.query_field, *others)

    def metadata_of(self, example: dspy.Example) -> dict[str, Any]:
        """What ``example`` would read back from an interaction's metadata: the other input fields."""
        own = (self.query_field, *self.response_fields)
        names = [n for n in self._input_fields() if n not in own and example.get(n) is not None]
        return {name: json_safe(example[name]) for name in names}

    def simulate(self, example: dspy.Example, *, exclude: frozenset[str] = frozenset()) -> dspy.Prediction:
        """Answer a past interaction as if it were new: memory as it stood just before, minus ``exclude``.

        An example without ``interaction_id`` sees all of memory but interactions with the same query. A program that
        returns text, a list or None gives a prediction of the response field here.

        Raises:
            InputError: the program's prediction has no response field.
        """
        with answering(cut=self._cut(example, exclude), simulated=True):
            answer = self(**example.inputs())
        self.narrow(answer, example)
        fields = list(answer.keys())
        if self.response_field not in fields:
            raise InputError(
                f"prediction with the fields {fields!r}: expected {self.response_field!r}, the response; name the one "
                f"that is: personalize(program, fields=({self.query_field!r}, {(fields or ['...'])[0]!r}))"
            )
        return answer

    def _cut(self, example: dspy.Example, exclude: frozenset[str]) -> MemoryCut:
        found = example.get("interaction_id")
        position = self.memory.position(found) if found else None
        if position is not None:
            return MemoryCut(before=position, exclude=exclude)
        draft = self.memory.get(found) if found else None
        if draft is not None and draft.time is not None:
            return MemoryCut(before=draft.time, exclude=exclude)
        query = example.get(self.query_field)
        same = {i.id for i in self.memory.interactions if i.query == query}
        return MemoryCut(exclude=exclude | same)

    def observe(
        self,
        query: str,
        response: Any = "",
        *,
        time: datetime | str | None = None,
        id: str = "",
        metadata: Mapping[str, Any] | None = None,
        signal: Signal | Mapping[str, Any] | None = None,
    ) -> Interaction:
        """What the user really answered: remembered at once, for every answer from now on. What a user says of a draft
        is no answer: ``feedback``.

        Where the program is a service's (``Personas.for_user``), it is kept in the store first, and once enough are
        new, alignment is scheduled; this call does not wait for it.

        Args:
            response: as text or as the program's own type; a label in any spelling.
            time: by default now.
            signal: what the user said about a draft that is not at hand as a prediction; beside it, ``response`` may be
                left out.

        Raises:
            InputError: blank, none of the program's declared answers, or its id is taken.
        """
        answer = "" if signal and response in ("", None) else self.kind.response(response)
        if self.outcomes and (outcome := self._drafts.outcome(query)):
            metadata = {**(metadata or {}), OUTCOME: outcome}
        judged = None if signal else self._drafts.judged_in(query, answer, metadata or {})
        said = Interaction(
            user_id=self._user_id,
            query=query,
            response="" if judged else answer,
            time=datetime.now(UTC) if time is None else time,  # type: ignore[arg-type]  # parsed there
            id=id,
            metadata={name: json_safe(value) for name, value in (metadata or {}).items()},
            signal=Signal.of(signal) if signal else judged,
        )
        if said.answered:
            self.kind = self.kind.observing([said.response])
        if self.online is not None:
            self.online.observed(self, said)
        else:
            self.memory.append(said)
        return said

    async def aobserve(self, query: str, response: Any, **options: Any) -> Interaction:
        """``observe`` for asyncio: writing to a store does not hold up the loop."""
        return await asyncio.to_thread(self.observe, query, response, **options)

    def asked(self) -> str:
        """What the program is asked, in words, for an LM that reflects on its answers."""
        return described(self._asked_signature(), self.query_field, self.response_field, self.kind, self._outputs())

    def _asked_signature(self) -> Any:
        """The signature that asks for the response."""
        raise NotImplementedError

    def inputs_taken(self) -> list[str]:
        """The names of the program's inputs."""
        return list(self._input_fields())

    def _input_fields(self) -> dict[str, Any]:
        """The inputs' fields by name."""
        raise NotImplementedError

    def _field_names(self) -> list[str]:
        """Inputs and outputs, of which an interaction's metadata may hold those beside query and response."""
        raise NotImplementedError

    def _has_tools(self) -> bool:
        """Whether an answer may call tools, so that the trace has to listen."""
        raise NotImplementedError

    def lm_name(self) -> str | None:
        """The model that answers, as ``resolve_lm`` takes it; None where none is configured."""
        return lm_name(self._lm())

    def _lm(self) -> Any:
        return dspy.settings.get("lm") or next((p.lm for p in self.predictors() if p.lm), None)

    def own_lm(self) -> Any:
        """The LM that the program's predictors were given, else the configured one; None where there is none."""
        return next((p.lm for p in self.predictors() if p.lm), None) or dspy.settings.get("lm")

    def _turns(self, episodes: Sequence[Episode]) -> list[Turn]:
        """Episodes as past turns: oldest first, or, for a small LM, with the nearest last."""
        answer = current_answer()
        tokens = self.turn_tokens or answer.sizes.turn
        nearest_last = answer.steering.nearest_last
        order = list(reversed(episodes)) if nearest_last else sorted(episodes, key=lambda e: e.position)
        inputs = self._input_fields()
        return [
            {
                **{
                    name: shown_input(getattr(inputs.get(name), "annotation", None), value, tokens=tokens)
                    for name in self._field_names()
                    if (value := e.interaction.metadata.get(name)) is not None
                },
                **self._options(e.interaction),
                self.query_field: clip_tokens(e.interaction.query, tokens) + self._offer(e.interaction),
                **_bounded(self.response_shown(e.interaction.response), _LONGER * tokens),
            }
            for e in order
        ]

    def _options(self, interaction: Interaction) -> dict[str, Any]:
        """What could be chosen, where that is an input."""
        signal = interaction.signal
        return {OPTIONS: list(signal.options)} if signal and signal.options and OPTIONS in self._input_fields() else {}

    def _offer(self, interaction: Interaction) -> str:
        """What could be chosen, where that is no input: a line after the query."""
        shown = "" if OPTIONS in self._input_fields() else shown_options(interaction)
        return f"\n{shown}" if shown else ""

    def _as_new(self, query: str) -> MemoryCut:
        places = [(n, i.id) for n, i in enumerate(self.memory.interactions) if i.query == query]
        return MemoryCut(before=places[-1][0], exclude=frozenset(i for _, i in places)) if places else MemoryCut()

    @contextmanager
    def _answering(self, query: str) -> Generator[Answering]:
        """The context in which every predictor, tool and retriever inside works for this user."""
        persona = self.persona.value  # read once: another version may take its place while this answer is given
        cut, lm = current_answer().cut, self._lm()
        if self.replays and cut is None:
            cut = self._as_new(query)
        tag_trace(self._user_id)
        with (
            recording(tools=self._has_tools(), fields=self.response_fields),
            answering(
                user_id=self._user_id,
                persona=persona,
                prompt=persona.render(),
                memory=self.memory,
                cut=cut,
                kind=self.kind,
                sizes=self.sizes or Sizes.of(lm),
                steering=self.steering or Steering.of(lm),
                delivery=Delivery(simulated=current_answer().simulated),
                simulated=False,  # programs inside answer as ever
            ) as answer,
        ):
            yield answer

    def _traced(self, answer_given: Any, answer: Answering, query: str, inputs: Mapping[str, Any]) -> Any:
        """What the program returned; a prediction with its trace.

        Raises:
            InputError: the persona was in no request.
        """
        recorder, persona, delivery = answer.recorder, answer.persona, answer.delivery
        assert recorder is not None and persona is not None and delivery is not None
        if answer.prompt and not delivery.requests:
            raise InputError(
                f"answer for user {self._user_id!r}: no LM call carried the persona. It reaches DSPy's predictors by "
                "dspy.context: start threads inside forward with dspy.Parallel (or contextvars.copy_context().run), "
                "give an adapter of your own to personalize(program, adapter=...) instead of setting it in forward, "
                "and call LMs by predictors; what the program answers without an LM, ask it without a persona"
            )
        trace = Trace(
            user_id=self._user_id,
            query=query,
            persona_version=persona.version,
            persona=answer.prompt,
            steps=tuple(sorted(recorder.steps, key=lambda step: step.at)),
            calls=tuple(sorted(recorder.calls, key=lambda call: call.at)),
            response=self.given_in(answer_given, recorder.outputs),
            started=recorder.started,
            seconds=round(recorder.now, 6),
            inputs=other_inputs(inputs, [n for n in (*self._input_fields(), OPTIONS) if n != self.query_field]),
        )
        if answer.cut is None and not delivery.simulated and trace.response.strip():
            if self.online is None:
                self._drafts.add(draft_of(trace), looked_up(trace))
            else:
                self.online.drafted(draft_of(trace), dspy.settings.get("persona_since"))
        send = dspy.settings.get("persona_traces")
        if send is not None and (send.simulated or answer.cut is None):
            send(trace)
        if type(answer_given) is dspy.Prediction:
            return PersonaPrediction.of(answer_given, trace)
        if isinstance(answer_given, dspy.Prediction):  # of a class of the user's own
            vars(answer_given)["_trace"] = trace
        elif delivery.simulated:
            return PersonaPrediction.of(as_prediction(answer_given, self.response_fields[0]), trace)
        return answer_given

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        vars(twin).update(self.__getstate__(), history=[], callbacks=[])
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        state = {name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()}
        vars(twin).update(state, history=[], callbacks=[])
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without what is this process's or nobody else's business: the memory, keys of LMs, locks."""
        return pickled(self)


def _bounded(answer: Turn, tokens: int) -> Turn:
    """An answer whose texts are kept to ``tokens`` by their middles: what fits is not cut."""
    return {name: clip_middle(value, tokens) if type(value) is str else value for name, value in answer.items()}
