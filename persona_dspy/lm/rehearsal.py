"""An LM that answers anything at no cost, so that work can be rehearsed and its calls and tokens counted."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any

from persona_dspy.lm.text_engine import AsyncTextEngine, TextEngine

__all__ = ["rehearsal_lm"]

_WORDS = ("this", "user", "would", "rather", "say", "something", "short", "about", "what", "the", "text", "shows")
_TEXT = 24  # words of a free text
_DEPTH = 8  # of nested schemas


class _RehearsalEngine(TextEngine):
    """Answers by the request's JSON schema: a choice among labels, otherwise text of middling length. Most answers are
    wrong, so that work which depends on mistakes is all done. The same request gets the same answer."""

    def answer(self, texts: list[tuple[str, str]], schema: Any, request: Any) -> str:
        seen = [*(text for _, text in texts), json.dumps(schema, default=str)]
        rng = random.Random(hashlib.sha256("\0".join(seen).encode("utf-8", "replace")).digest())
        return json.dumps(_instance(schema, schema, rng, 0)) if schema else f"```\n{_text(rng, 3 * _TEXT)}\n```"


def rehearsal_lm() -> Any:
    """A ``dspy.LM`` that costs nothing and knows nothing; ``Ledger`` counts its calls and (estimated) tokens.

    Example:
        >>> import dspy
        >>> with dspy.context(lm=rehearsal_lm(), adapter=dspy.JSONAdapter()):
        ...     answer = dspy.Predict("film -> year: int, title, seen: bool")(film="Alien")
        >>> type(answer.year).__name__, type(answer.title).__name__, type(answer.seen).__name__
        ('int', 'str', 'bool')
    """
    import dspy

    engine = _RehearsalEngine()
    return dspy.LM("rehearsal/lm", engine=engine, async_engine=AsyncTextEngine(engine), cache=False, num_retries=0)


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words))


def _instance(schema: Mapping[str, Any], root: Mapping[str, Any], rng: random.Random, depth: int) -> Any:
    """A value that the schema allows."""
    if "$ref" in schema:
        found: Any = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        return _instance(found, root, rng, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _instance(options[0] if depth < _DEPTH else options[-1], root, rng, depth + 1)
    kind = schema.get("type", "string")
    if kind == "object" or "properties" in schema:
        fields: Mapping[str, Any] = schema.get("properties", {})
        return {name: _instance(field, root, rng, depth + 1) for name, field in fields.items()}
    if kind == "array":
        most = schema.get("maxItems", 2)
        count = max(schema.get("minItems", 0), min(2, most)) if depth < _DEPTH else schema.get("minItems", 0)
        return [_instance(schema.get("items", {}), root, rng, depth + 1) for _ in range(count)]
    if kind in ("integer", "number"):
        return rng.randint(int(schema.get("minimum", 1)), int(schema.get("maximum", 5)))
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "null":
        return None
    return _text(rng, _TEXT)[: schema.get("maxLength", 4000)].strip() or "x"
