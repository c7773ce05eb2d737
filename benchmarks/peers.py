"""Optimizers that the head to head compares, each by its own documentation's settings.

Every peer starts from the same program, asks the same LM, and is told the same of a mistake: what the user answered.
TextGrad and LangMem speak to an LM in their own formats; what the LM deduces from the mistakes they show is the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from typing import Any

import dspy

from benchmarks.foreign import langmem, textgrad
from benchmarks.task import HELD, Point, Task
from optimizers import HeldOutGate, PersonaAlignment, PersonaGEPAAdapter, RewriteProposer
from persona_dspy.agent import PersonalProgram
from persona_dspy.core import Persona
from persona_dspy.lm import Budget
from persona_dspy.testing import Prompt

__all__ = ["PEERS", "missing", "run"]


def aligned(task: Task, **options: Any) -> None:
    """PersonaAlignment; its events say which persona it would return: one that leads, and the one that stays."""
    optimizer = PersonaAlignment(
        budget=Budget(calls=task.budget), observers=[_accepted(task)], progress=False, **options
    )
    optimizer.compile(task.agent, trainset=task.examples)


def _accepted(task: Task) -> Callable[[dict[str, Any]], None]:
    current = task.agent.persona.value
    shown = [current.render()]

    def observe(event: dict[str, Any]) -> None:
        if event["event"] in ("leads", "judged") and event["persona"] != shown[-1]:
            shown.append(event["persona"])
            text = event["persona"]
            persona = Persona.from_text(text, user_id=current.user_id) if text else Persona(user_id=current.user_id)
            task.note(task.agent.with_persona(persona))

    return observe


def ours(task: Task) -> None:
    aligned(task, metric=task.metric)


def ours_lm_loss(task: Task) -> None:
    aligned(task, loss="batch")


def in_paper(task: Task) -> None:
    optimizer = PersonaAlignment.as_in_paper(budget=Budget(calls=task.budget), observers=[_accepted(task)])
    optimizer.compile(task.agent, trainset=task.examples)


def blind(task: Task) -> None:
    aligned(task, gate=HeldOutGate(HELD), proposer=RewriteProposer(blind=True), loss="batch")


class _GEPAWatch:
    """GEPA tells of every program it scored on the whole valset."""

    def __init__(self, task: Task, build: Callable[[dict[str, str]], PersonalProgram]) -> None:
        self.task, self.build = task, build

    def on_valset_evaluated(self, event: Any) -> None:
        if event["is_best_program"]:
            self.task.note(self.build(event["candidate"]))


def gepa(task: Task, minibatch: int = 3) -> None:
    """dspy.GEPA with its defaults, as budget the calls that all have."""
    name = next(iter(dict(task.agent.named_predictors())))
    watch = _GEPAWatch(task, lambda candidate: task.instructed(candidate[name]))
    optimizer = dspy.GEPA(
        metric=task.metric,
        max_metric_calls=task.budget,
        reflection_lm=task.meter.lm,
        reflection_minibatch_size=minibatch,
        num_threads=1,
        seed=task.seed,
        gepa_kwargs={"callbacks": [watch], "stop_callbacks": [lambda state: task.spent]},
    )
    optimizer.compile(task.agent, trainset=task.examples[:-HELD], valset=task.examples[-HELD:])


def gepa_on_persona(task: Task) -> None:
    """gepa.optimize on the persona's text, through our adapter."""
    import gepa as package

    examples = task.examples
    held = examples[-HELD:]
    adapter = PersonaGEPAAdapter(task.agent, task.metric, held=[e.interaction_id for e in held])
    package.optimize(
        seed_candidate=adapter.seed,
        trainset=examples[:-HELD],
        valset=held,
        adapter=adapter,  # type: ignore[arg-type]
        reflection_lm=lambda prompt: str(task.meter(Prompt(system="", user=str(prompt)))),
        max_metric_calls=task.budget,
        stop_callbacks=[lambda state: task.spent],
        callbacks=[_GEPAWatch(task, adapter.program_of)],  # type: ignore[list-item]
        seed=task.seed,
    )


def simba(task: Task) -> None:
    """dspy.SIMBA on batches of 8, 3 candidates and 2 steps: its 32, 6 and 8 need 800 calls and more."""
    optimizer = dspy.SIMBA(
        metric=task.number, bsize=8, num_candidates=3, max_steps=2, prompt_model=task.meter.lm, num_threads=1
    )
    task.note(optimizer.compile(task.agent, trainset=task.examples[-16:], seed=task.seed))


def copro(task: Task) -> None:
    """dspy.COPRO, breadth 3 and depth 2 on the 16 latest: its 10 and 3 need 30 evaluations of the trainset."""
    optimizer = dspy.COPRO(prompt_model=task.meter.lm, metric=task.number, breadth=3, depth=2)
    options = {"num_threads": 1, "display_progress": False}
    task.note(optimizer.compile(task.agent, trainset=task.examples[-16:], eval_kwargs=options))


PEERS: dict[str, tuple[Callable[[Task], None], str]] = {
    "PersonaAlignment": (ours, ""),
    "PersonaAlignment, feedback by the LM": (ours_lm_loss, ""),
    "PersonaAlignment, paper mode": (in_paper, ""),
    "rewrites without feedback (control)": (blind, ""),
    "dspy.GEPA": (gepa, "gepa"),
    "dspy.GEPA, minibatch of 12": (lambda task: gepa(task, 12), "gepa"),
    "gepa on the persona (our adapter)": (gepa_on_persona, "gepa"),
    "dspy.SIMBA": (simba, ""),
    "dspy.COPRO": (copro, ""),
    "TextGrad": (textgrad, "textgrad"),
    "LangMem, gradient": (langmem, "langmem"),
}
"""Name in the report -> (how it runs, the package it needs beside ours)."""


def missing(name: str) -> str:
    """The package that a peer lacks here, or nothing."""
    package = PEERS[name][1]
    return package if package and importlib.util.find_spec(package) is None else ""


def run(name: str, task: Task) -> list[Point]:
    """The points that a peer reaches within the budget, with its own printing muted."""
    logging.disable(logging.CRITICAL)
    muted = io.StringIO()
    with contextlib.redirect_stdout(muted), contextlib.redirect_stderr(muted), dspy.context(lm=task.meter.lm):
        PEERS[name][0](task)
    return [p for p in task.points if p.calls <= task.budget]
