"""Recorder: collects LM calls and tool calls into a trace while a query is answered.

Ledgers and budgets beneath it count on unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from persona_dspy.agent.trace import Call, Recalled, Step
from persona_dspy.core import Episode, clip_tokens, data_text, one_line

__all__ = ["Recorder", "recalled_of"]

_SHOWN = 400  # estimated tokens of an observation that a trace keeps


@dataclass(slots=True, kw_only=True)
class _Draft:
    model: str
    role: str
    at: float | None = None  # when the LM call now open began
    usages: list[dict[str, Any]] = field(default_factory=list)


_DRAFT: ContextVar[_Draft | None] = ContextVar("persona_trace_draft", default=None)


class Recorder(BaseCallback):
    """Steps and LM calls of one answer, in the order they began; may be written to by several threads.

    The persona adapters say when LM calls begin and end; as DSPy's usage tracker it is told tokens, and tells whoever
    tracked usage before it; as a DSPy callback it sees tools.
    """

    def __init__(self, tracker: Any = None) -> None:
        self.tracker = tracker
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

    # --- LM calls: told by the persona adapters, which send every prompt -----------------------------------------

    @contextmanager
    def calling(self, lm: Any) -> Generator[None]:
        """An adapter's work on one predictor's call: prompts, LM calls (a fallback's too), parsing."""
        draft = _Draft(model=str(getattr(lm, "model", "")), role=dspy.settings.get("persona_role") or "respond")
        token = _DRAFT.set(draft)
        try:
            yield
        except BaseException:
            self.answered(failed=True)
            raise
        finally:
            _DRAFT.reset(token)

    def asked(self) -> None:
        """A prompt is ready: the LM call begins."""
        draft = _DRAFT.get()
        if draft is not None:
            draft.at, draft.usages = self.now, []

    def answered(self, *, failed: bool = False) -> None:
        """The LM call that began last has ended; nothing where none is open (its answer could not be parsed)."""
        draft = _DRAFT.get()
        if draft is None or draft.at is None:
            return
        at, draft.at = draft.at, None
        self._note_call(draft, at, self.now - at, draft.usages, failed=failed)

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """DSPy's usage-tracker protocol: one entry for each answer that an engine gave."""
        draft = _DRAFT.get()
        if draft is not None and draft.at is not None:
            draft.usages.append(dict(usage_entry))
        else:  # an LM called past all adapters, by a program's own code: how long it took is not known
            self._note_call(_Draft(model=lm, role="respond"), self.now, 0.0, [usage_entry])
        if self.tracker is not None:
            self.tracker.add_usage(lm, usage_entry)

    def _note_call(
        self, draft: _Draft, at: float, seconds: float, usages: Sequence[dict[str, Any]], *, failed: bool = False
    ) -> None:
        counts = [0, 0, 0]
        for usage in usages:
            details = usage.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens") if isinstance(details, dict) else getattr(details, "cached_tokens", 0)
            for n, found in enumerate((usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)):
                counts[n] += found or 0
        call = Call(
            role=draft.role,
            model=draft.model,
            at=round(at, 6),
            seconds=round(seconds, 6),
            input_tokens=counts[0],
            output_tokens=counts[1],
            cached_tokens=counts[2],
            cached=not usages and not failed,
            failed=failed,
        )
        self.calls.append(call)

    # --- Tool calls: DSPy's callbacks, installed only where there are tools ---------------------------------------

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        told: dict[str, Any] = inputs.get("kwargs", inputs)
        words = ", ".join(str(v) if len(told) == 1 else f"{k}={v}" for k, v in told.items())
        self._open[call_id] = (self.now, instance.name or "tool", clip_tokens(one_line(words), 60))

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
