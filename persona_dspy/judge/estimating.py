"""What an evaluation would take, by rehearsing a part of it with an LM that costs nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy

from persona_dspy.core import Usage
from persona_dspy.judge.asking import ask_all
from persona_dspy.judge.people import Case
from persona_dspy.judge.results import Judged, Results, read_answers
from persona_dspy.lm import Estimate, TerseJSON, rehearsal_lm
from persona_dspy.memory import BM25

if TYPE_CHECKING:
    from persona_dspy.judge.experiment import Experiment

__all__ = ["estimate_evaluation", "sampled"]

_QUERIES = 2


def estimate_evaluation(experiment: Experiment, *, users: int = 3) -> Estimate:
    """Calls, tokens and dollars of what is not answered yet, a part for each system.

    So many users, from the shortest to the longest history, go through all systems with an LM that mostly errs, which
    is the dearer case for alignment; their means stand for the others. Tokens are estimated from characters, and a
    reasoning model's thoughts are not among them. Nothing is sent to anybody: knowledge tools find nothing, and
    episodes are found by words.
    """
    people = [replace(p, queries=p.queries[:_QUERIES]) for p in sampled(experiment.people, users)]
    setting = experiment.setting
    names = {*setting.retrievers, setting.paper_retrieval}
    free = dict.fromkeys(names, BM25())
    setting = replace(setting, knowledge=_Silent() if setting.knowledge else None, retrievers=free)
    with tempfile.TemporaryDirectory() as folder, dspy.context(lm=rehearsal_lm(), adapter=TerseJSON()):
        results = Results(folder, {}, {})
        ask_all(people, experiment.chosen, setting, results, workers=1)
        rows = results.rows
    kept = read_answers(experiment.out)
    parts = [(v.name, _left(v.name, rows, kept, experiment.people)) for v in experiment.chosen]
    lm: Any = experiment.lm
    named_local = isinstance(lm, str) and (lm.startswith("local") or lm.endswith(".gguf"))
    return Estimate.of(parts, None if named_local else experiment.model())


def _left(system: str, rehearsed: Sequence[Judged], kept: Sequence[Judged], people: Sequence[Case]) -> Usage:
    """What this system still costs: means of the rehearsal times what ``kept`` does not have."""
    answered = {(r.user_id, r.query_id) for r in kept if r.kind == "answer" and r.system == system}
    prepared = {r.user_id for r in kept if r.kind == "prepared" and r.system == system}
    open_queries = {p.user_id: sum((p.user_id, q.id) not in answered for q in p.queries) for p in people}
    rows = [r for r in rehearsed if r.system == system]
    users = len({r.user_id for r in rows})
    answers = [r for r in rows if r.kind == "answer"]
    work = [r for r in rows if r.kind != "answer"]
    times = sum(open_queries.values()) / max(1, len(answers))
    unprepared = sum(n > 0 and user not in prepared for user, n in open_queries.items()) / max(1, users)

    def total(name: str) -> int:
        values = [sum(getattr(r, name) for r in part) for part in (answers, work)]
        return round(times * values[0] + unprepared * values[1])

    return Usage(**{name: total(name) for name in ("calls", "input_tokens", "output_tokens")})


def sampled(people: Sequence[Case], users: int) -> list[Case]:
    """So many of the people, evenly from the shortest to the longest history."""
    ordered = sorted(people, key=lambda p: len(p.history))
    if len(ordered) <= users:
        return ordered
    return [ordered[round((n + 0.5) * len(ordered) / users - 0.5)] for n in range(users)]


class _Silent:
    """A knowledge source without documents."""

    def search(self, query: str, k: int) -> Sequence[Any]:
        return []
