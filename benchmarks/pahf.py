"""PAHF (arXiv 2602.16173): which of the things at hand a person wants, before and after the person's preferences change.

Options differ per query, and answers are choices. A persona is learned on the ``learn`` part of the first phase; then 10, 20
and 30 interactions of the second phase are added and the persona is aligned again from where it was. Held-out questions of
the phase that holds are asked at each point, with and without the persona. Everything goes to a file as it comes.

    python -m benchmarks.pahf learn --data ../shared/data/pahf --users 10 --out results/pahf
    python -m benchmarks.pahf ask --data ../shared/data/pahf --users 10 --out results/pahf
    python -m benchmarks.pahf table --out results/pahf
"""

from __future__ import annotations

import argparse
import json
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import dspy

from benchmarks.by_hand import lm_of
from optimizers import PersonaAlignment
from persona_dspy.agent import PersonaAgent
from persona_dspy.core import Interaction, Persona, load_persona, mean_interval

POINTS = (-1, 0, 10, 20, 30)  # new interactions since the change; -1 = before it
Arm = Literal["unaligned", "aligned"]


class Choose(dspy.Signature):
    """Say which of the things at hand this person wants brought, or put away."""

    situation: str = dspy.InputField(desc="what the person asks for")
    options: list[str] = dspy.InputField(desc="what is at hand")
    choice: str = dspy.OutputField(desc="the thing that this person means")


class Person:
    def __init__(self, user_id: str, rows: list[dict[str, Any]], questions: int) -> None:
        self.user_id = user_id
        parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            parts[row["phase"], row["part"]].append(row)
        self.before, self.after = parts["original", "learn"], parts["evolved", "learn"]
        self._questions = {phase: parts[phase, "held-out"] for phase in ("original", "evolved")}
        self._most = questions

    def history(self, point: int) -> list[Interaction]:
        rows = [*self.before, *self.after[: max(0, point)]]
        return [
            Interaction(
                user_id=self.user_id,
                query=row["situation"],
                response=row["answer"],
                id=row["id"],
                signal={"options": row["options"]},  # type: ignore[arg-type]  # read there
            )
            for row in rows
        ]

    def questions(self, point: int) -> list[dict[str, Any]]:
        held = self._questions["original" if point < 0 else "evolved"]
        step = max(1, len(held) // self._most)
        return held[::step][: self._most]

    def agent(self, point: int, persona: Persona | None = None) -> PersonaAgent:
        return PersonaAgent(Choose, history=self.history(point), user_id=self.user_id, persona=persona)


def people(order: argparse.Namespace) -> list[Person]:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (Path(order.data) / "scenes.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        rows[row["user_id"]].append(row)
    names = sorted(rows)
    return [Person(name, rows[name], order.questions) for name in names[:: max(1, len(names) // order.users)]][
        : order.users
    ]


def learned_at(out: Path, user_id: str, point: int) -> Path:
    return out / "personas" / f"{user_id}.{max(0, point)}.json"


def learn(order: argparse.Namespace, out: Path) -> None:
    (out / "personas").mkdir(parents=True, exist_ok=True)

    def one(person: Person, model: str) -> str:
        persona, told = None, list[str]()
        for point in POINTS[1:]:
            file = learned_at(out, person.user_id, point)
            if not file.exists():
                agent = person.agent(point, persona)
                with dspy.context(lm=lm_of(order, model)):
                    aligned = PersonaAlignment(auto=order.auto, concurrency=8, progress=False).compile(
                        agent, trainset=agent.examples()
                    )
                record = aligned.alignment
                aligned.persona.value.to_json(file)
                file.with_suffix(".record.json").write_text(record.model_dump_json(indent=1))
                told.append(f"{point}: {record.scores.initial} -> {record.scores.final}, {record.total.calls} calls")
            persona = load_persona(file)
        return "; ".join(told)

    persons = people(order)
    models = [order.models[n % len(order.models)] for n in range(len(persons))]
    with ThreadPoolExecutor(len(persons)) as pool:
        for person, told in zip(persons, pool.map(one, persons, models), strict=True):
            print(person.user_id, told, flush=True)


def ask(order: argparse.Namespace, out: Path) -> None:
    """Each answerer answers both arms, but of different people."""
    file, lock = out / "answers.jsonl", threading.Lock()
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    done = {(row["user"], row["point"], row["arm"], row["id"]) for row in rows}
    arms: tuple[Arm, ...] = ("unaligned", "aligned")
    work = [
        (person, point, arm, question, order.models[(place + shift) % len(order.models)])
        for place, person in enumerate(people(order))
        for point in order.points
        for shift, arm in enumerate(arms)
        for question in person.questions(point)
        if (person.user_id, point, arm, question["id"]) not in done
    ]

    def one(person: Person, point: int, arm: Arm, question: dict[str, Any], model: str) -> None:
        persona = load_persona(learned_at(out, person.user_id, point)) if arm == "aligned" else None
        with dspy.context(lm=lm_of(order, model)):
            agent = person.agent(point, persona)
            answer = agent(situation=question["situation"], options=question["options"]).choice
        right = float(agent.kind.score(question["answer"], answer))
        row = {
            "user": person.user_id,
            "point": point,
            "arm": arm,
            "id": question["id"],
            "answer": answer,
            "right": right,
        }
        with lock, file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")

    with ThreadPoolExecutor(128) as pool:
        list(pool.map(lambda job: one(*job), work))
    print(len(work), "asked", flush=True)


def table(out: Path) -> None:
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]
    print("| new interactions since the change | unaligned | aligned | people | questions |\n|---|---|---|---|---|")
    for point in sorted({row["point"] for row in rows}):
        shown: list[str] = []
        for arm in ("unaligned", "aligned"):
            by_user: dict[str, list[float]] = defaultdict(list)
            for row in rows:
                if (row["point"], row["arm"]) == (point, arm):
                    by_user[row["user"]].append(row["right"])
            mean = mean_interval(by_user)
            shown.append(f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]")
        count = sum(row["point"] == point and row["arm"] == "aligned" for row in rows)
        print(f"| {'before it' if point < 0 else point} | {' | '.join(shown)} | {len(by_user)} | {count} |")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("command", choices=("learn", "ask", "table"))
    options.add_argument("--data", help="folder with scenes.jsonl")
    options.add_argument("--users", type=int, default=10)
    options.add_argument("--questions", type=int, default=4)
    options.add_argument("--points", type=int, nargs="+", default=list(POINTS))
    options.add_argument("--auto", default="light")
    options.add_argument("--port", type=int, default=9100)
    options.add_argument("--models", nargs="+", default=["gpt-4o-mini"], help="lanes, each with its own answerer")
    options.add_argument("--out", default="results/pahf")
    order = options.parse_args()
    out = Path(order.out)
    out.mkdir(parents=True, exist_ok=True)
    if order.command == "table":
        return table(out)
    {"learn": learn, "ask": ask}[order.command](order, out)
    return None


if __name__ == "__main__":
    main()
