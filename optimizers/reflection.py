"""Asks the LM that reflects, within bounds, and records answers that cannot be read."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from persona_dspy.agent import as_persona
from persona_dspy.core import one_line
from persona_dspy.lm import Sizes, is_small

__all__ = ["Reflection", "ask", "current_sizes", "left_out_quoting", "reflecting"]

_LARGER = 4  # a second request's bound, in bounds of the first
_LISTED = 200  # entries of a list in an answer: checking thousands of edits would take a minute


@dataclass
class Reflection:
    """``unread``: a line for each answer that could not be read, first try and retry both; ``read``: how many were.
    ``quoting``: how many lines were left out since they hold words of an answer that judges; ``unlisted``: how many
    entries of lists, beyond the first 200 of one answer, were not looked at."""

    sizes: Sizes
    unread: list[str] = field(default_factory=list)
    read: int = 0
    quoting: int = 0
    unlisted: int = 0


_CURRENT: ContextVar[Reflection | None] = ContextVar("persona_reflection", default=None)


@contextmanager
def reflecting(lm: Any, sizes: Sizes | None = None) -> Generator[Reflection]:
    """Inside, predictors ask ``lm`` under no persona, and ``ask`` keeps an account of what could not be read."""
    reflection = Reflection(sizes or Sizes.of(lm))
    token = _CURRENT.set(reflection)
    try:
        with dspy.context(lm=lm), as_persona("", lm=lm):
            yield reflection
    finally:
        _CURRENT.reset(token)


def current_sizes() -> Sizes:
    """How much text the LM that reflects may be shown."""
    current = _CURRENT.get()
    return current.sizes if current else Sizes.of(dspy.settings.get("lm"))


def left_out_quoting() -> None:
    """Count a line that holds words of an answer that judges."""
    if (current := _CURRENT.get()) is not None:
        current.quoting += 1


def ask(predict: Any, *, bound: int, **inputs: Any) -> dspy.Prediction | None:
    """What the LM answers, of a list the first 200 entries; None where it could not be read, even when asked again
    with more room.

    Args:
        predict: a ``dspy.Predict``.
        bound: ``max_tokens`` for a small local LM, whose answers would run on; any other has its own, since a model
            that thinks before it answers spends them on that.
    """
    small, current = is_small(dspy.settings.get("lm")), _CURRENT.get()
    failure = ""
    for attempt in range(2):
        config: dict[str, Any] = {"max_tokens": bound * (_LARGER if attempt else 1)} if small else {}
        if attempt:
            config |= {"rollout_id": 1, "temperature": 1.0}  # or a cache gives the same answer again
        try:
            answer = predict(**inputs, config=config)
        except AdapterParseError as error:
            failure = f"no answer that could be read to {', '.join(predict.signature.output_fields)}: {error}"
        except ContextWindowExceededError as error:
            failure = f"a request for {', '.join(predict.signature.output_fields)} was over the context: {error}"
            break
        else:
            for name, value in answer.items():
                if isinstance(value, list) and (more := len(value) - _LISTED) > 0:
                    answer[name] = value[:_LISTED]
                    if current is not None:
                        current.unlisted += more
            if current is not None:
                current.read += 1
            return answer
    if current is not None:
        current.unread.append(one_line(failure)[:200])
    return None
