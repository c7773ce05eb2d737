"""Arms of personalization on real users, answered by whatever stands behind an OpenAI-compatible address.

Made for a capable model that answers by hand: requests wait for hours, and everything goes to a file as it comes, so a run
that was stopped goes on. ``learn`` aligns users and writes personas (``--arm
portrait``: one call a user, the lines of a portrait beside the counts, judged by nothing); ``ask`` answers held-out questions under each arm;
``judge`` has texts compared blindly by pairs;
``table`` prints scores with intervals over users. Of several ``--models`` (lanes, each with an answerer of its own) every one
answers each arm for some users and no user's questions twice, so that no arm has the better answerer.

    python -m benchmarks.by_hand learn --task lamp-3 --data ../shared/data/rating --users 12 --out results/hand
    python -m benchmarks.by_hand ask --task lamp-3 --data ../shared/data/rating --users 12 --out results/hand
    python -m benchmarks.by_hand table --task lamp-3 --out results/hand
"""

from __future__ import annotations

import argparse
import json
import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import dspy

from optimizers import HeldOutGate, PersonaAlignment, Portrait
from optimizers.reflection import reflecting
from persona_dspy.agent import PersonaAgent
from persona_dspy.core import (
    Interaction,
    Interval,
    Persona,
    count_tokens,
    load_persona,
    mean_interval,
    paired_difference,
)
from persona_dspy.data import Task, get_task
from persona_dspy.judge.baselines import ICL, PAG, RAG, MemoryBank, ReAct
from persona_dspy.judge.optimized import GEPA

BASELINES: dict[str, Any] = {"rag": RAG, "pag": PAG, "membank": MemoryBank, "react": ReAct}
ARMS = (
    "direct", *BASELINES, "latest40", "unaligned", "no_persona", "aligned", "as_in_paper", "gepa", "portrait"
)  # fmt: skip
LEARNED = {
    "aligned": "personas", "as_in_paper": "personas-as-in-paper", "gepa": "personas-gepa",
    "portrait": "personas-portrait",
}  # fmt: skip
# A task of one's own says what is asked; these data sets are not quite LaMP's.
WORDS = {
    "rating": "Say how offensive this user, an annotator, finds the comment: 1 = not offensive at all, 5 = very offensive.",
}
OWN_TASKS = {
    "taste": Task(
        name="taste", title="critics", query_field="film", response_field="verdict",
        instructions="Say whether this user, a critic, judged the film fresh (good) or rotten (bad).",
        query_means="title and plot of the film", response_means="this critic's verdict", labels=("fresh", "rotten"),
        metrics=("accuracy",), input_pattern=r"(?is)\bmovie:\s*(.*)$", item_query=("title",),
        item_reads=("description", "verdict"), item_response="verdict",
        make_pair=lambda item, earlier, user: (f"{item['title']} description: {item['description']}", item["verdict"]),
    ),
}  # fmt: skip


class Person:
    """One user of a LaMP-shaped file: the past, and held-out (query, gold) pairs."""

    def __init__(self, task: Task, row: dict[str, Any], questions: int) -> None:
        self.user_id: str = row["user_id"]
        self.past: list[Interaction] = []
        for item in row["profile"]:
            self.past.append(task.interaction(item, self.user_id, earlier=self.past))
        queries = [(task.parse_input(q["input"]), task.parse_response(q["gold"])) for q in row["query"]]
        step = max(1, len(queries) // questions)
        self.queries = queries[::step][:questions]


def people(task: Task, order: argparse.Namespace) -> list[Person]:
    """The first users by name who have enough of a past; the same for every arm."""
    rows = json.loads((Path(order.data) / "users.json").read_text("utf-8"))
    rows = sorted((r for r in rows if len(r["profile"]) >= order.least), key=lambda r: str(r["user_id"]))
    step = max(1, len(rows) // order.users)
    return [Person(task, row, order.questions) for row in rows[::step][: order.users]]


def lm_of(order: argparse.Namespace, name: str) -> dspy.LM:
    return dspy.LM(
        f"openai/{name}", api_base=f"http://127.0.0.1:{order.port}/v1", api_key="none", cache=False, num_retries=0,
        timeout=7200, temperature=0.0,
    )  # fmt: skip


def program(task: Task, person: Person, arm: str, order: argparse.Namespace, out: Path) -> Any:
    signature = task.signature(WORDS.get(Path(order.data).name))
    options: dict[str, Any] = {"history": person.past, "user_id": person.user_id}
    arm, _, other = arm.partition("@")
    k = int(other or order.k)
    if arm in ("direct", "no_persona"):
        turns = k if arm == "no_persona" else 0
        return PersonaAgent(signature, recall_k=turns, persona=Persona(user_id=person.user_id), **options)
    if arm in BASELINES:
        return BASELINES[arm](signature, k=k, turn_tokens=2000, **options)
    if arm == "latest40":
        return ICL(signature, k=40, turn_tokens=2000, **options)
    persona = load_persona(out / LEARNED[arm] / f"{person.user_id}.json") if arm in LEARNED else None
    return PersonaAgent(signature, persona=persona, recall_k=k, **options)


def learn(task: Task, order: argparse.Namespace) -> None:
    out = Path(order.out) / Path(order.data).name
    folder = out / LEARNED[order.arm]
    folder.mkdir(parents=True, exist_ok=True)
    alignments: dict[str, Any] = {
        "aligned": PersonaAlignment(auto=order.auto, concurrency=8, progress=False),
        "as_in_paper": PersonaAlignment.as_in_paper(concurrency=8, progress=False),
        "gepa": GEPA(gate=HeldOutGate(), calls=order.calls),
    }
    alignment = alignments.get(order.arm)

    def one(person: Person, model: str) -> str:
        file = folder / f"{person.user_id}.json"
        if file.exists():
            return "there"
        agent = program(task, person, "unaligned", order, out)
        if order.arm == "portrait":
            with reflecting(lm_of(order, model)):
                lines = Portrait()(agent.memory.interactions, agent.kind, agent.asked())
            persona = agent.persona.value
            persona.model_copy(update={"bullets": (*persona.bullets, *lines)}).to_json(file)
            return f"{len(lines)} lines"
        with dspy.context(lm=lm_of(order, model)):
            aligned = alignment.compile(agent, trainset=agent.examples())
        record = aligned.alignment
        aligned.persona.value.to_json(file)
        file.with_suffix(".record.json").write_text(record.model_dump_json(indent=1))
        return f"{record.scores} {record.total.calls} calls, {record.accepted} accepted"

    persons = people(task, order)
    models = [order.models[n % len(order.models)] for n in range(len(persons))]
    with ThreadPoolExecutor(order.users) as pool:
        for person, told in zip(persons, pool.map(one, persons, models), strict=True):
            print(person.user_id, told, flush=True)


def ask(task: Task, order: argparse.Namespace) -> None:
    out = Path(order.out) / Path(order.data).name
    out.mkdir(parents=True, exist_ok=True)
    persons, lock = people(task, order), threading.Lock()
    preparing = {(arm, person.user_id): threading.Lock() for arm in order.arms for person in persons}
    work: list[tuple[str, str, Person, int]] = []
    for shift, arm in enumerate(order.arms):
        file = out / f"{arm}.jsonl"
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
        done = {(row["user"], row["n"]) for row in rows}
        for place, person in enumerate(persons):
            model = order.models[(place + shift) % len(order.models)]
            work += [(arm, model, person, n) for n in range(len(person.queries)) if (person.user_id, n) not in done]

    def prepared(arm: str, person: Person, lm: dspy.LM) -> Any:
        """The program of an arm; what it makes of the past before the first query is made once and kept."""
        made, kept = program(task, person, arm, order, out), out / "profiles" / arm / f"{person.user_id}.txt"
        if not isinstance(made, PAG):
            return made
        with preparing[arm, person.user_id]:
            if not kept.exists():
                with dspy.context(lm=lm):
                    made.prepare()
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(made.profile, "utf-8")
        made.profile = kept.read_text("utf-8")
        return made

    def one(arm: str, model: str, person: Person, n: int) -> None:
        query, gold = person.queries[n]
        lm = lm_of(order, model)
        asked = prepared(arm, person, lm)
        with dspy.context(lm=lm, disable_history=False):
            answer = asked(**{task.query_field: query})[task.response_field]
        values = {"user": person.user_id, "n": n, "query": query, "gold": gold, "answer": str(answer), "model": model}
        shown = sum(count_tokens(str(m)) for m in lm.history[-1]["messages"])
        with lock, (out / f"{arm}.jsonl").open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(values | {"score": task.score(gold, answer), "tokens": shown}) + "\n")

    with ThreadPoolExecutor(200) as pool:
        list(pool.map(lambda job: one(*job), work))
    print(len(work), "asked", flush=True)


class Nearer(dspy.Signature):
    """Two drafts, A and B, were written in one person's place. Say which is nearer to what the person really wrote: first
    in what it says and leaves out, then in tone, length and form. Say "same" where neither is clearly nearer."""

    asked: str = dspy.InputField(desc="what was to be answered")
    written: str = dspy.InputField(desc="by the person")
    draft_a: str = dspy.InputField()
    draft_b: str = dspy.InputField()
    nearer: Literal["A", "B", "same"] = dspy.OutputField()


def judge(task: Task, order: argparse.Namespace) -> None:
    """Texts, by pairs: aligned against each other arm; who judges is not told which is which."""
    out = Path(order.out) / Path(order.data).name
    answers = {arm: {(r["user"], r["n"]): r for r in _rows(out / f"{arm}.jsonl")} for arm in order.arms}
    file, lock = out / "verdicts.json", threading.Lock()
    verdicts: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def one(arm: str, at: tuple[str, int]) -> None:
        key = f"{arm} {at[0]} {at[1]}"
        ours, other = answers["aligned"][at], answers[arm][at]
        first = random.Random(key).random() < 0.5
        a, b = (ours, other) if first else (other, ours)
        said = "same"
        if ours["answer"].strip() != other["answer"].strip():
            with dspy.context(lm=lm_of(order, order.models[0])):
                said = dspy.Predict(Nearer)(
                    asked=ours["query"], written=ours["gold"], draft_a=a["answer"], draft_b=b["answer"]
                ).nearer
        with lock:
            verdicts[key] = 0.5 if said == "same" else float((said == "A") == first)
            file.write_text(json.dumps(verdicts))

    pairs = [(arm, at) for arm in order.arms if arm != "aligned" for at in answers["aligned"]]
    with ThreadPoolExecutor(64) as pool:
        list(
            pool.map(
                lambda pair: one(*pair), [(arm, at) for arm, at in pairs if f"{arm} {at[0]} {at[1]}" not in verdicts]
            )
        )
    for arm in (arm for arm in order.arms if arm != "aligned"):
        by_user: dict[str, list[float]] = defaultdict(list)
        for of, at in pairs:
            if of == arm:
                by_user[at[0]].append(verdicts[f"{arm} {at[0]} {at[1]}"])
        every = [value for values in by_user.values() for value in values]
        counts = " : ".join(str(every.count(value)) for value in (1.0, 0.5, 0.0))
        print(f"aligned : same : {arm} {counts}; share of aligned, ties half: {_written(mean_interval(by_user))}")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _written(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def table(task: Task, order: argparse.Namespace) -> None:
    out = Path(order.out) / Path(order.data).name
    scores: dict[str, dict[tuple[str, str], float]] = {}
    tokens: dict[str, float] = {}
    for file in sorted(out.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        scores[file.stem] = {
            (row["user"], str(row["n"])): abs(float(row["gold"]) - float(row["answer"]))
            if task.rating
            else row["score"]
            for row in rows
        }
        tokens[file.stem] = fmean(row["tokens"] for row in rows)
    print(
        f"| arm | {'MAE' if task.rating else 'score'} | less unaligned's, users above : below : level | tokens an answer |\n|---|---|---|---|"
    )
    for arm, of_query in scores.items():
        by_user: dict[str, list[float]] = defaultdict(list)
        for (user, _), value in of_query.items():
            by_user[user].append(value)
        mean, gap = mean_interval(by_user), paired_difference(of_query, scores["unaligned"])
        told = f"{_written(gap.difference)}, {gap.won}:{gap.lost}:{gap.tied}" if gap else "-"
        print(f"| {arm} | {_written(mean)} ({len(by_user)} users) | {told} | {tokens[arm]:.0f} |")


def arm_name(text: str) -> str:
    arm, _, turns = text.partition("@")
    if arm not in ARMS or (turns and not turns.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(ARMS)}, or one of them and @TURNS")
    return text


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("command", choices=("learn", "ask", "judge", "table"))
    options.add_argument("--task", required=True)
    options.add_argument("--data", required=True, help="folder with users.json")
    options.add_argument(
        "--arms", nargs="+", type=arm_name, default=["rag", "latest40", "unaligned", "aligned"],
        help=f"of {', '.join(ARMS)}; aligned@4 = with 4 turns instead of --k",
    )  # fmt: skip
    options.add_argument("--users", type=int, default=24)
    options.add_argument("--questions", type=int, default=4)
    options.add_argument("--least", type=int, default=12, help="interactions a user must have")
    options.add_argument("--k", type=int, default=12)
    options.add_argument("--auto", default="light")
    options.add_argument("--arm", choices=tuple(LEARNED), default="aligned", help="learn: how")
    options.add_argument("--calls", type=int, default=20, help="of GEPA, for a user: about what ours takes")
    options.add_argument("--port", type=int, default=9100)
    options.add_argument("--models", nargs="+", default=["gpt-4o-mini"], help="lanes, each with its own answerer")
    options.add_argument("--out", default="results/hand")
    order = options.parse_args()
    task = OWN_TASKS.get(order.task) or get_task(order.task)
    {"learn": learn, "ask": ask, "judge": judge, "table": table}[order.command](task, order)


if __name__ == "__main__":
    main()
