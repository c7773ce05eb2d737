"""How much text goes into a request, from what the LM's context window has room for."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

__all__ = ["Sizes", "is_small"]

_UNKNOWN = 32_768  # tokens of a hosted model that no list knows; less is rare by now
_READ = 24_000  # tokens of past interactions in one request: more costs more than it teaches


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bounds on what a request holds, in estimated tokens unless said otherwise. What fits is never cut.

    Args:
        query, response: of one interaction that is reflected on.
        turn: of a past query or response shown as a turn.
        observation: of what a tool returned.
        line, section: of a persona's line, and of all lines of a section.
        answer: ``max_tokens`` of a request for feedback, edits or a portrait; None = the LM's own, as it must be for
            models that think before they answer.
        past: interactions in one request that reads the past.
        read: all of them together.
        k: episodes recalled for an answer.

    Example:
        >>> Sizes.within(128_000).k, Sizes.small().k
        (12, 4)
    """

    query: int
    response: int
    turn: int
    observation: int
    line: int
    section: int
    answer: int | None
    past: int
    read: int
    k: int

    @classmethod
    def of(cls, lm: Any) -> Self:
        """The sizes that suit an LM, or a name such as ``"local"``: ``small()`` for a local engine, else by its context
        window."""
        if isinstance(lm, str):
            local = lm.startswith("local") or lm.endswith(".gguf")
            return cls.small() if local else cls.within(_window(lm))
        return cls.small() if is_small(lm) else cls.within(_window(str(getattr(lm, "model", ""))))

    @classmethod
    def within(cls, window: int) -> Self:
        """For a capable model with a context of ``window`` tokens."""
        k = 12 if window >= 16_000 else 6
        text = max(128, min(4_000, window // 16))
        return cls(
            query=text, response=text, turn=max(96, window // (4 * k)), observation=max(200, min(2_000, window // 20)),
            line=100, section=600, answer=None, past=60, read=min(_READ, window // 3), k=k,
        )  # fmt: skip

    @classmethod
    def small(cls) -> Self:
        """For models of a billion parameters or less on a CPU, which read some hundred tokens a second."""
        return cls(
            query=60, response=60, turn=192, observation=200, line=60, section=240, answer=240, past=12, read=1_200, k=4
        )


def is_small(lm: Any) -> bool:
    """Whether the LM is a small one in this process, which is helped by steering (``agent.Steering``)."""
    return bool(getattr(getattr(lm, "engine", None), "small", False))


def _window(model: str) -> int:
    """Tokens of a model's context, from LiteLLM's list where it is installed and knows the model."""
    registered: Any = vars(sys.modules.get("litellm") or object).get("model_cost") or {}  # the user's own entries, too
    for name in (model, model.partition("/")[2]):
        known = _window_of(registered.get(name) or {}) or _listed_windows().get(name)
        if known:
            return known
    return _UNKNOWN


@lru_cache(maxsize=1)
def _listed_windows() -> dict[str, int]:
    """Model name -> context window, by the list inside LiteLLM. NOTE read as a file: importing LiteLLM takes seconds,
    and it would be imported in the middle of the first answer."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        return {}
    try:
        models = json.loads(Path(spec.origin).with_name("model_prices_and_context_window_backup.json").read_bytes())
    except FileNotFoundError:
        return {}
    return {name: window for name, entry in models.items() if (window := _window_of(entry))}


def _window_of(entry: Mapping[str, Any]) -> int | None:
    window = entry.get("max_input_tokens") or entry.get("max_tokens")
    return int(window) if isinstance(window, int | float | str) and str(window).isdecimal() else None
