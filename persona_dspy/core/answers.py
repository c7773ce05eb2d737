"""What kind of answer a program gives: one of some labels, a rating, or text; how it is scored and typed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from persona_dspy.core.metrics import closeness, exact_match, parse_number, text_overlap

__all__ = ["ResponseKind"]

_POSITION = re.compile(r"[(\[]\s?(?:\d{1,2}|[A-Za-z])\s?[)\]]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseKind:
    """The type of a program's response field, as the optimizer and the memory need it.

    ``label``: one of ``labels``. ``rating``: a number in ``[low, high]`` (labels hold its steps where it has steps).
    ``text``: anything.

    Example:
        >>> ResponseKind.of(Literal["1", "2", "3"]).name
        'rating'
        >>> ResponseKind.of(Literal["comedy", "drama"]).score("drama", "comedy")
        0.0
    """

    name: Literal["label", "rating", "text"]
    labels: tuple[str, ...] = ()
    low: float = 1.0
    high: float = 5.0
    annotation: Any = str

    @classmethod
    def of(cls, annotation: Any, responses: Iterable[str] = ()) -> ResponseKind:
        """The kind of a response field's type annotation; ``responses`` give the range of a bare ``int``/``float``."""
        if get_origin(annotation) is Literal:
            labels = tuple(str(value) for value in get_args(annotation))
            numbers = _numbers(labels)
            if len(numbers) == len(labels) >= 3:
                return cls(name="rating", labels=labels, low=min(numbers), high=max(numbers), annotation=annotation)
            return cls(name="label", labels=labels, annotation=annotation)
        if annotation is bool:
            return cls(name="label", labels=("True", "False"), annotation=annotation)
        if annotation in (int, float):
            numbers = [1.0, 5.0, *_numbers(responses)]  # a user who only ever gave 4 still rates on a scale
            return cls(name="rating", low=min(numbers), high=max(numbers), annotation=annotation)
        return cls(name="text", annotation=annotation)

    @property
    def positional(self) -> bool:
        """Labels only point at a place, such as "[1]" or "(b)": which was given says nothing of the user."""
        return bool(self.labels) and all(_POSITION.fullmatch(label) for label in self.labels)

    def score(self, gold: Any, answer: Any) -> float:
        """How near ``answer`` is to the user's own, in [0, 1], higher is better; an unparsable rating scores 0."""
        if self.name == "label":
            return exact_match(str(gold), str(answer))
        if self.name == "rating":
            return closeness(str(gold), str(answer), self.low, self.high)
        return text_overlap(str(gold), str(answer))

    def typed(self, response: str) -> Any:
        """A response as the program's own type, so that past turns and examples look like its answers."""
        if get_origin(self.annotation) is Literal:
            return next((v for v in get_args(self.annotation) if str(v) == response), response)
        if self.annotation is bool:
            return response.strip().lower() == "true"
        if self.annotation in (int, float):
            numbers = _numbers([response])
            return self.annotation(numbers[0]) if numbers else response
        return response


def _numbers(texts: Iterable[str]) -> list[float]:
    return [number for text in texts if (number := parse_number(text)) is not None]
