"""What kind of answer a program gives: one of some labels, a rating, or text; how it is read, scored and typed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal, Self, get_args, get_origin, is_typeddict

from pydantic import BaseModel, PydanticUserError, ValidationError

from persona_dspy.core.answer_types import (
    SEQUENCES,
    adapter_of,
    answer_text,
    is_many,
    is_optional,
    is_subclass,
    unwrapped,
)
from persona_dspy.core.metrics import closeness, text_overlap
from persona_dspy.core.scales import Scale, declared_scale, number_of, observed_scale, written
from persona_dspy.core.spelling import LONG_LABEL, bare, match_label, own_labels, spellings, truth
from persona_dspy.errors import InputError

__all__ = ["FREE_TEXT", "LONG_LABEL", "MANY_LABELS", "ResponseKind", "own_labels"]

FREE_TEXT = "any text"
"""In a field's metadata: its ``str`` is text whatever people answered (``Annotated[str, FREE_TEXT]``)."""

_POSITION = re.compile(r"[(\[]\s?(?:\d{1,2}|[A-Za-z])\s?[)\]]")
MANY_LABELS = 20
_TIMES = (date, datetime, time)
_NOTHING = {"none", "null", "nothing", "n/a"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseKind:
    """The type of a program's response field, as the optimizer and the memory need it.

    The declared type decides; where it is only ``str`` or a bare number, what people answered does (``of_values``).

    ``label``: one of ``labels``, which may be unknown (). ``rating``: a number in ``[low, high]`` (labels hold its
    steps where they can be named), in steps of ``step``. ``text``: anything, lists and objects included. ``grows``:
    labels or scale are what was observed, and others may come. ``decided``: False for a bare number of which no answer
    was seen yet: the first ones decide whether it is a rating.

    Example:
        >>> ResponseKind.of(Literal["1", "2", "3"]).name
        'rating'
        >>> ResponseKind.of(Literal["comedy", "drama"]).score("drama", "Comedy")
        0.0
        >>> ResponseKind.of(Literal["comedy", "drama"]).read("Drama.")
        'drama'
    """

    name: Literal["label", "rating", "text"]
    labels: tuple[str, ...] = ()
    low: float = 1.0
    high: float = 5.0
    step: float | None = None
    annotation: Any = str
    grows: bool = False
    decided: bool = True

    @classmethod
    def of(
        cls,
        annotation: Any,
        responses: Iterable[str] = (),
        bounds: Sequence[Any] = (),
        *,
        total: int | None = None,
    ) -> ResponseKind:
        """The kind of a response field.

        Args:
            annotation: the field's type; ``Annotated`` and ``Optional`` are looked through.
            responses: what was answered so far: the scale of a bare number, the kind of a bare ``str``.
            bounds: pydantic's constraints of the field (``field.metadata``): ``ge`` and ``le`` are a scale.
            total: how many numbers were answered, where ``responses`` has each but once.

        Example:
            >>> ResponseKind.of(int, ["4000", "4001", "9000", "4000"]).name
            'label'
        """
        plain, bounds = unwrapped(annotation, bounds)
        seen = [text for text in map(answer_text, responses) if text.strip()]
        if get_origin(plain) is Literal:
            values = tuple(answer_text(value) for value in get_args(plain) if value is not None)
            return _of_labels(values, annotation)
        if is_subclass(plain, Enum):
            return _of_enum(plain, seen, annotation)
        if plain is bool:
            return cls(name="label", labels=("True", "False"), annotation=annotation)
        if plain in (int, float, Decimal):
            return _of_number(plain, seen, bounds, annotation, total)
        if plain in _TIMES:
            return cls(name="label", annotation=annotation, grows=True)
        if plain is str and FREE_TEXT not in bounds:
            return replace(cls.of_values(seen), annotation=annotation)
        return cls(name="text", annotation=annotation)

    @classmethod
    def of_field(cls, field: Any, responses: Iterable[str] = ()) -> ResponseKind:
        """``of`` for a field of a signature, with its bounds."""
        return cls.of(field.annotation, responses, field.metadata)

    @classmethod
    def of_values(cls, responses: Iterable[str]) -> ResponseKind:
        """The kind of answers of which no type is known.

        Numbers on a scale (1 to 5, halves, 0 to 100) are a rating. Otherwise 1 to 20 distinct short answers, at most
        half as many as answers, are labels, codes and years among them. Otherwise text.

        Example:
            >>> [ResponseKind.of_values(r * 3).name for r in (["2", "5"], ["yes", "No"], ["1994", "2001"])]
            ['rating', 'label', 'label']
        """
        texts = [text.strip() for text in responses]
        if scale := observed_scale(texts):
            return cls(name="rating", labels=scale.steps, low=scale.low, high=scale.high, step=scale.step, grows=True)
        answers = set(spellings(texts).values())
        few = 1 <= len(answers) <= MANY_LABELS and 2 * len(answers) <= len(texts)
        if few and len(labels := own_labels(texts)) == len(answers):
            return cls(name="label", labels=labels, grows=True)
        return cls(name="text")

    @property
    def positional(self) -> bool:
        """Labels only point at a place, such as "[1]" or "(b)": which was given says nothing of the user."""
        return bool(self.labels) and all(_POSITION.fullmatch(label) for label in self.labels)

    @property
    def is_free(self) -> bool:
        """Any text is an answer as it is."""
        return self.name == "text" and unwrapped(self.annotation)[0] is str

    @property
    def needs_judge(self) -> bool:
        """Whether how near an answer comes is better judged by reading it than by a score."""
        return self.name == "text"

    def beside(self, answer: str, gold: str) -> str:
        """The part of an answer that ``gold`` is an answer to: all of it."""
        return answer

    def anew(self, responses: Iterable[Any]) -> ResponseKind:
        """The kind of the same declared type, with what was answered so far."""
        return ResponseKind.of(self.annotation, map(answer_text, responses))

    def for_user(self, responses: Iterable[Any]) -> Self:
        """The same kind for another user's answers: never another kind, and no label of somebody else's. Of a kind that
        nothing has decided yet, these answers decide."""
        if not self.grows or (self.name == "label" and not self.labels):
            return self
        if self.name == "label":
            return replace(self, labels=own_labels([answer_text(value) for value in responses]))
        return self.observing(responses)

    def observing(self, responses: Iterable[Any]) -> Self:
        """The kind with these answers too, where what was observed is all that is known of labels or scale."""
        texts = [text for value in responses if (text := answer_text(value).strip())] if self.grows else []
        if not texts:
            return self
        if not self.decided:
            return type(self).of(self.annotation, texts)  # type: ignore[return-value]
        if self.name == "label" and self.labels:
            added = [t for t in own_labels(texts) if match_label(t, self.labels) is None]
            return replace(self, labels=tuple(sorted((*self.labels, *added)))) if added else self
        if self.name == "rating":
            numbers = [n for text in texts if (n := number_of(text)) is not None]
            scale = Scale(low=self.low, high=self.high).holding(numbers)
            if (scale.low, scale.high) != (self.low, self.high):
                return replace(self, low=scale.low, high=scale.high, labels=())
        return self

    def read(self, value: Any) -> str | None:
        """An answer as this kind writes it; None where it is none of its answers.

        Example:
            >>> ResponseKind.of(bool).read("thumbs up"), ResponseKind.of(Literal["a", "b"]).read("c")
            ('True', None)
        """
        text = answer_text(value).strip()
        if not text:
            return None
        if value is None or (is_optional(self.annotation) and text.casefold() in _NOTHING and text not in self.labels):
            return "None" if is_optional(self.annotation) else None
        if self.name == "rating":
            return self._rating(text)
        plain = unwrapped(self.annotation)[0]
        if self.name == "text":
            return text if plain is str or self._typed(plain, text) is not None else None
        if plain is bool:
            meant = truth(text)
            return None if meant is None else str(meant)
        if is_subclass(plain, Enum):
            return match_label(text, self.labels) or self._label_of_other_name(plain, text)
        if plain is int and (number := number_of(text)) is not None:
            return written(number) if number.is_integer() else None
        if plain in _TIMES:
            return None if self._typed(plain, text) is None else text
        return match_label(text, self.labels) or (text if self.grows or not self.labels else None)

    def response(self, value: Any) -> str:
        """``read`` for what a user answered.

        Raises:
            InputError: it is none of the declared answers; the message names it and them.
        """
        text = answer_text(value)
        if self.is_free or not text.strip():
            return text
        answer = self.read(value)
        if answer is None:
            raise InputError(f"response {value!r}: expected {self.expected}")
        return answer

    @property
    def expected(self) -> str:
        """What an answer may be, for messages."""
        plain = unwrapped(self.annotation)[0]
        if plain is bool:
            return "yes or no, such as 'true', 'no', '1' or 'dislike'"
        if self.name == "label" and self.labels:
            return f"one of {', '.join(self.labels)} (case, space and marks around it do not matter)"
        if self.name == "rating":
            whole = "a whole number" if plain is int else "a number"
            return f"one of {', '.join(self.labels)}" if self.labels else f"{whole} from {self.low:g} to {self.high:g}"
        return f"what {getattr(plain, '__name__', plain)} can be read from, such as JSON"

    def _rating(self, text: str) -> str | None:
        number = number_of(text) if number_of(text) is not None else number_of(bare(text))
        plain = unwrapped(self.annotation)[0]
        if number is None:
            name = match_label(text, list(plain.__members__)) if is_subclass(plain, Enum) else None
            return match_label(text, self.labels) if name is None else answer_text(plain[name])
        whole = plain is int
        if self.labels and not self.grows:
            return next((label for label in self.labels if number_of(label) == number), None)
        if (whole and not number.is_integer()) or (not self.grows and not self.low <= number <= self.high):
            return None
        return written(number)

    @staticmethod
    def _label_of_other_name(plain: type[Enum], text: str) -> str | None:
        """Members of an Enum are known by value and by name."""
        by_name = match_label(text, list(plain.__members__))
        by_value = match_label(text, [answer_text(member) for member in plain])
        if by_name is not None:
            return answer_text(plain[by_name]) if _by_value(plain) else by_name
        if by_value is None:
            return None
        return next(member.name for member in plain if answer_text(member) == by_value)

    def score(self, gold: Any, answer: Any) -> float:
        """How near ``answer`` is to the user's own, in [0, 1], higher is better; what is no answer at all scores 0.

        Labels and dates: equal or not. Ratings: closeness on the scale. Text: ROUGE-L. Lists: F1 of their items, in
        any order. Objects: the mean over their fields.
        """
        if self.name == "rating" and (gold_text := self.read(gold)) is not None:
            number = number_of(gold_text)
            if number is not None:
                ends = (min(self.low, number), max(self.high, number)) if self.grows else (self.low, self.high)
                return closeness(gold_text, self.read(answer) or "", *ends)
        if self.name == "text":
            return _text_score(unwrapped(self.annotation)[0], gold, answer)
        given, wanted = self.read(answer), self.read(gold)
        if given is None or wanted is None:
            given, wanted = answer_text(answer), answer_text(gold)
        return float(bool(bare(given)) and bare(given) == bare(wanted))

    def typed(self, response: str) -> Any:
        """A response as the program's own type, so that past turns and examples look like its answers; the text itself
        where it cannot be read as one."""
        plain = unwrapped(self.annotation)[0]
        text = self.read(response)
        if text is None:
            return response
        if text == "None" and is_optional(self.annotation) and text not in self.labels:
            return None
        if plain is str:
            return response if self.name == "text" else text
        value = self._typed(plain, text)
        return response if value is None else value

    def shown(self, response: str) -> Any:
        """``typed`` as a past turn shows it: DSPy's adapters read members of an Enum of numbers by name alone."""
        value = self.typed(response)
        return value.name if isinstance(value, Enum) and not isinstance(value.value, str) else value

    def _typed(self, plain: Any, text: str) -> Any:
        if get_origin(plain) is Literal:
            return next((value for value in get_args(plain) if answer_text(value) == text), None)
        if is_subclass(plain, Enum):
            return next((m for m in plain if text in (answer_text(m), m.name)), None)
        if plain is bool:
            return truth(text)
        if plain in (int, float, Decimal):
            number = number_of(text)
            return None if number is None else plain(number)
        if is_many(plain):
            return _items(plain, text)
        try:
            return adapter_of(plain).validate_json(text)
        except ValidationError:
            try:
                return adapter_of(plain).validate_python(text)
            except ValidationError:
                return None
        except PydanticUserError:  # a type that pydantic knows nothing of is answered by text
            return text


def _of_labels(values: tuple[str, ...], annotation: Any) -> ResponseKind:
    if scale := declared_scale(values):
        return ResponseKind(
            name="rating", labels=values, low=scale.low, high=scale.high, step=scale.step, annotation=annotation
        )
    return ResponseKind(name="label", labels=values, annotation=annotation)


def _of_enum(plain: type[Enum], seen: Sequence[str], annotation: Any) -> ResponseKind:
    """By value; by name where values are numbers that mean nothing (``auto()``), unless people answer by number."""
    numbered = seen and all(number_of(text) is not None for text in seen)
    if _by_value(plain) or numbered:
        return _of_labels(tuple(answer_text(member) for member in plain), annotation)
    return ResponseKind(name="label", labels=tuple(member.name for member in plain), annotation=annotation)


def _by_value(plain: type[Enum]) -> bool:
    return issubclass(plain, IntEnum) or all(isinstance(member.value, str) for member in plain)


def _of_number(
    plain: Any, seen: Sequence[str], bounds: Sequence[Any], annotation: Any, total: int | None = None
) -> ResponseKind:
    low = next((float(v) for b in bounds if (v := getattr(b, "ge", getattr(b, "gt", None))) is not None), None)
    high = next((float(v) for b in bounds if (v := getattr(b, "le", getattr(b, "lt", None))) is not None), None)
    if low is not None and high is not None:
        return ResponseKind(name="rating", low=low, high=high, annotation=annotation)
    numbers = [n for text in seen if (n := number_of(text)) is not None]
    scale = observed_scale([written(n) for n in numbers], total)
    if scale is None and plain is int and numbers and not set(numbers) <= {0.0, 1.0}:
        return ResponseKind(name="label", annotation=annotation, grows=True)
    scale = (scale or Scale(low=1.0, high=5.0)).holding([n for n in (*numbers, low, high) if n is not None])
    observed: dict[str, Any] = {"annotation": annotation, "grows": True, "decided": bool(numbers)}
    return ResponseKind(name="rating", low=scale.low, high=scale.high, **observed)


def _items(plain: Any, text: str) -> Any:
    """A list out of JSON, or out of items with commas, semicolons or lines between; None where an item is none."""
    try:
        found = json.loads(text)
        items = found if isinstance(found, list) else [found]
    except ValueError:
        parts = text.splitlines() if "\n" in text.strip() else re.split(r"[;,]", text)
        items = [part.strip().removeprefix("- ") for part in parts if part.strip()]
    kind = _item_kind(plain)
    values = [kind.typed(answer_text(item)) if kind is not None and isinstance(item, str) else item for item in items]
    try:
        return adapter_of(plain).validate_python(values)
    except ValidationError:
        return None


def _item_kind(plain: Any) -> ResponseKind | None:
    arguments = [a for a in get_args(plain) if a is not Ellipsis]
    return ResponseKind.of(arguments[0]) if arguments else ResponseKind(name="text")


def _text_score(plain: Any, gold: Any, answer: Any) -> float:
    if is_many(plain):
        items = [
            value if isinstance(value, SEQUENCES) else _items(plain, answer_text(value)) for value in (gold, answer)
        ]
        if all(item is not None for item in items):
            return _items_score(*([bare(answer_text(i)) for i in item] for item in items))
    if (
        is_subclass(plain, BaseModel)
        or is_typeddict(plain)
        or is_dataclass(plain)
        or (get_origin(plain) or plain) is dict
    ):
        objects = [_object(value) for value in (gold, answer)]
        if objects[0] and objects[1] is not None:
            hints = getattr(plain, "__annotations__", {})
            kinds = {
                name: ResponseKind.of(hints.get(name, str) if not isinstance(hints.get(name), str) else str)
                for name in objects[0]
            }
            each = [kinds[name].score(value, objects[1].get(name, "")) for name, value in objects[0].items()]
            return sum(each) / len(each)
    return text_overlap(answer_text(gold), "" if answer is None else answer_text(answer))


def _items_score(gold: list[str], answer: list[str]) -> float:
    if not gold or not answer:
        return float(gold == answer)
    common = (Counter(gold) & Counter(answer)).total()
    return 2 * common / (len(gold) + len(answer))


def _object(value: Any) -> dict[str, Any] | None:
    try:
        found = json.loads(answer_text(value))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
