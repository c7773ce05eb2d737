"""An LM that replays recorded answers: what a capable model said, shown again where there is none."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_dspy.core import count_tokens
from persona_dspy.errors import ModelError

__all__ = ["replayed_lm"]


def replayed_lm(path: str | Path, *, source: Any = None, **options: Any) -> Any:
    """A ``dspy.LM`` over a file of recorded answers, one JSON object a line: ``key`` (of the request), ``answer``.

    A request is known by its texts and the schema of its answer, so a record fits the prompts it was made with.

    Args:
        path: the record.
        source: an LM that is asked what the record does not hold; its answers are added. None = that is an error.
        options: of ``dspy.LM``.

    Raises:
        ModelError: no such file and no ``source``, a line that is no record; later, a request that it has no answer to.

    Example:
        >>> import tempfile, dspy
        >>> from persona_dspy.testing import FakeLM
        >>> file = f"{tempfile.mkdtemp()}/answers.jsonl"
        >>> asked = FakeLM(lambda prompt: {"answer": "42"})
        >>> for source in (asked, None):  # the second time without anybody
        ...     with dspy.context(lm=replayed_lm(file, source=source), adapter=dspy.JSONAdapter()):
        ...         print(dspy.Predict("question -> answer")(question="6 x 7?").answer)
        42
        42
    """
    import dspy

    engine = _ReplayEngine(Path(path), source)
    options = {"cache": False, "num_retries": 0, "temperature": 0.0, **options}
    return dspy.LM(f"replayed/{Path(path).stem}", engine=engine, async_engine=_AsyncReplayEngine(engine), **options)


class _ReplayEngine:
    supports_response_schema = True
    supports_function_calling = False
    supports_reasoning = False
    supported_params = frozenset({"temperature", "max_tokens", "response_format", "stop", "seed", "top_p"})

    def __init__(self, path: Path, source: Any) -> None:
        self.path, self.source = path, source
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        if not path.is_file() and source is None:
            raise ModelError(f"{str(path)!r}: no such file; expected recorded answers, one JSON object a line")
        for number, line in enumerate(path.read_text("utf-8").splitlines() if path.is_file() else (), 1):
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, TypeError, KeyError):
                raise ModelError(
                    f"{path}:{number}: expected {{'key': ..., 'answer': ...}}, a recorded answer"
                ) from None

    def __deepcopy__(self, memo: dict[int, Any]) -> _ReplayEngine:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.source)

    def complete(self, request: Any) -> Any:
        from dspy.lm15 import Message, Response, TextPart, Usage

        texts, schema = _texts(request), _schema(request)
        key = hashlib.sha256(json.dumps([texts, schema], sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]
        answer = self._answers.get(key)
        if answer is None:
            answer = self._ask(key, request)
        usage = Usage(
            input_tokens=sum(count_tokens(text) for _, text in texts), output_tokens=count_tokens(answer)
        )  # fmt: skip
        message = Message.assistant([TextPart(answer)])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def _ask(self, key: str, request: Any) -> str:
        if self.source is None:
            asked = _texts(request)[-1][1][-120:]
            raise ModelError(
                f"{self.path}: no answer recorded to a request that ends {asked!r}; the prompts, the data or the "
                "options are others than when it was made. Take an LM that runs, such as --lm local"
            )
        text = self.source(replace(request, model=self.source.model)).message.text or ""
        with self._lock:
            if key not in self._answers:
                self._answers[key] = text
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "answer": text}, ensure_ascii=False) + "\n")
        return self._answers[key]

    def stream(self, request: Any) -> Iterator[Any]:
        from dspy.lm15 import response_to_events

        return response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to close."""


class _AsyncReplayEngine:
    def __init__(self, engine: _ReplayEngine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: dict[int, Any]) -> _AsyncReplayEngine:
        return self

    async def complete(self, request: Any) -> Any:
        return self.engine.complete(request)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        for event in self.engine.stream(request):
            yield event

    async def aclose(self) -> None:
        """Nothing to close."""


def _texts(request: Any) -> list[tuple[str, str]]:
    system = request.system or ""
    system = system if isinstance(system, str) else "".join(getattr(part, "text", "") for part in system)
    return [
        *([("system", system)] if system else []),
        *((message.role, message.text or "") for message in request.messages),
    ]


def _schema(request: Any) -> Any:
    form: Any = request.config.response_format or {}
    return form.get("schema") or (form.get("json_schema") or {}).get("schema") or {}
