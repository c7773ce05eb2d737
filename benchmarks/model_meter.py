"""A real model in the head to head: every call is counted, and none is computed twice.

Answers are kept in a file by the request, so that a run that was ended goes on where it was. A call whose answer is
kept counts like any other: who asks what somebody asked before him gets no discount.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from persona_dspy.testing import Prompt

__all__ = ["Deadline", "KeptEngine", "ModelMeter"]


class Deadline(BaseException):
    """Time is up. No Exception, so that no optimizer takes it for a failed rollout."""


class KeptEngine:
    """An engine's answers by request. At temperature 0 a request has one answer, so this changes none.

    Args:
        until: ``time.monotonic()`` at which new calls raise ``Deadline``.
    """

    supports_response_schema = True
    supports_function_calling = False

    def __init__(self, engine: Any, path: Path, until: float = float("inf")) -> None:
        self.engine, self.until = engine, until
        self.supported_params = engine.supported_params
        self.kept = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.kept.execute("create table if not exists answers (key text primary key, answer text)")
        self.computed = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptEngine:
        return self

    def complete(self, request: Request) -> Response:
        key = hashlib.sha256(repr(request).encode()).hexdigest()
        found = self.kept.execute("select answer from answers where key = ?", (key,)).fetchone()
        if found is None:
            if time.monotonic() > self.until:
                raise Deadline
            made = self.engine.complete(request)
            self.computed += 1
            text = "".join(p.text for p in made.message.parts if isinstance(p, TextPart))
            row = [text, made.finish_reason, made.usage.input_tokens, made.usage.output_tokens]
            found = (json.dumps(row),)
            self.kept.execute("insert or replace into answers values (?, ?)", (key, found[0]))
        text, reason, seen, written = json.loads(found[0])
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(text)]),
            finish_reason=reason,
            usage=Usage(input_tokens=seen, output_tokens=written),
        )

    def close(self) -> None:
        self.engine.close()


class _Counting:
    """One run's account over the shared engine."""

    supports_response_schema = True
    supports_function_calling = False

    def __init__(self, engine: KeptEngine, count: Callable[[int], None]) -> None:
        self.engine, self.count, self.supported_params = engine, count, engine.supported_params

    def __deepcopy__(self, memo: dict[int, Any]) -> _Counting:
        return self

    def complete(self, request: Request) -> Response:
        response = self.engine.complete(request)
        self.count((response.usage.input_tokens or 0) + (response.usage.output_tokens or 0))
        return response

    def close(self) -> None:
        """The engine is everybody's."""


class ModelMeter:
    """Counts one run's calls and tokens to a model; ``lm`` is what the run asks."""

    def __init__(self, engine: KeptEngine, model: str) -> None:
        self.calls = self.tokens = 0
        options: dict[str, Any] = {"cache": False, "num_retries": 0, "temperature": 0.0}
        self.lm = dspy.LM(model, engine=_Counting(engine, self._count), **options)

    def _count(self, tokens: int) -> None:
        self.calls += 1
        self.tokens += tokens

    def __call__(self, prompt: Prompt) -> str:
        return self.write(prompt.system, prompt.user)

    def write(self, system: str, prompt: str, rule: Callable[[str], str] | None = None) -> str:
        """What the model says to a prompt of a peer's own; ``rule`` is for LMs that only follow rules."""
        said = self.lm(
            messages=[{"role": "system", "content": system}, {"role": "user", "content": prompt}][not system :]
        )
        return str(said[0]["text"] if isinstance(said[0], dict) else said[0])
