"""A fake LM that is safe to test with.

It answers from the content of each request, never by turn, so threads and retries cannot shift answers; a request that
no handler knows fails loudly and is kept in ``misses``. Ships with the package: notebooks and users' tests need it too.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, ServerError, TextPart, Usage

from persona_dspy.core import count_tokens
from persona_dspy.lm import AsyncTextEngine, TextEngine

__all__ = ["FakeEngine", "FakeLM", "Handler", "Prompt", "UnseenPrompt"]

_CHAT_FIELD = re.compile(r"\[\[ ## (\w+) ## \]\]\n(.*?)(?=\n*\[\[ ## \w+ ## \]\]|\n\nRespond with |\Z)", re.DOTALL)
_XML_FIELD = re.compile(r"<(\w+)>\n?(.*?)\n?</\1>", re.DOTALL)
_OUTPUTS = re.compile(r"Your output fields are:\n(.*?)\n(?:All interactions|A request holds:|\Z)", re.DOTALL)


class UnseenPrompt(ServerError):
    """A request that no handler of a fake LM answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request as a handler sees it.

    ``system``: the system message; ``turns``: earlier (user, assistant) pairs, oldest first; ``user``: the last user
    message; ``fields``: its input fields by name; ``outputs``: the names of the asked output fields; ``schema``: the
    JSON schema of the answer, where one was sent.
    """

    system: str
    user: str
    turns: tuple[tuple[str, str], ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    schema: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @classmethod
    def of(cls, request: Request) -> Prompt:
        system = request.system or ""
        system = system if isinstance(system, str) else "".join(getattr(p, "text", "") for p in system)
        texts = [(m.role, m.text or "") for m in request.messages]
        turns = [(texts[i][1], texts[i + 1][1]) for i in range(0, len(texts) - 1, 2) if texts[i + 1][0] == "assistant"]
        user = texts[-1][1] if texts else ""
        found = _CHAT_FIELD.findall(user) or _XML_FIELD.findall(user)
        listed = _OUTPUTS.search(system)
        outputs = re.findall(r"^\d+\. `(\w+)`", listed.group(1), re.MULTILINE) if listed else []
        form: Any = request.config.response_format or {}
        schema = form.get("schema") or (form.get("json_schema") or {}).get("schema") or {}
        return cls(
            system=system,
            user=user,
            turns=tuple(turns),
            fields={name: text.strip() for name, text in found},
            outputs=tuple(outputs),
            schema=schema,
            model=request.model,
        )

    def choices(self, name: str) -> tuple[str, ...]:
        """The allowed values of an output field, from the schema or from the field's description; () if free."""
        declared = (self.schema.get("properties") or {}).get(name) or {}
        if "enum" in declared:
            return tuple(str(v) for v in declared["enum"])
        described = re.search(rf"`{name}` \(Literal\[(.*?)\]\)", self.system)
        return tuple(re.findall(r"'([^']*)'", described.group(1))) if described else ()

    def render(self, answer: Mapping[str, Any] | str) -> str:
        """An answer in the form that the request's adapter asked for."""
        if isinstance(answer, str):
            return answer
        if "[[ ## completed ## ]]" in self.system:
            parts = [f"[[ ## {name} ## ]]\n{_text(value)}" for name, value in answer.items()]
            return "\n\n".join([*parts, "[[ ## completed ## ]]"])
        if "JSON object" in self.system or self.schema:
            return json.dumps(dict(answer), ensure_ascii=False)
        return "\n".join(f"<{name}>\n{_text(value)}\n</{name}>" for name, value in answer.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


Handler = Callable[[Prompt], Mapping[str, Any] | str | None]
"""Answers a prompt by output fields (or with raw text), or gives None: not mine."""


class FakeEngine(TextEngine):
    """A DSPy engine (``complete(Request) -> Response``) over handlers; the first that answers wins.

    ``small``: whether it stands for a small local model. ``calls``: every request that came, in order; ``misses``:
    those nobody answered. Thread-safe.

    Raises:
        UnseenPrompt: nobody answered; the message holds the prompt's head.
    """

    def __init__(self, handlers: Sequence[Handler], *, small: bool = True) -> None:
        self.handlers, self.small = list(handlers), small
        self._lock = threading.Lock()
        self.calls: list[Prompt] = []
        self.misses: list[Prompt] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.handlers,)  # another process has an account of its own

    def complete(self, request: Request) -> Response:
        prompt = Prompt.of(request)
        with self._lock:
            self.calls.append(prompt)
        for handler in self.handlers:
            answer = handler(prompt)
            if answer is not None:
                text = prompt.render(answer)
                seen = count_tokens(prompt.system + prompt.user + "".join(a + b for a, b in prompt.turns))
                usage = Usage(input_tokens=seen, output_tokens=count_tokens(text))
                message = Message.assistant([TextPart(text)])
                return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)
        with self._lock:
            self.misses.append(prompt)
        raise UnseenPrompt(
            f"no handler answers outputs {prompt.outputs!r} for: {prompt.user[:300]!r}; add one to FakeLM"
        )


def FakeLM(*handlers: Handler, model: str = "fake/lm", small: bool = True, **options: Any) -> dspy.LM:
    """A ``dspy.LM`` over ``FakeEngine(handlers)``; no cache, no retries. ``lm.engine.calls`` is what it was sent.

    ``small``: it stands for a small local model, which is steered and sent short requests; else for a capable one.

    Example:
        >>> lm = FakeLM(lambda prompt: {"answer": "42"} if "answer" in prompt.outputs else None)
        >>> with dspy.context(lm=lm):
        ...     dspy.Predict("question -> answer")(question="6 x 7?").answer
        '42'
    """
    engine = FakeEngine(handlers, small=small)
    options = {"cache": False, "num_retries": 0, **options}
    return dspy.LM(model, engine=engine, async_engine=AsyncTextEngine(engine), **options)
