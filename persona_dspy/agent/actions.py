"""The action step: which tools are called, with what words.

In the paper's words ``a_t ~ pi_P(. | c_t)``: the persona is in the system message of the call that chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, get_args

import dspy
from dspy.utils.exceptions import AdapterParseError
from pydantic import BaseModel, Field, create_model

from persona_dspy.agent.context import current_answer, recording
from persona_dspy.agent.knowledge import KnowledgeSource
from persona_dspy.agent.react import Gather
from persona_dspy.agent.recall import Recall
from persona_dspy.agent.recorder import Recorder, recalled_of
from persona_dspy.agent.steering import Steering
from persona_dspy.agent.steps import Ask, Steps, adrive, drive
from persona_dspy.agent.tools import Observation, ToolCall, past_lines, personal_tools
from persona_dspy.agent.trace import Step
from persona_dspy.core import Episode, fenced, one_line, remember
from persona_dspy.errors import InputError
from persona_dspy.lm import role
from persona_dspy.memory import ranked, varied

__all__ = ["Act", "Policy", "past_block"]

Policy = Literal["fixed", "plan", "react", "plain", "none"]

_CANDIDATES = 128  # near episodes among which recency and the persona decide


class ChooseActions(dspy.Signature):
    """Choose what to look up before the query is answered for this user. The notes on the user say what suits this
    user: which tools, which words."""

    query: str = dspy.InputField(desc="what has to be answered next; do not answer it here")


class Act(dspy.Module):
    """Chooses and runs actions for one query; ``Prediction(episodes, observations)``: episodes to be shown, best
    first, and what other tools gave, as fenced texts, oldest first. Steps go to the recorder of the answer.

    Args:
        policy: ``"fixed"``: recall by the query itself, no LM call. ``"plan"``: one LM call, kept to a schema, picks
            at most two tools and their words; for small models. ``"react"``: the LM picks a tool, sees what comes
            back, and goes on until it knows enough. ``"none"``: nothing is looked up; ``"plain"``: as
            ``"fixed"``, but the persona has no say in it: both for comparisons. Whatever an LM picks, recall by
            the query itself fills up to k episodes, so that a poor choice costs nothing.
        recall: how many episodes; by default as many as the LM's context has room for (``lm.Sizes``).
        knowledge: where ``search_knowledge`` looks; None = no such tool.
        tools: one's own, ``dspy.Tool`` or functions; failures of theirs are observations.
        personal: whether the tools that look into the user's memory are among them.
        steps: ``react``: tool calls at most.
        tokens: cap of one observation, estimated; by default by the LM's context.

    Raises:
        InputError: an unknown policy, tools of one name, or, with ``plan``, a tool that needs several arguments.

    Example:
        >>> list(Act(policy="react").tools)
        ['recall_history', 'recall_profile']
    """

    def __init__(
        self,
        *,
        policy: Policy = "fixed",
        recall: Recall | None = None,
        knowledge: KnowledgeSource | None = None,
        tools: Iterable[dspy.Tool | Callable[..., Any]] = (),
        personal: bool = True,
        steps: int = 4,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        if policy not in get_args(Policy):
            raise InputError(f"actions {policy!r}: expected one of {get_args(Policy)}, such as 'fixed'")
        self.policy: Policy = policy
        self.recall = recall or Recall()
        self.tools = personal_tools(knowledge=knowledge, tools=tools, personal=personal)
        self.tokens = tokens
        if policy == "plan":
            told = tuple((name, _one_argument(tool) is not None, tool.desc or "") for name, tool in self.tools.items())
            self.choose = dspy.Predict(_plan_signature(told))
        elif policy == "react":
            self.gather = Gather(self.tools, steps=steps, tokens=tokens)

    def forward(self, query: str) -> dspy.Prediction:
        return drive(self._flow(query))

    async def aforward(self, query: str) -> dspy.Prediction:
        return await adrive(self._flow(query))

    def _flow(self, query: str) -> Steps[dspy.Prediction]:
        with _ensured_recorder() as recorder, role("act"):
            observations: list[Observation] = []
            if self.policy == "plan":
                try:
                    planned = (yield Ask(self.choose, {"query": query})).actions
                except (AdapterParseError, dspy.ContextWindowExceededError) as failure:
                    planned = _no_plan(recorder, failure)
                for tool, arguments in self._calls(planned):
                    cap = self.tokens or current_answer().sizes.observation
                    observations.append((yield ToolCall(tool, arguments, cap)))
            elif self.policy == "react":
                observations = (yield Ask(self.gather, {"query": query})).observations
            return (yield from self._found(query, recorder, observations))

    def _calls(self, planned: Sequence[BaseModel] | None) -> list[tuple[dspy.Tool, dict[str, Any]]]:
        calls: list[tuple[dspy.Tool, dict[str, Any]]] = []
        for values in (action.model_dump() for action in planned or ()):
            tool = self.tools[values["action"]]
            argument = _one_argument(tool)
            arguments = {argument: values["words"]} if argument else {}
            if tool.name == "recall_history":
                arguments["k"] = max(1, self.recall.size)
            if (tool, arguments) not in calls:
                calls.append((tool, arguments))
        return calls

    def _found(self, query: str, recorder: Recorder, observations: Sequence[Observation]) -> Steps[dspy.Prediction]:
        k = 0 if self.policy == "none" else self.recall.size
        # Half a recall at most by the LM's own words: what the query itself finds is the better guess of a weak one.
        chosen = {e.id: e for found in recorder.finds for e in found[: max(1, k // 2)]} if k else {}
        episodes = list(chosen.values())[:k]
        if len(episodes) < k:
            near = yield from self._by_query(query, k - len(episodes), frozenset(chosen), recorder)
            episodes = [*near, *episodes]
        told = [o.text for o in observations if not (k and o.tool == "recall_history" and not o.failed)]
        return dspy.Prediction(episodes=episodes, observations=told)

    def _by_query(self, query: str, k: int, taken: frozenset[str], recorder: Recorder) -> Steps[list[Episode]]:
        at = recorder.now
        answer = current_answer()
        steering = Steering.off() if self.policy == "plain" else answer.steering
        words, steered_by = steering.searched(query, answer.kind, answer.persona)
        near = (yield Ask(self.recall, {"query": words, "k": max(_CANDIDATES, k)})).episodes
        others = [e for e in near if e.id not in taken]
        favours = steering.favours(query, answer.persona)
        plain = self.policy == "plain" or steering.favour
        of_scale = answer.kind is not None and answer.kind.name == "rating"
        found = ranked(others, favours, k) if plain else varied(others, k, every_answer=not of_scale)
        if found:
            step = Step(
                action="recall_history",
                query=one_line(words),
                recalled=recalled_of(found),
                steered_by=steered_by,
                at=round(at, 6),
                seconds=round(recorder.now - at, 6),
            )
            recorder.note(step)
        return found


@remember(maxsize=256)
def _plan_signature(tools: tuple[tuple[str, bool, str], ...]) -> Any:
    """The signature of the planning call: tools as a closed choice, so that any model's answer can be run."""
    names = tuple(name for name, _, _ in tools)
    words = Annotated[str, Field(json_schema_extra={"maxLength": 80})]
    action = create_model("Action", action=(Literal[names], ...), words=(words, ...))  # type: ignore[valid-type]
    kind: Any = Annotated[list[action], Field(json_schema_extra={"minItems": 1, "maxItems": 2})]
    listed = "\n".join(f"{name}: {one_line(desc)}{'' if takes else ' Words: none.'}" for name, takes, desc in tools)
    chosen = dspy.OutputField(desc="one or two look-ups")
    instructions = f"{ChooseActions.instructions}\n{listed}"
    return ChooseActions.with_instructions(instructions).append("actions", chosen, kind)


def _one_argument(tool: dspy.Tool) -> str | None:
    """The argument that takes the words: the only one without a default, else the first text; None where none does.

    Raises:
        InputError: several have no default.
    """
    arguments: Mapping[str, Any] = tool.args or {}
    needed = [name for name, schema in arguments.items() if "default" not in schema]
    if len(needed) > 1:
        raise InputError(f"tool {tool.name!r} needs {needed}: expected one argument at most; use actions='react'")
    texts = [name for name, schema in arguments.items() if schema.get("type") == "string"]
    return (needed or texts or [None])[0]


def _no_plan(recorder: Recorder, failure: Exception) -> list[BaseModel]:
    """A plan that cannot be read plans nothing; the trace says so."""
    said = one_line(str(failure))[:200]
    recorder.note(Step(action="plan", query="", observation=said, at=round(recorder.now, 6), failed=True))
    return []


@contextmanager
def _ensured_recorder() -> Generator[Recorder]:
    """The answer's recorder, or one of our own where the module is used alone."""
    current = current_answer().recorder
    if current is not None:
        yield current
        return
    with recording() as recorder:
        yield recorder


def past_block(episodes: Sequence[Episode], *, tokens: int = 60) -> str:
    """Episodes as one fenced list, nearest last; each query and response clipped to ``tokens`` estimated tokens."""
    return fenced(past_lines(episodes, tokens=tokens), "this user's past queries and own responses")
