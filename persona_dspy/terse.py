"""A JSON adapter that says less. Owns: ``TerseJSON``. Not here: how a persona gets into messages (system_prompt.py).

An engine that keeps to a schema needs no reminder of it after each query. DSPy's JSONAdapter repeats every label there:
after the cached part of the prompt, a fifth of a short query's time on a CPU; and it makes the query look unlike the
past turns above it, which a small model then follows less (docs/LOG.md).
"""

from __future__ import annotations

import json
from typing import Any

import dspy
from dspy.adapters.utils import serialize_for_json

__all__ = ["TerseJSON"]

_MOST = 256  # signatures whose schema is kept: users may have types of their own
_FORMATS: dict[tuple[Any, ...], Any] = {}


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

    def _prepare_response_format(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """DSPy's, once for a signature: it builds a pydantic class, a fifth of a call's CPU, to find the same again."""
        able = "response_format" in lm.supported_params, lm.supports_response_schema, self.use_native_function_calling
        known = _FORMATS.get((signature, *able))
        if known is not None:
            lm_kwargs["response_format"] = known
            return
        super()._prepare_response_format(lm, lm_kwargs, signature)
        if able[0] and able[1] and isinstance(lm_kwargs.get("response_format"), type):
            if len(_FORMATS) >= _MOST:
                _FORMATS.clear()
            _FORMATS[signature, *able] = lm_kwargs["response_format"]

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """One line, as a constrained engine writes it: past turns must look like the answers that are asked for, or a
        small model is led away from what it would have copied."""
        values = {name: outputs.get(name, missing_field_message) for name in signature.output_fields}
        return json.dumps(serialize_for_json(values), ensure_ascii=False)
