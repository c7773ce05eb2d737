"""A JSON adapter that says less. Owns: ``TerseJSON``, what an LM is able to (``able``).

Not here: how a persona gets into messages (system_prompt.py).

An engine that keeps to a schema needs no reminder of it after each query. DSPy's JSONAdapter repeats every label there:
after the cached part of the prompt, a fifth of a short query's time on a CPU; and it makes the query look unlike the
past turns above it, which a small model then follows less (docs/LOG.md).
"""

from __future__ import annotations

import json
from typing import Any, Literal
from weakref import WeakKeyDictionary

import dspy
from dspy.adapters.utils import serialize_for_json

__all__ = ["TerseJSON", "able"]

_MOST = 256  # signatures whose schema is kept: users may have types of their own
_FORMATS: dict[tuple[Any, ...], Any] = {}
_SYSTEM: dict[tuple[Any, ...], str] = {}
_ABLE: WeakKeyDictionary[Any, tuple[str, dict[str, bool]]] = WeakKeyDictionary()


def able(lm: Any, to: Literal["function_calling", "response_schema", "response_format"]) -> bool:
    """Whether the LM calls functions, keeps to a schema, or takes a response format. DSPy searches its list of
    thousands of models for each answer, over a millisecond for one it does not know: asked once for an LM and a model.
    """

    def ask() -> bool:
        if to == "response_format":
            return to in lm.supported_params
        return bool(getattr(lm, f"supports_{to}", False))

    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return ask()  # it says so itself, at once
    if lm not in _ABLE or _ABLE[lm][0] != lm.model:
        _ABLE[lm] = (lm.model, {})
    known = _ABLE[lm][1]
    if to not in known:
        known[to] = ask()
    return known[to]


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

    def format_system_message(self, signature: Any) -> str:
        """DSPy's, once for a signature: it asks pydantic for each field's schema anew, a tenth of a call's CPU."""
        key = (type(self), signature, signature.instructions)
        known = _SYSTEM.get(key)
        if known is None:
            if len(_SYSTEM) >= _MOST:
                _SYSTEM.clear()
            known = _SYSTEM[key] = super().format_system_message(signature)
        return known

    def format_field_with_value(self, fields_with_values: dict[Any, Any], role: str = "user") -> str:
        """DSPy's; but where all values are texts, pydantic is not asked how to write them."""
        if role != "user" or not all(isinstance(value, str) for value in fields_with_values.values()):
            return super().format_field_with_value(fields_with_values, role)
        return "\n\n".join(f"[[ ## {f.name} ## ]]\n{value}" for f, value in fields_with_values.items()).strip()

    def _prepare_response_format(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """DSPy's, once for a signature: it builds a pydantic class, a fifth of a call's CPU, to find the same again."""
        forms = able(lm, "response_format") and able(lm, "response_schema")
        key = signature, forms, self.use_native_function_calling
        known = _FORMATS.get(key)
        if known is not None:
            lm_kwargs["response_format"] = known
            return
        super()._prepare_response_format(lm, lm_kwargs, signature)
        if forms and isinstance(lm_kwargs.get("response_format"), type):
            if len(_FORMATS) >= _MOST:
                _FORMATS.clear()
            _FORMATS[key] = lm_kwargs["response_format"]

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """One line, as a constrained engine writes it: past turns must look like the answers that are asked for, or a
        small model is led away from what it would have copied."""
        values = {name: outputs.get(name, missing_field_message) for name in signature.output_fields}
        plain = all(isinstance(value, str) for value in values.values())
        return json.dumps(values if plain else serialize_for_json(values), ensure_ascii=False)
