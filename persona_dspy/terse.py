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

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """One line, as a constrained engine writes it: past turns must look like the answers that are asked for, or a
        small model is led away from what it would have copied."""
        values = {name: outputs.get(name, missing_field_message) for name in signature.output_fields}
        return json.dumps(serialize_for_json(values), ensure_ascii=False)
