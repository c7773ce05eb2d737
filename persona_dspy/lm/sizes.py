"""How much text goes into a request, from what the LM's context window has room for."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

__all__ = ["Sizes", "is_small"]

_UNKNOWN = 32_768  # tokens of a hosted model that no list knows; less is rare by now
_SMALL, _TINIEST = 2e9, 2e7  # parameters
_PARAMETERS = re.compile(r"(?<![a-zA-Z0-9.])(\d{1,4}(?:\.\d{1,3})?)([bBmM])(?![a-zA-Z0-9])")
_READ = 24_000  # tokens of past interactions in one request: more costs more than it teaches


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bounds on what a request holds, in estimated tokens unless said otherwise. What fits is never cut.

    Args:
        query, response: of one interaction that is reflected on.
        turn: of a past query shown as a turn; the user's own response to it may be three times as long.
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
        """The sizes that suit an LM, or a name such as ``"local"``: ``small()`` for a small one (``is_small``), else by
        its context window."""
        if isinstance(lm, str):
            small = lm.startswith(("local", "small:")) or lm.endswith(".gguf") or _is_small_by_name(lm)
            return cls.small() if small else cls.within(_window(lm))
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
        """For models of two billion parameters or fewer: on a CPU they read some hundred tokens a second."""
        return cls(
            query=60, response=60, turn=192, observation=200, line=60, section=240, answer=240, past=12, read=1_200, k=4
        )


def is_small(lm: Any) -> bool:
    """Whether the LM is a small one, which is helped by steering (``agent.Steering``): one in this process, or a served
    one of two billion parameters or fewer, as its name says (``"ollama_chat/llama3.2:1b"``). Where the name says
    nothing, or the wrong thing, the attribute does: ``lm.small = True``, or ``resolve_lm("small:openai/NAME")``.

    Example:
        >>> from types import SimpleNamespace
        >>> is_small(SimpleNamespace(model="hosted_vllm/Qwen/Qwen2.5-0.5B-Instruct"))
        True
        >>> is_small(SimpleNamespace(model="openai/gpt-4o-mini"))
        False
    """
    said = getattr(lm, "small", None)
    if not isinstance(said, bool):
        said = getattr(getattr(lm, "engine", None), "small", None)
    return said if isinstance(said, bool) else _is_small_by_name(str(getattr(lm, "model", "")))


def _is_small_by_name(model: str) -> bool:
    """By the largest number of parameters in a name: "30B-A3B" has 30 billion. Millions below 20 are something else, as
    the million tokens of context in "7b-1m"."""
    sizes = [float(number) * (1e9 if unit in "bB" else 1e6) for number, unit in _PARAMETERS.findall(model)]
    sizes = [size for size in sizes if size >= _TINIEST]
    return bool(sizes) and max(sizes) <= _SMALL


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
