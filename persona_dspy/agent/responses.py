"""A program's response, in one field of what it returns or in several: as text, in examples, in predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy

from persona_dspy.agent.prediction import response_text, trace_of
from persona_dspy.core import FieldsKind, Interaction, ResponseKind, answer_text
from persona_dspy.errors import InputError

__all__ = ["Responses", "joint_kind", "joint_name", "outputs_of", "respelled"]


def joint_name(names: Sequence[str]) -> str:
    """The name that the responses of several fields have together, in examples and simulated predictions.

    Example:
        >>> joint_name(["reply"]), joint_name(["reply", "label"])
        ('reply', 'reply, label')
    """
    return ", ".join(names)


def joint_kind(fields: Mapping[str, Any], responses: Iterable[str]) -> ResponseKind:
    """The kind of a program's responses.

    Args:
        fields: the response fields of its signatures by name; None for one that the program's own code writes.
        responses: what was answered so far.
    """
    responses = list(responses)
    if len(fields) == 1:
        return _kind_of(next(iter(fields.values())), responses)
    columns = FieldsKind.of_kinds(dict.fromkeys(fields, ResponseKind(name="text"))).columns(responses)
    return FieldsKind.of_kinds({name: _kind_of(field, columns[name]) for name, field in fields.items()})


def _kind_of(field: Any, responses: Sequence[str]) -> ResponseKind:
    return ResponseKind.of(str, responses) if field is None else ResponseKind.of_field(field, responses)


def outputs_of(predictors: Iterable[Any], names: Sequence[str]) -> dict[str, Any]:
    """The fields of these names, each of the last predictor that gives it; None for one that none gives."""
    declared = {name: field for p in predictors for name, field in p.signature.output_fields.items()}
    return {name: declared.get(name) for name in names}


def respelled(kind: ResponseKind, interaction: Interaction) -> Interaction:
    """The interaction with its response as ``kind`` writes it."""
    response = kind.read(interaction.response)
    same = response is None or response == interaction.response
    return interaction if same else replace(interaction, response=response)


class Responses:
    """The part of a program with a persona that knows which fields its user answers."""

    response_field: str
    kind: ResponseKind

    @property
    def response_fields(self) -> tuple[str, ...]:
        """The fields that the user answers; ``response_field`` is the name of all of them together."""
        return self.kind.names if isinstance(self.kind, FieldsKind) else (self.response_field,)

    def response_values(self, response: str) -> dict[str, Any]:
        """A response as fields of an example: under ``response_field``, and each of several under its own name too."""
        typed = self.kind.typed(response)
        return {self.response_field: typed, **(typed if isinstance(self.kind, FieldsKind) else {})}

    def response_shown(self, response: str) -> dict[str, Any]:
        """A response as the fields of a past turn."""
        shown = self.kind.shown(response)
        return shown if isinstance(self.kind, FieldsKind) else {self.response_field: shown}

    def gathered(self, example: Any) -> Any:
        """An example or dictionary of a user's own, with several response fields under ``response_field`` too."""
        if not isinstance(self.kind, FieldsKind) or example.get(self.response_field) is not None:
            return example
        values = {name: example[name] for name in self.kind.names if example.get(name) is not None}
        if not values:
            return example
        joint = {self.response_field: values}
        return example.copy(**joint) if isinstance(example, dspy.Example) else {**example, **joint}

    def given_in(self, answer: Any, outputs: Mapping[str, Any]) -> str:
        """The response in whatever the program returned, as text; of several fields those in it, and of others what the
        program's predictors gave on the way (``outputs``)."""
        if not isinstance(self.kind, FieldsKind):
            return response_text(answer, self.response_field)
        values = {name: outputs[name] for name in self.kind.names if name in outputs}
        if isinstance(answer, dspy.Prediction | Mapping):
            values |= {name: answer[name] for name in self.kind.names if name in answer}
        elif answer is not None:
            values[self.kind.names[0]] = answer
        values = {name: text for name in self.kind.names if (text := answer_text(values.get(name, ""))).strip()}
        return (self.kind.read(values) or answer_text(values)) if values else ""

    def narrow(self, prediction: Any, example: dspy.Example) -> None:
        """Adds to a simulated prediction what it holds of several response fields: under ``response_field`` of those
        that the user answered in ``example``, and under its own name what only an inner predictor gave."""
        if not isinstance(self.kind, FieldsKind):
            return
        response, gold = trace_of(prediction).response, example.get(self.response_field)
        values: dict[str, Any] = self.kind.typed(response) if response else {}
        for name, value in values.items():
            if name not in prediction:
                prediction[name] = value
        answered = values if gold is None else self.kind.values(gold)
        prediction[self.response_field] = {name: values.get(name, "") for name in answered}

    def written_text(self, value: Any) -> str:
        """What a user wrote or chose, as a response: a text, a prediction, or a dictionary of one or more fields.

        Raises:
            InputError: blank, or without the field.
        """
        named = isinstance(value, dspy.Prediction | Mapping)
        if isinstance(self.kind, FieldsKind):
            if isinstance(value, dspy.Prediction):
                value = {name: value[name] for name in self.kind.names if name in value}
            values = self.kind.values(value if named else {self.kind.names[0]: value})
            text = answer_text({name: answer_text(one) for name, one in values.items()}) if values else ""
        else:
            text = response_text(value, self.response_field) if named else answer_text(value)
        if not text.strip():
            raise InputError(f"feedback with {value!r}: expected a text, or a prediction with {self.response_field!r}")
        return text

    def _outputs(self) -> dict[str, Any]:
        """The response fields by name; None for one that no signature has."""
        raise NotImplementedError
