"""In whose name the running code answers: one value under one key of ``dspy.context``.

Programs, tools and retrievers are shared between users, so nothing of a user may stand in them. Whatever an answer
needs to know of its user travels in ``Answering``; DSPy carries it to threads and tasks that copy the context.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dspy

from persona_dspy.agent.recorder import Recorder
from persona_dspy.agent.steering import Steering
from persona_dspy.core import Persona, ResponseKind
from persona_dspy.lm import Sizes, call_listeners, listening
from persona_dspy.memory import EpisodicMemory, MemoryCut

__all__ = ["Answering", "Delivery", "Turn", "answering", "current_answer", "recording"]

Turn = Mapping[str, Any]  # field name -> value, one past query and the user's own response


_SMALL, _OFF = Sizes.small(), Steering.off()


class Delivery:
    """Counts the requests of one answer that had the persona in their system message; shared by its threads.
    ``simulated``: the answer is asked for by an optimizer, as a prediction with a trace."""

    def __init__(self, *, simulated: bool = False) -> None:
        self.requests, self.simulated = 0, simulated

    def __deepcopy__(self, memo: dict[int, Any]) -> Delivery:
        return self  # an account of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """One answer being given.

    Args:
        user_id: whose answer; None outside of any.
        persona: the version that it is given under, from beginning to end.
        prompt: the text that goes into every system message, to the letter; empty = none.
        turns: past turns shown before the query, nearest last.
        memory: the user's; None = nothing is recalled.
        cut: what of the memory may be seen; None where no past interaction is replayed.
        kind: what kind of response is asked for.
        sizes: how much is shown.
        steering: what of the persona acts beside its text.
        recorder: who listens to calls and tools.
        delivery: counts the requests that ``prompt`` went into.
        simulated: the next program asked answers for an optimizer.
    """

    user_id: str | None = None
    persona: Persona | None = None
    prompt: str = ""
    turns: tuple[Turn, ...] = ()
    memory: EpisodicMemory | None = None
    cut: MemoryCut | None = None
    kind: ResponseKind | None = None
    sizes: Sizes = _SMALL
    steering: Steering = _OFF
    recorder: Recorder | None = None
    delivery: Delivery | None = None
    simulated: bool = False


_NOBODY = Answering()


def current_answer() -> Answering:
    """The answer being given; one without user, persona and memory where none is.

    Example:
        >>> with answering(user_id="u1"):
        ...     current_answer().user_id
        'u1'
    """
    return dspy.settings.get("persona_answering") or _NOBODY


@contextmanager
def answering(*, afresh: bool = False, **changes: Any) -> Generator[Answering]:
    """The current answer with ``changes`` inside; ``afresh``: of a new one, nothing of the current reaches it."""
    value = replace(_NOBODY if afresh else current_answer(), **changes)
    with dspy.context(persona_answering=value):
        yield value


@contextmanager
def recording(*, tools: bool = True, fields: Sequence[str] = ()) -> Generator[Recorder]:
    """Record what happens inside; in this thread, and in those that copy its context.

    Args:
        tools: tools may be called; listening to them slows every module's call (DSPy's callbacks).
        fields: outputs of inner predictors that are kept too, where ``tools``.
    """
    recorder = Recorder(fields)
    others = [listener for listener in call_listeners() if not isinstance(listener, Recorder)]  # an answer has its own
    metered = True if tools and dspy.settings.get("persona_calls") is None else None
    tracker = dspy.settings.get("usage_tracker")
    with answering(recorder=recorder), listening(recorder, *others, tracker=tracker, callbacks=metered):
        if not tools:
            yield recorder
            return
        with dspy.context(callbacks=[*(dspy.settings.get("callbacks") or []), recorder]):
            yield recorder
