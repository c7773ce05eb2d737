"""An LM that answers anything at no cost, so that work can be rehearsed and its calls and tokens counted."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from persona_dspy.core import count_tokens

__all__ = ["rehearsal_lm"]

_WORDS = ("this", "user", "would", "rather", "say", "something", "short", "about", "what", "the", "text", "shows")
_TEXT = 24  # words of a free text
_DEPTH = 8  # of nested schemas


class _RehearsalEngine:
    """Answers by the request's JSON schema: a choice among labels, otherwise text of middling length. Most answers are
    wrong, so that work which depends on mistakes is all done. The same request gets the same answer."""

    supports_response_schema = True
    supports_function_calling = False
    supports_reasoning = False
    supported_params = frozenset({"temperature", "max_tokens", "response_format", "stop", "seed", "top_p"})

    def __deepcopy__(self, memo: dict[int, Any]) -> _RehearsalEngine:
        return self

    def complete(self, request: Any) -> Any:
        from dspy.lm15 import Message, Response, TextPart, Usage

        system = request.system or ""
        texts = [system if isinstance(system, str) else "".join(getattr(p, "text", "") for p in system)]
        texts += [m.text or "" for m in request.messages]
        form: Any = request.config.response_format or {}
        schema = form.get("schema") or (form.get("json_schema") or {}).get("schema") or {}
        digest = hashlib.sha256("\0".join([*texts, json.dumps(schema, default=str)]).encode("utf-8", "replace"))
        rng = random.Random(digest.digest())
        text = json.dumps(_instance(schema, schema, rng, 0)) if schema else f"```\n{_text(rng, 3 * _TEXT)}\n```"
        usage = Usage(input_tokens=sum(map(count_tokens, texts)), output_tokens=count_tokens(text))
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def stream(self, request: Any) -> Iterator[Any]:
        from dspy.lm15 import response_to_events

        return response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to close."""


class _AsyncRehearsalEngine:
    def __init__(self, engine: _RehearsalEngine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: dict[int, Any]) -> _AsyncRehearsalEngine:
        return self

    async def complete(self, request: Any) -> Any:
        return self.engine.complete(request)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        for event in self.engine.stream(request):
            yield event

    async def aclose(self) -> None:
        """Nothing to close."""


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
    return dspy.LM(
        "rehearsal/lm", engine=engine, async_engine=_AsyncRehearsalEngine(engine), cache=False, num_retries=0
    )


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
