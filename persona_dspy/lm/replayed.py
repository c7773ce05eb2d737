"""An LM that replays recorded answers: what a capable model said, shown again where there is none."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_dspy.errors import ModelError
from persona_dspy.lm.text_engine import AsyncTextEngine, TextEngine

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
    return dspy.LM(f"replayed/{Path(path).stem}", engine=engine, async_engine=AsyncTextEngine(engine), **options)


class _ReplayEngine(TextEngine):
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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.source)

    def answer(self, texts: list[tuple[str, str]], schema: Any, request: Any) -> str:
        key = hashlib.sha256(json.dumps([texts, schema], sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]
        known = self._answers.get(key)
        return self._ask(key, texts[-1][1], request) if known is None else known

    def _ask(self, key: str, asked: str, request: Any) -> str:
        if self.source is None:
            raise ModelError(
                f"{self.path}: no answer recorded to a request that ends {asked[-120:]!r}; the prompts, the data or "
                "the options are others than when it was made. Take an LM that runs, such as --lm local"
            )
        text = self.source(replace(request, model=self.source.model)).message.text or ""
        with self._lock:
            if key not in self._answers:
                self._answers[key] = text
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "answer": text}, ensure_ascii=False) + "\n")
        return self._answers[key]
