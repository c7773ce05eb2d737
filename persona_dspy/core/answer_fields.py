"""Answers of several fields, such as a label beside a reply: one JSON object, in which a field may be missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from persona_dspy.core.answer_types import answer_text
from persona_dspy.core.answers import ResponseKind
from persona_dspy.errors import InputError

__all__ = ["FieldsKind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldsKind(ResponseKind):
    """The kind of a response that has several fields, each with a kind of its own.

    A response is an object of the values that the user gave, which may be some of the fields only; a text that is no
    such object is the value of the first field. Whatever is compared is compared field by field.

    Example:
        >>> label, reply = ResponseKind(name="label", labels=("order", "return")), ResponseKind(name="text")
        >>> kind = FieldsKind.of_kinds({"reply": reply, "label": label})
        >>> kind.read({"label": "Return.", "reply": "It is on its way."})
        '{"reply": "It is on its way.", "label": "return"}'
        >>> kind.score('{"label": "order"}', {"reply": "Sorry!", "label": "Order"})
        1.0
    """

    fields: tuple[tuple[str, ResponseKind], ...] = ()

    @classmethod
    def of_kinds(cls, kinds: Mapping[str, ResponseKind]) -> Self:
        """The kind of responses with these fields, in this order."""
        return cls(name="text", annotation=dict, fields=tuple(kinds.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """The fields' names, the first of which a response without names belongs to."""
        return tuple(name for name, _ in self.fields)

    @property
    def is_free(self) -> bool:
        return False

    @property
    def needs_judge(self) -> bool:
        return any(kind.needs_judge for _, kind in self.fields)

    @property
    def expected(self) -> str:
        each = "; ".join(f"{name}: {'any text' if kind.is_free else kind.expected}" for name, kind in self.fields)
        return f"values by name ({each}), such as {json.dumps({self.names[-1]: '...'})}"

    def values(self, value: Any) -> dict[str, Any]:
        """The values in a response by the names of their fields, in the fields' order, as they are.

        Raises:
            InputError: an object with other names; the message has them.
        """
        named = isinstance(value, Mapping)
        given: Any = value if named else _object(answer_text(value))
        if given is None or (not named and not set(given) <= set(self.names)):
            given = {self.names[0]: value}
        unknown = [name for name in given if name not in self.names]
        if unknown:
            raise InputError(f"response with {unknown!r}: expected only the fields {', '.join(self.names)}")
        return {name: given[name] for name in self.names if given.get(name) is not None and given[name] != ""}

    def read(self, value: Any) -> str | None:
        try:
            given = self.values(value)
        except InputError:
            return None
        answers = {name: kind.read(given[name]) for name, kind in self.fields if name in given}
        return json.dumps(answers, ensure_ascii=False) if answers and None not in answers.values() else None

    def response(self, value: Any) -> str:
        if isinstance(value, str) and not value.strip():
            return value
        answers: dict[str, str] = {}
        given, kinds = self.values(value), dict(self.fields)
        for name, one in given.items():
            try:
                answers[name] = kinds[name].response(one)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        if not any(text.strip() for text in answers.values()):
            raise InputError(f"response {value!r}: expected {self.expected}")
        return json.dumps(answers, ensure_ascii=False)

    def score(self, gold: Any, answer: Any) -> float:
        """The mean over the fields that ``gold`` has."""
        wanted, given = self.values(gold), self._read_values(answer)
        kinds = dict(self.fields)
        each = [kinds[name].score(value, given.get(name, "")) for name, value in wanted.items()]
        return sum(each) / len(each) if each else 0.0

    def typed(self, response: Any) -> Any:
        """By name of the field, as the program's own types."""
        kinds = dict(self.fields)
        return {name: kinds[name].typed(answer_text(value)) for name, value in self._read_values(response).items()}

    def shown(self, response: Any) -> Any:
        kinds = dict(self.fields)
        return {name: kinds[name].shown(answer_text(value)) for name, value in self._read_values(response).items()}

    def beside(self, answer: str, gold: str) -> str:
        wanted = self.values(gold) if gold.strip() else {}
        given = self._read_values(answer)
        return answer_text({name: given.get(name, "") for name in wanted}) if wanted else answer

    def merged(self, earlier: str, later: str) -> str:
        """A response with what was given later in its fields.

        Example:
            >>> kind = FieldsKind.of_kinds(dict.fromkeys(("reply", "label"), ResponseKind(name="text")))
            >>> kind.merged('{"label": "order"}', '{"reply": "Here it is."}')
            '{"reply": "Here it is.", "label": "order"}'
        """
        values = (self._read_values(earlier) if earlier.strip() else {}) | self.values(later)
        return answer_text({name: values[name] for name in self.names if name in values})

    def for_user(self, responses: Iterable[Any]) -> Self:
        columns = self.columns(responses)
        return replace(self, fields=tuple((name, kind.for_user(columns[name])) for name, kind in self.fields))

    def observing(self, responses: Iterable[Any]) -> Self:
        columns = self.columns(responses)
        return replace(self, fields=tuple((name, kind.observing(columns[name])) for name, kind in self.fields))

    def anew(self, responses: Iterable[Any]) -> Self:
        columns = self.columns(responses)
        return replace(self, fields=tuple((name, kind.anew(columns[name])) for name, kind in self.fields))

    def columns(self, responses: Iterable[Any]) -> dict[str, Sequence[str]]:
        """What was answered in each field."""
        rows = [self._read_values(response) for response in responses]
        return {name: [answer_text(row[name]) for row in rows if name in row] for name in self.names}

    def _read_values(self, value: Any) -> dict[str, Any]:
        """``values`` of what may be no response at all: then those that have a field's name."""
        try:
            return self.values(value)
        except InputError:
            return self.values({name: one for name, one in dict(value).items() if name in self.names})


def _object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found else None
