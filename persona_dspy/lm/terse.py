"""A JSON adapter without reminders of the form, for LMs whose engine enforces a schema; and what an LM supports.

DSPy's JSONAdapter repeats every label after each query, behind the cached part of the prompt: a fifth of a short
query's time on a CPU. The query then also looks unlike the past turns above it, which a small model follows less
(docs/LOG.md).
"""

from __future__ import annotations

import json
from typing import Any, Literal, get_origin
from weakref import WeakKeyDictionary

import dspy
from dspy.adapters.utils import serialize_for_json
from pydantic import TypeAdapter

__all__ = ["TerseJSON", "able"]

_MAX_SIGNATURES = 256  # in each cache: users may have types of their own
_FORMATS: dict[tuple[Any, ...], Any] = {}
_SYSTEM: dict[tuple[Any, ...], str] = {}
_ABLE: WeakKeyDictionary[Any, tuple[str, dict[str, bool]]] = WeakKeyDictionary()


def able(lm: Any, to: Literal["function_calling", "response_schema", "response_format"]) -> bool:
    """Whether the LM calls functions, follows a schema, or takes a response format. Cached per LM and model: DSPy
    searches a list of thousands of models each time, over a millisecond for a model that is not in it.
    """

    def ask() -> bool:
        if to == "response_format":
            return to in lm.supported_params
        return bool(getattr(lm, f"supports_{to}", False))

    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return ask()  # an engine object answers at once
    if lm not in _ABLE or _ABLE[lm][0] != lm.model:
        _ABLE[lm] = (lm.model, {})
    abilities = _ABLE[lm][1]
    if to not in abilities:
        abilities[to] = ask()
    return abilities[to]


def _is_spelled_out(annotation: Any) -> bool:
    """Whether DSPy's list of fields, ``name (type)``, says all there is to a type."""
    return annotation in (str, int, float, bool) or get_origin(annotation) is Literal


class TerseJSON(dspy.JSONAdapter):
    """``dspy.JSONAdapter`` without its closing reminder; types are in the system message and in the response schema.
    For LMs with ``supports_response_schema``.

    Example:
        >>> signature = dspy.Signature("film -> tag")
        >>> TerseJSON().format_user_message_content(signature, {"film": "Alien"}, main_request=True)
        '[[ ## film ## ]]\\nAlien'
    """

    def user_message_output_requirements(self, signature: Any) -> str | None:  # type: ignore[override]
        return None

    def format_field_structure(self, signature: Any) -> str:
        """The form of a request and of its answer. No value of the answer's template holds a comment, which models
        copy; types that the list of fields does not spell out are given as a JSON schema."""
        request = "\n\n".join(f"[[ ## {name} ## ]]\n{{{name}}}" for name in signature.input_fields)
        template = ", ".join(f'"{name}": ...' for name in signature.output_fields)
        lines = [f"A request holds:\n\n{request}", f"The answer is a JSON object: {{{template}}}"]
        for name, field in signature.output_fields.items():
            if not _is_spelled_out(field.annotation):
                schema = json.dumps(TypeAdapter(field.annotation).json_schema(), ensure_ascii=False)
                lines.append(f"JSON schema of `{name}`: {schema}")
        return "\n\n".join(lines)

    def format_system_message(self, signature: Any) -> str:
        """DSPy's message, cached per signature: DSPy asks pydantic for each field's schema, a tenth of a call's CPU."""
        key = (type(self), signature, signature.instructions)
        message = _SYSTEM.get(key)
        if message is None:
            if len(_SYSTEM) >= _MAX_SIGNATURES:
                _SYSTEM.clear()
            message = _SYSTEM[key] = super().format_system_message(signature)
        return message

    def format_field_with_value(self, fields_with_values: dict[Any, Any], role: str = "user") -> str:
        """DSPy's form, without pydantic where all values are texts."""
        if role != "user" or not all(isinstance(value, str) for value in fields_with_values.values()):
            return super().format_field_with_value(fields_with_values, role)
        return "\n\n".join(f"[[ ## {f.name} ## ]]\n{value}" for f, value in fields_with_values.items()).strip()

    def _prepare_response_format(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """DSPy's format, cached per signature: DSPy builds the same pydantic class anew, a fifth of a call's CPU."""
        typed = able(lm, "response_format") and able(lm, "response_schema")
        key = signature, typed, self.use_native_function_calling
        response_format = _FORMATS.get(key)
        if response_format is not None:
            lm_kwargs["response_format"] = response_format
            return
        super()._prepare_response_format(lm, lm_kwargs, signature)
        if typed and isinstance(lm_kwargs.get("response_format"), type):
            if len(_FORMATS) >= _MAX_SIGNATURES:
                _FORMATS.clear()
            _FORMATS[key] = lm_kwargs["response_format"]

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """JSON on one line, as a constrained engine writes it: a small model copies past turns only where they look
        like the answer it has to write."""
        values = {name: outputs.get(name, missing_field_message) for name in signature.output_fields}
        plain = all(isinstance(value, str) for value in values.values())
        return json.dumps(values if plain else serialize_for_json(values), ensure_ascii=False)
