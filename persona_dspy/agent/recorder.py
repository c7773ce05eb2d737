"""Recorder: collects LM calls and tool calls into a trace while a query is answered."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from persona_dspy.agent.trace import Call, Recalled, Step
from persona_dspy.core import Episode, Usage, clip_tokens, data_text, one_line
from persona_dspy.lm import LMCall

__all__ = ["Recorder", "recalled_of"]

_SHOWN = 400  # estimated tokens of an observation that a trace keeps


class Recorder(BaseCallback):
    """Steps and LM calls of one answer, in the order they began; may be written to by several threads.

    It listens to the meter for LM calls, and to DSPy's callbacks for tools.

    Args:
        fields: of these the latest value that a predictor gave is kept, in ``outputs``.
    """

    def __init__(self, fields: Sequence[str] = ()) -> None:
        self.fields = tuple(fields)
        self.outputs: dict[str, Any] = {}
        self.started = time.time()
        self.calls: list[Call] = []
        self.steps: list[Step] = []
        self.finds: list[tuple[Episode, ...]] = []
        self._began = time.perf_counter()
        self._open: dict[str, tuple[float, str, str]] = {}
        self._found: dict[str, tuple[Episode, ...]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return self  # an account of one answer: a copy would split it

    @property
    def now(self) -> float:
        """Seconds since the query came."""
        return time.perf_counter() - self._began

    def note(self, step: Step) -> None:
        """Add a step that no tool call stands for."""
        self.steps.append(step)

    def found(self, episodes: Sequence[Episode]) -> None:
        """Episodes that the tool now running has recalled."""
        self.finds.append(tuple(episodes))
        running = ACTIVE_CALL_ID.get()
        if running is not None:
            self._found[running] = (*self._found.get(running, ()), *episodes)

    def call_ended(self, call: LMCall) -> None:
        """The meter reports an LM call."""
        cached = call.outcome in ("cached", "replayed")
        usage = Usage() if cached else call.usage
        self.calls.append(
            Call(
                role=call.role,
                model=call.model,
                at=round(call.began - self._began, 6),
                seconds=round(call.seconds, 6),
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cached_tokens,
                cached=cached,
                failed=call.raised,
                predictor=_predictor_name(),
            )
        )

    # --- Tool calls: DSPy's callbacks, installed only where there are tools ---------------------------------------

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        if isinstance(outputs, dspy.Prediction):
            self.outputs |= {name: outputs[name] for name in self.fields if name in outputs}

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        told: dict[str, Any] = inputs.get("kwargs", inputs)
        words = ", ".join(str(v) if len(told) == 1 else f"{k}={v}" for k, v in told.items())
        self._open[call_id] = (self.now, instance.name or "tool", one_line(words, 60))

    def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        opened = self._open.pop(call_id, None)
        if opened is None:
            return
        at, name, words = opened
        said = type(exception).__name__ + f": {exception}" if exception is not None else outputs
        recalled = recalled_of(self._found.pop(call_id, ()))
        self.note(
            Step(
                action=name,
                query=words,
                observation="" if recalled else clip_tokens(data_text(str(said)), _SHOWN),
                recalled=recalled,
                at=round(at, 6),
                seconds=round(self.now - at, 6),
                failed=exception is not None,
            )
        )


def _predictor_name() -> str:
    """The predictor that is asking, by its attributes inside the innermost personalized program; "" outside of any."""
    modules = list(dspy.settings.get("caller_modules") or ())
    starts = [n for n, module in enumerate(modules) if getattr(type(module), "names_its_calls", False)]
    if not starts:
        return ""
    inside = modules[starts[-1] + 1 :]  # the program itself, and from it down to the predictor
    names = [_attribute(outer, inner) for outer, inner in pairwise(inside)]
    return ".".join(names) or (type(inside[0]).__name__ if inside else "")


def _attribute(outer: Any, inner: Any) -> str:
    for name, value in vars(outer).items():
        if value is inner:
            return name
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        key = next((key for key, item in items if item is inner), None)
        if key is not None:
            return f"{name}[{key!r}]"
    return type(inner).__name__


def recalled_of(episodes: Iterable[Episode]) -> tuple[Recalled, ...]:
    """Episodes as a trace keeps them: no text, which stays in memory alone."""
    return tuple(Recalled(id=e.id, score=round(e.score, 4), position=e.position) for e in episodes)
