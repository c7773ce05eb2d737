"""An engine that keeps the very requests it was sent, for tests of what reaches a model."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import dspy
from dspy.lm15 import ContextLengthError, Message, Response, TextPart, ToolCallPart, Usage, response_to_events

from persona_dspy.testing.fake_lm import FakeEngine, Prompt, UnseenPrompt


class Seen(FakeEngine):
    """``FakeEngine`` that keeps raw requests; a handler may return tool calls as ``[(name, arguments), ...]``.

    ``limit``: characters of a prompt above which it raises the error of a full context. ``pause``: seconds to wait for
    a request, in asyncio.
    """

    def __init__(self, handlers, *, calls_functions=False, keeps_schema=True, limit=None):
        super().__init__(handlers)
        self.supports_function_calling = calls_functions
        self.supports_response_schema = keeps_schema
        if calls_functions:
            self.supported_params = self.supported_params | {"tools", "tool_choice"}
        self.limit, self.pause = limit, None
        self.requests = []

    def complete(self, request):
        self.requests.append(request)
        if self.limit is not None and sum(len(text) for _, text in messages(request)) > self.limit:
            raise ContextLengthError("the prompt is too long")
        prompt = Prompt.of(request)
        self.calls.append(prompt)
        said = next((a for h in self.handlers if (a := h(prompt)) is not None), None)
        if said is None:
            raise UnseenPrompt(f"no handler answers {prompt.outputs!r}: {prompt.user[:300]!r}")
        if isinstance(said, list):
            parts = [ToolCallPart(id=f"c{n}", name=name, input=args) for n, (name, args) in enumerate(said)]
        else:
            parts = [TextPart(prompt.render(said))]
        usage = Usage(input_tokens=sum(len(text) for _, text in messages(request)), output_tokens=7)
        message = Message.assistant(parts)
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def stream(self, request):
        for event in response_to_events(self.complete(request)):
            text = getattr(getattr(event, "delta", None), "text", None)
            if text is None:
                yield event
            else:  # as models do: a few letters at a time
                for at in range(0, len(text), 4):
                    yield replace(event, delta=replace(event.delta, text=text[at : at + 4]))


class _Async:
    def __init__(self, engine):
        self.engine = engine

    def __deepcopy__(self, memo):
        return self

    async def complete(self, request):
        if self.engine.pause is not None:
            await asyncio.sleep(self.engine.pause(request))
        return self.engine.complete(request)

    async def stream(self, request):
        for event in self.engine.stream(request):
            yield event

    async def aclose(self):
        pass


def seen_lm(*handlers, cache=False, **options):
    engine = Seen(handlers, **options)
    return dspy.LM("fake/seen", engine=engine, async_engine=_Async(engine), cache=cache, num_retries=0)


def messages(request):
    """(role, text) of all messages, the system message first; results of tools with role "tool"."""
    system = request.system or ""
    found = [("system", system if isinstance(system, str) else "".join(p.text for p in system))]
    for message in request.messages:
        text = message.text or ""
        for part in message.parts:
            if part.type == "tool_result":
                text += "".join(getattr(p, "text", str(p)) for p in part.content)
        found.append((message.role, text))
    return found
