"""A DSPy engine that answers in text by a function of the request, without a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from persona_dspy.core import count_tokens

__all__ = ["AsyncTextEngine", "TextEngine"]


class TextEngine:
    """Answers a request from its texts and the JSON schema of its answer. Copies of an LM share it."""

    supports_response_schema = True
    supports_function_calling = False
    supports_reasoning = False
    supported_params = frozenset({"temperature", "max_tokens", "response_format", "stop", "seed", "top_p"})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def answer(self, texts: list[tuple[str, str]], schema: Any, request: Any) -> str:
        """``texts``: (role, text) of each message, the system message first; ``schema``: {} where none was sent."""
        raise NotImplementedError

    def complete(self, request: Any) -> Any:
        from dspy.lm15 import Message, Response, TextPart, Usage

        system = request.system or ""
        system = system if isinstance(system, str) else "".join(getattr(part, "text", "") for part in system)
        texts = [("system", system), *((message.role, message.text or "") for message in request.messages)]
        form: Any = request.config.response_format or {}
        schema = form.get("schema") or (form.get("json_schema") or {}).get("schema") or {}
        text = self.answer(texts, schema, request)
        usage = Usage(input_tokens=sum(count_tokens(t) for _, t in texts), output_tokens=count_tokens(text))
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def stream(self, request: Any) -> Iterator[Any]:
        from dspy.lm15 import response_to_events

        return response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to close."""


class AsyncTextEngine:
    """The same engine for asyncio."""

    def __init__(self, engine: TextEngine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    async def complete(self, request: Any) -> Any:
        return self.engine.complete(request)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        for event in self.engine.stream(request):
            yield event

    async def aclose(self) -> None:
        """Nothing to close."""
