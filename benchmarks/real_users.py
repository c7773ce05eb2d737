"""Optimizers of personas, head to head on real users with a real model, small budgets; see benchmarks/optimizers.py.

Every optimizer gets a user's latest interactions, the same program, model and budget of calls; the user's held-out
questions score the programs that it would return after half of the calls and after all, not counted. Runs go to a file as they come, answers
of the model to another, so that it can be run for a few minutes at a time.

    python -m benchmarks.real_users DATA --lm local:half --users 4 --budget 40 --seconds 220
DATA: a folder with movie_tags, rating and news_category, each with users.json in LaMP's form.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from benchmarks.model_meter import Deadline, KeptEngine, ModelMeter
from benchmarks.optimizers import interval, machine
from benchmarks.peers import PEERS, missing, run
from benchmarks.task import Task
from persona_dspy.agent import PersonaAgent, PersonalProgram
from persona_dspy.data import UserHistory, get_task, read_users
from persona_dspy.lm import resolve_lm

TASKS = {"rating": "lamp-3", "movie_tags": "lamp-2m", "news_category": "lamp-2n"}
DEFAULT = ["PersonaAlignment", "PersonaAlignment, paper mode", "rewrites without feedback (control)", "dspy.GEPA"]
Run = dict[str, Any]


def chosen(data: Path, folder: str, history: int, tests: int) -> list[UserHistory]:
    """The users of a file with enough interactions and questions, in the file's order."""
    known = read_users(data / folder / "users.json", task=TASKS[folder])
    return [u for u in known if len(u.interactions) >= history and len(u.questions) >= tests]


def score(program: PersonalProgram, user: UserHistory, tests: int, lm: dspy.LM) -> float:
    """Mean score in [0, 1] on the user's held-out questions: equality for labels, closeness for ratings."""
    query, response = program.query_field, program.response_field
    with dspy.context(lm=lm):
        found = [(q.gold, program(**{query: q.query})[response]) for q in user.questions[:tests]]
    return fmean(program.kind.score(gold, said) for gold, said in found)


class Bench:
    """Runs of optimizers on users, kept in ``results`` as they come."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        model = resolve_lm(asked.lm, cache=False)
        until = time.monotonic() + asked.seconds
        self.engine, self.model = KeptEngine(model.engine, asked.answers, until), model.model
        self.done: list[Run] = []
        if asked.results.exists():
            self.done = [json.loads(line) for line in asked.results.read_text().splitlines()]

    def curve(self, name: str, folder: str, user: UserHistory) -> Run:
        asked = self.asked
        history = user.interactions[-asked.history :]
        signature = get_task(TASKS[folder]).signature()
        agent = PersonaAgent(signature, history=history, user_id=user.user_id, recall_k=asked.recall)
        meter = ModelMeter(self.engine, self.model)
        task = Task(agent=agent, budget=asked.budget, seed=0, meter=meter)
        judge = ModelMeter(self.engine, self.model).lm
        found = [(0, agent), *((p.calls, p.program) for p in run(name, task))]
        marks = (0, asked.budget // 2, asked.budget)  # scored there only: each score is as many calls of the model
        latest = {mark: [program for calls, program in found if calls <= mark][-1] for mark in marks}
        points = [[mark, score(program, user, asked.tests, judge)] for mark, program in latest.items()]
        spent = {"calls": meter.calls, "tokens": meter.tokens}
        return {**self.key(name, folder, user), "points": points, "changes": len(found) - 1, **spent}

    def key(self, name: str, folder: str, user: UserHistory) -> Run:
        asked = self.asked
        settings = {"budget": asked.budget, "history": asked.history, "tests": asked.tests, "recall": asked.recall}
        return {"peer": name, "folder": folder, "user": user.user_id, "lm": self.model, **settings}

    def collect(self, names: list[str]) -> None:
        """Users of the tasks in turn, each by every optimizer, until all are done or time is up."""
        asked, known = (
            self.asked,
            [{k: v for k, v in r.items() if k not in ("points", "changes", "calls", "tokens")} for r in self.done],
        )
        found = {f: chosen(asked.data, f, asked.history, asked.tests)[: asked.users] for f in asked.tasks}
        print({f: len(u) for f, u in found.items()}, file=sys.stderr)
        for n in range(asked.users):
            for folder, users in found.items():
                for name in names if n < len(users) else []:
                    if missing(name) or self.key(name, folder, users[n]) in known:
                        continue
                    began, computed = time.monotonic(), self.engine.computed
                    made = self.curve(name, folder, users[n])
                    self.done.append(made)
                    with asked.results.open("a") as file:
                        file.write(json.dumps(made) + "\n")
                    line = f"{name} {folder} {users[n].user_id} {made['points']}"
                    spent = f"{self.engine.computed - computed} calls computed, {time.monotonic() - began:.0f} s"
                    print(line, spent, file=sys.stderr, flush=True)

    def tables(self, names: list[str]) -> list[str]:
        """Markdown: scores at the start and at the end, and pairs with ours over users, all tasks and each."""
        lines: list[str] = []
        for folder in ["all", *self.asked.tasks]:
            by = {n: {(r["folder"], r["user"]): r for r in self._mine(n, folder)} for n in names}
            users = sorted(set.intersection(*(set(runs) for runs in by.values())))
            if users:
                lines += [
                    f"{folder}: {len(users)} users",
                    "",
                    *self._table({n: [r[u] for u in users] for n, r in by.items()}),
                    "",
                ]
        return lines

    def _mine(self, name: str, folder: str) -> Iterator[Run]:
        asked = self.asked
        wanted = {
            "peer": name,
            "lm": self.model,
            "budget": asked.budget,
            "recall": asked.recall,
            "history": asked.history,
        }
        for made in self.done:
            if folder in ("all", made["folder"]) and all(made[k] == v for k, v in wanted.items()):
                yield made

    def _table(self, runs: dict[str, list[Run]]) -> list[str]:
        half, budget = self.asked.budget // 2, self.asked.budget
        lines = [
            f"| optimizer | before | after {half} calls | after {budget} | gain | less ours | worse than before | calls used |",
            "|---|---|---|---|---|---|---|---|",
        ]
        start, middle, end = ({n: [r["points"][at][1] for r in found] for n, found in runs.items()} for at in range(3))
        ours = next(iter(runs))
        for name, found in runs.items():
            worse = sum(e < s - 1e-9 for e, s in zip(end[name], start[name], strict=True))
            cells = [f"{fmean(start[name]):.3f}", f"{fmean(middle[name]):.3f}", interval(end[name])]
            cells.append(interval(_less(end[name], start[name])))
            cells.append(interval(_less(end[name], end[ours])) if name != ours else "")
            cells += [f"{worse} of {len(found)}", f"{fmean(r['calls'] for r in found):.0f}"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return lines


def _less(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--lm", default="local:half")
    parser.add_argument("--users", type=int, default=4, help="users of each task")
    parser.add_argument("--history", type=int, default=32, help="a user's latest interactions, to learn from")
    parser.add_argument("--tests", type=int, default=8, help="held-out questions a user")
    parser.add_argument("--recall", type=int, default=0, help="episodes recalled for an answer")
    parser.add_argument("--budget", type=int, default=40, help="calls for each optimizer and user")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="new calls end after so long; run it again")
    parser.add_argument("--only", action="append", choices=list(PEERS), help="an optimizer; may be repeated")
    parser.add_argument("--results", type=Path, default=Path("real-users.jsonl"))
    parser.add_argument("--answers", type=Path, default=Path("real-users.sqlite"), help="the model's, by request")
    asked = parser.parse_args()
    names = asked.only or DEFAULT
    bench = Bench(asked)
    try:
        bench.collect(names)
    except Deadline:
        print("time is up: run it again to go on", file=sys.stderr)
    print(f"`python -m benchmarks.real_users {' '.join(sys.argv[1:])}`, {bench.model}, {machine()}\n")
    print("\n".join(bench.tables(names)))


if __name__ == "__main__":
    main()
