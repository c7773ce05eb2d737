"""PersonaPrediction: an answer that can say how it came about; and answers of programs that return no prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from persona_dspy.agent.trace import Trace
from persona_dspy.core import answer_text
from persona_dspy.errors import InputError

__all__ = ["PersonaPrediction", "as_prediction", "response_text", "trace_of"]


class PersonaPrediction(dspy.Prediction):
    """A prediction that can say how it came about: ``.trace``, a ``Trace``; not one of its output fields.

    Where the program has an output named ``trace``, that is ``.trace``; ``trace_of(prediction)`` is always a ``Trace``.

    Example:
        >>> trace = Trace(user_id="u1", query="A heist.", persona_version=1, persona="Likes comedies.")
        >>> prediction = PersonaPrediction.of(dspy.Prediction(tag="comedy"), trace)
        >>> prediction.tag, prediction.trace.query, prediction.keys()
        ('comedy', 'A heist.', ['tag'])
    """

    _trace: Trace | None = None

    @property
    def trace(self) -> Any:
        return self["trace"] if "trace" in self else trace_of(self)

    @trace.setter
    def trace(self, value: Any) -> None:
        self["trace"] = value

    @classmethod
    def of(cls, prediction: dspy.Prediction, trace: Trace) -> PersonaPrediction:
        made = cls()
        vars(made).update(vars(prediction))
        vars(made)["_trace"] = trace
        return made


def trace_of(prediction: Any) -> Trace:
    """How an answer of a PersonaAgent or of a personalized program came about.

    Raises:
        InputError: it is none, or no prediction; a program that returns text has its traces sent
            (``MlflowTracker.tracing()``).
    """
    trace = getattr(prediction, "__dict__", {}).get("_trace")
    if not isinstance(trace, Trace):
        raise InputError(f"trace of {type(prediction).__name__}: expected a prediction of a PersonaAgent; it has none")
    return trace


def response_text(answer: Any, field: str) -> str:
    """The response in whatever a program returned, as text."""
    if isinstance(answer, dspy.Prediction | Mapping):
        return answer_text(answer.get(field, ""))
    return "" if answer is None else answer_text(answer)


def as_prediction(answer: Any, field: str) -> dspy.Prediction:
    """What a program returned beside a prediction as one: a dictionary's items, or the response alone.

    Example:
        >>> as_prediction("fine", "answer").answer, as_prediction({"answer": "fine", "why": "so"}, "answer").why
        ('fine', 'so')
    """
    return dspy.Prediction(**(dict(answer) if isinstance(answer, Mapping) and field in answer else {field: answer}))
