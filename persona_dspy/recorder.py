"""Collecting a trace while a query is answered: LM calls and tool calls, by DSPy's own hooks. Owns: ``Recorder``.

Not here: the record itself (trace.py), counting and budgets (ledger.py), which go on unchanged beneath it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from persona_dspy.records import Episode
from persona_dspy.trace import Call, Recalled, Step
from persona_dspy.untrusted import clip_tokens, data_text, one_line

__all__ = ["Recorder", "current_recorder", "recalled_of", "recording"]

_SHOWN = 400  # estimated tokens of an observation that a trace keeps


class Recorder(BaseCallback):
    """Steps and LM calls of one answer, in the order they began; may be written to by several threads.

    As a DSPy callback it sees LM and tool calls start and end; as DSPy's usage tracker it is told tokens, and tells
    whoever tracked usage before it.
    """

    def __init__(self, tracker: Any = None) -> None:
        self.tracker = tracker
        self.started = time.time()
        self.calls: list[Call] = []
        self.steps: list[Step] = []
        self.finds: list[tuple[Episode, ...]] = []
        self._began = time.perf_counter()
        self._open: dict[str, tuple[float, str, Any, list[dict[str, Any]]]] = {}
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

    # --- DSPy's hooks -------------------------------------------------------------------------------------------

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        named = dspy.settings.get("persona_role") or "respond"
        self._open[call_id] = (self.now, named, getattr(instance, "model", ""), [])

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        opened = self._open.pop(call_id, None)
        if opened is None:
            return
        at, named, model, usages = opened
        tokens = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0}
        for usage in usages:
            details = usage.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens") if isinstance(details, dict) else getattr(details, "cached_tokens", 0)
            tokens["input_tokens"] += usage.get("prompt_tokens") or 0
            tokens["output_tokens"] += usage.get("completion_tokens") or 0
            tokens["cached_tokens"] += cached or 0
        failed = exception is not None
        spent = round(self.now - at, 6)
        call = Call(
            role=named,
            model=str(model),
            at=round(at, 6),
            seconds=spent,
            cached=not usages and not failed,
            failed=failed,
            **tokens,
        )
        self.calls.append(call)

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        told: dict[str, Any] = inputs.get("kwargs") or inputs
        words = ", ".join(str(v) if len(told) == 1 else f"{k}={v}" for k, v in told.items())
        self._open[call_id] = (self.now, instance.name or "tool", clip_tokens(one_line(words), 60), [])

    def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        opened = self._open.pop(call_id, None)
        if opened is None:
            return
        at, name, words, _ = opened
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

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """DSPy's usage-tracker protocol: one entry for each answer that an engine gave."""
        opened = self._open.get(ACTIVE_CALL_ID.get() or "")
        if opened is not None:
            opened[3].append(dict(usage_entry))
        if self.tracker is not None:
            self.tracker.add_usage(lm, usage_entry)

    @property
    def usage_data(self) -> Any:
        """DSPy's usage-tracker protocol, for trackers opened inside this one."""
        return getattr(self.tracker, "usage_data", {})

    def get_total_tokens(self) -> dict[str, dict[str, Any]]:
        """DSPy's usage-tracker protocol."""
        return self.tracker.get_total_tokens() if self.tracker is not None else {}


def recalled_of(episodes: Iterable[Episode]) -> tuple[Recalled, ...]:
    """Episodes as a trace keeps them: no text, which stays in memory alone."""
    return tuple(Recalled(id=e.id, score=round(e.score, 4), position=e.position) for e in episodes)


@contextmanager
def recording() -> Generator[Recorder]:
    """Record what happens inside; in this thread, and in those that copy its context."""
    recorder = Recorder(dspy.settings.get("usage_tracker"))
    callbacks = dspy.settings.get("callbacks") or []
    with dspy.context(callbacks=[*callbacks, recorder], usage_tracker=recorder, persona_recorder=recorder):
        yield recorder


def current_recorder() -> Recorder | None:
    """The recorder of the answer being given."""
    return dspy.settings.get("persona_recorder")
