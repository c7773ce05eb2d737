"""The actions an agent can take: what its LM may look up, and how any tool runs without a crash.

A tool works for the user of the current answer, read from ``dspy.settings``: never a closure over one user, so programs
may be shared.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from persona_dspy.agent.context import current_answer
from persona_dspy.agent.drafts import OUTCOME
from persona_dspy.agent.knowledge import KnowledgeSource
from persona_dspy.agent.on_loop import on_loop, wait_for
from persona_dspy.agent.recall import Recall
from persona_dspy.core import Episode, ResponseKind, clip_tokens, fenced, one_line
from persona_dspy.errors import BudgetExceeded, InputError
from persona_dspy.memory import MemoryCut, facts

__all__ = [
    "Observation",
    "ToolCall",
    "arun_tool",
    "past_lines",
    "personal_tools",
    "recall_history",
    "recall_profile",
    "run_tool",
    "search_tool",
]

_MOST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What came back from an action, as the LM is shown it: fenced data, or an error in one line."""

    tool: str
    text: str
    failed: bool = False


def recall_history(query: str, k: int = 4) -> str:
    """Find past queries of this user, and the user's own responses, by search words."""
    episodes = Recall(k=max(1, min(k, _MOST)))(query=query).episodes
    recorder = current_answer().recorder
    if recorder is not None:
        recorder.found(episodes)
    return past_lines(episodes) or "nothing"


def recall_profile() -> str:
    """What is true of this user over all past responses: counts, habits, recent changes."""
    answer = current_answer()
    cut, kind = answer.cut or MemoryCut(), answer.kind or ResponseKind(name="text")
    seen = answer.memory.before(cut.before, cut.exclude) if answer.memory is not None else ()
    found = [bullet.sentence for bullet in facts(seen, kind)]
    if not found:
        return f"nothing yet: {len(seen)} past responses"
    persona = answer.persona  # what it says the LM reads already
    told = {bullet.sentence for bullet in persona.bullets} if persona is not None else set[str]()
    return "\n".join(f"- {line}" for line in found if line not in told) or "no more than the notes on this user say"


def search_tool(source: KnowledgeSource, *, tokens: int = 120) -> dspy.Tool:
    """``search_knowledge(query, k)`` over a source; each document is cut to ``tokens`` estimated tokens."""

    def search_knowledge(query: str, k: int = 3) -> str:
        found = source.search(query, max(1, min(k, _MOST)))
        lines = [f"- {one_line(d.title)}: {one_line(d.text, tokens)} ({one_line(d.url)})" for d in found]
        return "\n".join(lines) or "nothing"

    about = "Find general knowledge (not about this user) by search words: titles and beginnings of documents."
    return dspy.Tool(search_knowledge, name="search_knowledge", desc=about)


def personal_tools(
    *,
    knowledge: KnowledgeSource | None = None,
    tools: Iterable[dspy.Tool | Callable[..., Any]] = (),
    personal: bool = True,
) -> dict[str, dspy.Tool]:
    """All tools of an agent by name: the user's memory (``personal``), knowledge where there is a source, one's own.

    Raises:
        InputError: two tools of one name, or one named ``finish``, which ends a ReAct loop.

    Example:
        >>> list(personal_tools())
        ['recall_history', 'recall_profile']
    """
    made = [dspy.Tool(recall_history), dspy.Tool(recall_profile)] if personal else []
    made += [search_tool(knowledge)] if knowledge is not None else []
    made += [tool if isinstance(tool, dspy.Tool) else dspy.Tool(tool) for tool in tools]
    found: dict[str, dspy.Tool] = {}
    for tool in made:
        name = tool.name or ""
        if name in found or name in ("", "finish"):
            raise InputError(
                f"tool {name!r}: expected a name other than {[*found, 'finish']}; give dspy.Tool(name=...)"
            )
        found[name] = tool
    return found


def past_lines(episodes: Sequence[Episode], *, tokens: int | None = None) -> str:
    """Episodes as a list, nearest last, each a line of query and response."""
    tokens = tokens or current_answer().sizes.query
    lines: list[str] = []
    for past in (e.interaction for e in reversed(episodes)):
        outcome = str(past.metadata.get(OUTCOME) or "")
        then = f" (before that: {one_line(outcome, tokens)})" if outcome else ""
        lines.append(f"- {one_line(past.query, tokens)} -> {one_line(past.response, tokens)}{then}")
    return "\n".join(lines)


def run_tool(tool: dspy.Tool, arguments: dict[str, Any], *, tokens: int) -> Observation:
    """Call a tool; its failure is an observation too. The result is cut to ``tokens`` estimated tokens and fenced.

    Raises:
        BudgetExceeded: the tool calls LMs, and the budget is spent.
    """
    try:
        return _observed(tool, tool(**arguments), tokens)
    except BudgetExceeded:
        raise
    except Exception as failure:  # noqa: BLE001 - a user's own tool may raise anything; the LM is told, and goes on
        return _failed(tool, failure)


async def arun_tool(tool: dspy.Tool, arguments: dict[str, Any], *, tokens: int) -> Observation:
    """``run_tool`` for asyncio: a tool that is no coroutine runs in a thread, so that the loop goes on."""
    try:
        if inspect.iscoroutinefunction(tool.func):
            return _observed(tool, await tool.acall(**arguments), tokens)
        return _observed(tool, await asyncio.to_thread(tool, **arguments), tokens)
    except BudgetExceeded:
        raise
    except Exception as failure:  # noqa: BLE001 - as above
        return _failed(tool, failure)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A step of a flow: ``run_tool`` or ``arun_tool``."""

    tool: dspy.Tool
    arguments: dict[str, Any]
    tokens: int

    def run(self) -> Observation:
        if on_loop():
            return wait_for(self.arun())
        return run_tool(self.tool, self.arguments, tokens=self.tokens)

    async def arun(self) -> Observation:
        return await arun_tool(self.tool, self.arguments, tokens=self.tokens)


def _observed(tool: dspy.Tool, result: Any, tokens: int) -> Observation:
    name = tool.name or "tool"
    return Observation(tool=name, text=fenced(clip_tokens(str(result), tokens), name))


def _failed(tool: dspy.Tool, failure: Exception) -> Observation:
    """The kind of failure and the first line of its message: no traceback, no file names of this machine."""
    told = (str(failure).strip().splitlines() or [""])[0]
    name = tool.name or "tool"
    text = fenced(clip_tokens(f"{type(failure).__name__}: {told}", 60), name)
    return Observation(tool=name, text=f"{name} failed.\n{text}", failed=True)
