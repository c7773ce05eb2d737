"""Trace: what happened while one query was answered, step by step; with its JSON and its spans.

In the paper's words: the persona is the policy, a step's action is what it chose, the observation what came back.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from persona_dspy.core import Usage

__all__ = ["Call", "Recalled", "Span", "SpanKind", "Step", "Trace"]

SpanKind = Literal["AGENT", "LLM", "RETRIEVER", "TOOL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """An episode that was found: its id, its place in time (0 = oldest) and the score (higher is nearer, comparable
    within one step only)."""

    id: str
    score: float
    position: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One action: the tool's name, the words it was called with, and the observation (empty for recall as turns).

    ``steered_by``: ids of the persona's bullets that had a say in the words. ``at``: seconds since the query came;
    ``seconds``: how long it took. ``failed``: the observation is an error, which the LM was told.
    """

    action: str
    query: str
    observation: str = ""
    recalled: tuple[Recalled, ...] = ()
    steered_by: tuple[str, ...] = ()
    at: float = 0.0
    seconds: float = 0.0
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One LM call: what it was for, on which model, its tokens, and when (seconds since the query came).

    ``cached``: DSPy's cache answered, no engine was asked and no tokens were paid. ``predictor``: which predictor of a
    personalized program asked, as DSPy names it; empty where that is not known.
    """

    role: str
    model: str
    at: float
    seconds: float
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cached: bool = False
    failed: bool = False
    predictor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time with a name, in nanoseconds since 1970; ``parent`` is an index into the list of spans, None
    for the first. ``inputs``, ``outputs`` and ``attributes`` are JSON-safe."""

    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    parent: int | None
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    attributes: dict[str, Any]
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How one response came about. ``persona_version``/``persona`` are those in force when the query was answered.

    ``started``: seconds since 1970; ``seconds``: from the query to the response. ``inputs``: the other input fields,
    JSON-safe. ``id``: by which feedback finds this answer; where the trace is sent to MLflow, its id there too.
    """

    user_id: str
    query: str
    persona_version: int
    persona: str
    steps: tuple[Step, ...] = ()
    calls: tuple[Call, ...] = ()
    response: str = ""
    started: float = 0.0
    seconds: float = 0.0
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])
    id: str = field(default_factory=lambda: f"tr-{secrets.token_hex(16)}")

    @property
    def recalled(self) -> tuple[Recalled, ...]:
        """All recalled episodes, in step order, each once."""
        seen = {r.id: r for step in reversed(self.steps) for r in reversed(step.recalled)}
        return tuple(reversed(list(seen.values())))

    @property
    def usage(self) -> Usage:
        """All LM calls together; ``usd`` stays None here, the ledger knows prices."""
        paid = [c for c in self.calls if not c.cached]
        return Usage(
            calls=len(paid),
            input_tokens=sum(c.input_tokens for c in paid),
            output_tokens=sum(c.output_tokens for c in paid),
            cached_tokens=sum(c.cached_tokens for c in paid),
            cache_hits=len(self.calls) - len(paid),
            failures=sum(c.failed for c in paid),
            seconds=sum(c.seconds for c in paid),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self)

    def to_json(self) -> str:
        """The trace as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Inverse of ``to_json``.

        Raises:
            ValueError: the text is no trace.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_json(text)

    def spans(self) -> list[Span]:
        """The trace as spans: the agent's first, then one for each step and LM call, by start. LM calls made while a
        tool ran lie inside that tool's span. What a tracing back end (MLflow, OpenTelemetry) needs, and no more."""
        found: list[Span] = [
            Span(
                name=f"PersonaAgent {self.user_id}",
                kind="AGENT",
                start_ns=self._ns(0.0),
                end_ns=self._ns(self.seconds),
                parent=None,
                inputs={
                    "query": self.query,
                    **({"inputs": self.inputs} if self.inputs else {}),
                    "persona": self.persona,
                },
                outputs={"response": self.response},
                attributes={"user_id": self.user_id, "persona_version": self.persona_version, **self.usage.to_dict()},
            )
        ]
        tools: list[tuple[Step, int]] = []
        for item in sorted([*self.steps, *self.calls], key=lambda i: (i.at, -i.seconds)):
            if isinstance(item, Step):
                tools.append((item, len(found)))
                found.append(self._step_span(item))
            else:
                inside = [
                    n for step, n in tools if step.at <= item.at and item.at + item.seconds <= step.at + step.seconds
                ]
                found.append(self._call_span(item, inside[-1] if inside else 0))
        return found

    def _step_span(self, step: Step) -> Span:
        recalled = [{"id": r.id, "score": r.score, "position": r.position} for r in step.recalled]
        return Span(
            name=step.action,
            kind="RETRIEVER" if step.action == "recall_history" else "TOOL",
            start_ns=self._ns(step.at),
            end_ns=self._ns(step.at + step.seconds),
            parent=0,
            inputs={"query": step.query},
            outputs={"observation": step.observation, "recalled": recalled},
            attributes={"steered_by": list(step.steered_by)},
            failed=step.failed,
        )

    def _call_span(self, call: Call, parent: int) -> Span:
        counts = {name: getattr(call, name) for name in ("input_tokens", "output_tokens", "cached_tokens", "cached")}
        return Span(
            name=call.predictor or call.role,
            kind="LLM",
            start_ns=self._ns(call.at),
            end_ns=self._ns(call.at + call.seconds),
            parent=parent,
            inputs={},
            outputs={},
            attributes={"model": call.model, "role": call.role, **counts},
            failed=call.failed,
        )

    def _ns(self, seconds: float) -> int:
        return int((self.started + seconds) * 1e9)
