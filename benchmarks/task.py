"""One user's task in the head to head: program, examples, meter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dspy

from benchmarks.model_meter import ModelMeter
from persona_dspy.agent import PersonaAgent, PersonalProgram
from persona_dspy.core import count_tokens
from persona_dspy.testing import FakeLM, Prompt, RuleFollower

HELD = 8  # interactions that judge, for every optimizer that holds some out
__all__ = ["HELD", "Meter", "Point", "Task"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The program that an optimizer would return after so many LM calls and tokens."""

    calls: int
    tokens: int
    program: PersonalProgram


class Meter:
    """Counts what reaches the LM, whoever asks."""

    def __init__(self, *, small: bool = False) -> None:
        self.calls = self.tokens = 0
        self.lm = FakeLM(self, small=small)
        self._follow = RuleFollower()

    def __call__(self, prompt: Prompt) -> Any:
        answer = self._follow(prompt)
        self.count(prompt.system + prompt.user + "".join(a + b for a, b in prompt.turns), str(answer))
        return answer

    def write(self, system: str, prompt: str, rule: Callable[[str], str]) -> str:
        """What the LM says to a prompt of a peer's own: by ``rule``, since it has no language."""
        return self.count(system + prompt, rule(prompt))

    def count(self, asked: str, answered: str) -> str:
        self.calls += 1
        self.tokens += count_tokens(asked) + count_tokens(answered)
        return answered


@dataclass(kw_only=True)
class Task:
    """One user's program and examples (oldest first), a meter, and the points a run leaves behind."""

    agent: PersonaAgent
    budget: int
    seed: int
    meter: Meter | ModelMeter = field(default_factory=Meter)
    points: list[Point] = field(default_factory=list)
    programs: dict[str, PersonaAgent] = field(default_factory=dict)

    @property
    def examples(self) -> list[dspy.Example]:
        return self.agent.examples()

    @property
    def spent(self) -> bool:
        return self.meter.calls >= self.budget

    def note(self, program: PersonalProgram) -> None:
        self.points.append(Point(calls=self.meter.calls, tokens=self.meter.tokens, program=program))

    def score(self, example: dspy.Example, prediction: Any) -> float:
        field_ = self.agent.response_field
        return self.agent.kind.score(example[field_], prediction.get(field_, ""))

    def metric(self, gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        """Score and feedback, as GEPA's metrics; what PersonaAlignment gets too."""
        score = self.score(gold, pred)
        said = "" if score >= 0.999 else f'The user\'s own response was "{gold[self.agent.response_field]}".'
        return dspy.Prediction(score=score, feedback=said or "This is the user's own response.")

    def number(self, gold: Any, pred: Any, trace: Any = None) -> float:
        return self.score(gold, pred)

    def instructed(self, text: str) -> PersonaAgent:
        """The program with other task instructions."""
        if text not in self.programs:
            program = self.agent.deepcopy()
            program.respond.predict.signature = program.respond.predict.signature.with_instructions(text)
            self.programs[text] = program
        return self.programs[text]

    @property
    def instructions(self) -> str:
        return self.agent.respond.predict.signature.instructions
