"""TextGrad and LangMem in the head to head: they speak to an LM in formats of their own.

What the LM deduces from the mistakes they show is what it deduces for everybody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from statistics import fmean
from typing import Any

import dspy

from benchmarks.task import HELD, Task
from persona_dspy.testing import Case, deduced, heeded, merged

__all__ = ["langmem", "textgrad"]


def _rounds(task: Task, size: int) -> Iterator[tuple[dspy.Example, ...]]:
    fit = task.examples[:-HELD]
    return islice(zip(*[cycle(reversed(fit))] * size, strict=False), 100)  # latest first, as ours


def textgrad(task: Task) -> None:
    """TextGrad's prompt optimization tutorial: batches of 3, one step each, reverted where validation got worse."""
    import textgrad as tg
    from textgrad.autograd import StringBasedFunction
    from textgrad.engine import EngineLM

    class Engine(EngineLM):  # type: ignore[misc]
        model_string = "rule-follower"

        def __init__(self, answer: Callable[[str, str], str]) -> None:
            self.answer = answer

        def generate(self, prompt: Any, system_prompt: Any = None, **options: Any) -> str:
            return self.answer(str(prompt), system_prompt or "")

        __call__ = generate

    query, response = task.agent.query_field, task.agent.response_field
    forward = Engine(lambda prompt, system: str(task.instructed(system)(**{query: prompt})[response]))
    backward = Engine(lambda prompt, system: task.meter.write(system, prompt, _textgrad_answer))
    tg.set_backward_engine(backward, override=True)
    text = tg.Variable(task.instructions, requires_grad=True, role_description="system prompt of an assistant")
    model = tg.BlackboxLLM(forward, system_prompt=text)
    optimizer = tg.TextualGradientDescent(engine=backward, parameters=[text])
    purpose = "checks whether the prediction is the user's own response"
    equal = StringBasedFunction(lambda prediction, own_response: str(prediction.value == own_response.value), purpose)

    def validate() -> float:
        return fmean(task.score(e, task.instructed(text.value)(**e.inputs())) for e in task.examples[-HELD:])

    best = validate()
    for batch in _rounds(task, 3):
        if task.spent:
            return
        optimizer.zero_grad()
        losses: list[Any] = []
        for example in batch:
            said = model(tg.Variable(example[query], requires_grad=False, role_description="query to the assistant"))
            own = tg.Variable(str(example[response]), requires_grad=False, role_description="the user's own response")
            losses.append(equal(inputs={"prediction": said, "own_response": own}))
        tg.sum(losses).backward()
        before = text.value
        try:
            optimizer.step()
        except IndexError:
            continue  # an answer without the tags that TextGrad looks for: no step
        score = validate()
        if score < best:
            text.set_value(before)
        else:
            best = score
            task.note(task.instructed(text.value))


def _textgrad_answer(prompt: str) -> str:
    """What the LM says to TextGrad: feedback on a prediction, feedback on the system prompt, or a new system prompt."""
    if "<IMPROVED_VARIABLE>" in prompt:
        current = re.search(r"<LM_SYSTEM_PROMPT> (.*?) </LM_SYSTEM_PROMPT>", prompt, re.DOTALL)
        shown = re.findall(
            r"<LM_INPUT> (.*?) </LM_INPUT>\s*<LM_OUTPUT> (.*?) </LM_OUTPUT>.*?<FEEDBACK>(.*?)</FEEDBACK>",
            prompt,
            re.DOTALL,
        )
        wrong = [(q, o, g) for q, o, said in shown for g in re.findall(r'should have been "([^"]+)"', said)]
        cases = [Case(query=q, ours=o, gold=g) for q, o, g in wrong]
        new = merged(current.group(1) if current else "", deduced(cases) if cases else [])
        return f"<IMPROVED_VARIABLE>{new}</IMPROVED_VARIABLE>"
    if inputs := re.search(r"\*\*Prediction\(.*?\)\*\*: (.*?)\n\n\*\*Own response\(.*?\)\*\*: (.*?) </INPUTS", prompt):
        said, own = inputs.groups()
        return "It is right." if said == own else f'The response should have been "{own}".'
    found = re.search(r'(The response should have been "[^"]+"\.)', prompt)
    return found.group(1) if found else "It is right."


def langmem(task: Task) -> None:
    """LangMem's gradient optimizer: three annotated trajectories a call; it has no validation, so the latest counts."""
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langmem import create_prompt_optimizer

    class Chat(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "rule-follower"

        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self.bind(tools=tools, **options)

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
            asked = "\n".join(str(m.content) for m in messages)
            names = [t["function"]["name"] if isinstance(t, dict) else t.__name__ for t in options["tools"]]
            name, args = _langmem_answer(asked, names)
            task.meter.count(asked, str(args))
            call = {"name": name, "args": args, "id": f"call-{task.meter.calls}"}
            return ChatResult(generations=[ChatGeneration(message=AIMessage(content="", tool_calls=[call]))])

    query, response = task.agent.query_field, task.agent.response_field
    optimizer = create_prompt_optimizer(Chat(), kind="gradient")
    text = task.instructions
    for batch in _rounds(task, 3):
        if task.spent:
            return
        program = task.instructed(text)
        told: list[Any] = []
        for example in batch:
            said = program(**example.inputs())
            turns = [
                {"role": "user", "content": f"query: {example[query]}"},
                {"role": "assistant", "content": f"our response: {said[response]}"},
            ]
            told.append((turns, task.metric(example, said).feedback))
        text = optimizer.invoke({"trajectories": told, "prompt": text})
        task.note(task.instructed(text))


def _langmem_answer(asked: str, tools: Sequence[str]) -> tuple[str, dict[str, Any]]:
    if "OptimizedPromptOutput" in tools:
        current = re.search(r"<current_prompt>\n(.*?)\n</current_prompt>", asked, re.DOTALL)
        wanted = re.search(r"<recommendations>\n(.*?)\n</recommendations>", asked, re.DOTALL)
        assert current and wanted
        return "OptimizedPromptOutput", {
            "analysis": "",
            "improved_prompt": merged(current.group(1), heeded(wanted.group(1))),
        }
    if "recommend" not in tools:
        return "think", {"thought": "What do the sessions show?"}
    shown = re.findall(r"query: (.*?)\n.*?our response: (.*?)\n.*?<FEEDBACK>\n(.*?)\n</FEEDBACK>", asked, re.DOTALL)
    golds = [(q, o, g) for q, o, said in shown for g in re.findall(r'own response was "([^"]+)"', said)]
    rules = deduced([Case(query=q.strip(), ours=o.strip(), gold=g) for q, o, g in golds]) if golds else []
    advice = {"hypotheses": "The prompt lacks the user's own rules.", "full_recommendations": "\n".join(rules)}
    return "recommend", {"warrants_adjustment": bool(rules), **advice}
