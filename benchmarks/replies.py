"""Replies to customers, drafted for twenty support agents who only edit our drafts, or only comment on them.

Made by templates: a customer writes about an order, everybody gets the same polite draft, and the agent has habits (how to
greet and sign, what to leave out, how long, in which form) that an edit or a comment shows. Nobody real is in it. Held-out
mails are answered under the aligned persona and without one; a blind judge says which draft is nearer to what the agent
would have sent, and ``table`` counts also how many are that word for word, and how near they are in characters (chrF).

    python -m benchmarks.replies learn --given edits --users 20 --out results/replies
    python -m benchmarks.replies ask --given edits --users 20 --out results/replies
    python -m benchmarks.replies judge --given edits --models gpt-4.1-nano --out results/replies
    python -m benchmarks.replies table --out results/replies

Edited replies are also shown as past turns, and a capable LM copies their style from there with a persona or without. What
the *persona* learns from edits, the same program shows that recalls nothing, in both arms, while it learns and answers:

    python -m benchmarks.replies learn --given edits --recall 0 --users 20 --out results/replies    # then ask, judge, table

    python -m benchmarks.replies sample --users 6 --out examples      # the data of `make demo`: comments only
"""

from __future__ import annotations

import argparse
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import dspy

from benchmarks.by_hand import lm_of
from optimizers import PersonaAlignment
from persona_dspy.agent import PersonaAgent
from persona_dspy.core import Interaction, Persona, load_persona, mean_interval, metrics, paired_difference

HISTORY, QUESTIONS = 16, 3
NAMES = ("Ana Ruiz", "Bo Lind", "Chi Okafor", "Dana Weiss", "Emil Novak", "Fay Duarte", "Gil Moreau", "Hana Sato")
ITEMS = ("kettle", "desk lamp", "rain jacket", "bread knife", "bike light", "phone case", "wool blanket", "tent")
CASES: dict[str, tuple[str, str, str]] = {  # what the customer writes, what is done about it, and when it is done
    "late": ("My {item} (order {order}) should have been here a week ago.", "we send a new {item} today", "Thursday"),
    "broken": ("The {item} from order {order} arrived broken.", "we replace the {item} at no cost", "Friday"),
    "refund": ("I sent the {item} back ten days ago, order {order}. Where is my money?",
               "the refund for the {item} is on its way", "Tuesday"),
    "wrong": ("I got the wrong colour of {item} with order {order}.", "we swap the {item}, a label is attached", "Monday"),
    "invoice": ("I need an invoice for the {item}, order {order}.", "the invoice for the {item} is attached", "today"),
}  # fmt: skip


class Reply(dspy.Signature):
    """Write the reply that this support agent sends to the customer. What is done about it is given."""

    mail: str = dspy.InputField(desc="the customer's mail, and what is done about it")
    reply: str = dspy.OutputField(desc="the whole reply, as this agent would send it")


@dataclass(frozen=True, kw_only=True)
class SupportAgent:
    """One agent with habits, the same for a seed."""

    seed: int

    @property
    def user_id(self) -> str:
        return f"agent-{self.seed:02}"

    @property
    def habits(self) -> dict[str, str]:
        pick = random.Random(f"habits-{self.seed}").choice
        return {
            "greeting": pick(("Hi {first},", "Hello {name},", "Good day {name}.", "{first} -", "")),
            "apology": pick(("", "", "Sorry about that.", "My apologies for the trouble.")),
            "order": pick(("", "Order {order}: ", "Re {order}. ")),
            "when": pick(("You hear from me on {day}.", "Done by {day}.", "")),
            "question": pick(("", "", "Anything else?", "Does that work for you?")),
            "form": pick(("lines", "one paragraph", "list")),
            "sign": pick(("Mo", "Best, Kim", "- Lee, Support", "Cheers\nJo", "")),
        }

    def mail(self, n: int) -> dict[str, str]:
        """The n-th mail, what is done about it, and what it is made of."""
        rng = random.Random(f"mail-{self.seed}-{n}")
        asked, done, day = CASES[rng.choice(sorted(CASES))]
        parts = {
            "name": rng.choice(NAMES),
            "item": rng.choice(ITEMS),
            "order": str(rng.randrange(1000, 9999)),
            "day": day,
        }
        parts["first"] = parts["name"].split()[0]
        parts["done"] = done.format(**parts)
        text = f"From: {parts['name']}\n{asked.format(**parts)}\n\nTo be said: {parts['done']}; by: {day}"
        return {**parts, "text": text}

    def draft(self, n: int) -> str:
        """What everybody is given."""
        p = self.mail(n)
        return (
            f"Dear {p['name']},\n\nThank you very much for contacting us about order {p['order']}. We sincerely apologize "
            f"for any inconvenience this may have caused. We are happy to inform you that {p['done']}. You can expect "
            f"this to be completed by {p['day']}. If you have any further questions, please do not hesitate to reach "
            "out to us at any time.\n\nKind regards,\nThe Customer Care Team"
        )

    def reply(self, n: int) -> str:
        """What the agent sends."""
        p, h = self.mail(n), self.habits
        done = h["order"].format(**p) + p["done"][0].upper() + p["done"][1:] + "."
        middle = [x for x in (h["apology"], done, h["when"].format(**p), h["question"]) if x]
        body = (
            " ".join(middle)
            if h["form"] == "one paragraph"
            else "\n".join(f"* {x}" if h["form"] == "list" else x for x in middle)
        )
        return "\n".join(x for x in (h["greeting"].format(**p), body, h["sign"]) if x)

    def comment(self, n: int) -> str:
        """What the agent says of the draft: one or two habits at a time."""
        h = self.habits
        wishes = [
            f"start with \"{h['greeting'].format(first='FIRSTNAME', name='FULL NAME')}\"" if h["greeting"] else "no greeting",
            f"the only apology is \"{h['apology']}\"" if h["apology"] else "don't apologize",
            "way too long, say what is done and little else",
            f"put the order number first: \"{h['order'].format(order='NUMBER').strip()}\"" if h["order"] else "no order number",
            f"say when like this: \"{h['when'].format(day='DAY')}\"" if h["when"] else "leave out when it is done",
            f"end by asking \"{h['question']}\"" if h["question"] else "no offers of further help at the end",
            {"lines": "a line for each sentence", "one paragraph": "keep it one paragraph",
             "list": "as a list, each line with a *"}[h["form"]],
            f"sign \"{h['sign']}\"" if h["sign"] else "don't sign",
        ]  # fmt: skip
        return "; ".join(random.Random(f"comment-{self.seed}-{n}").sample(wishes, 2))

    def interactions(self, n: int, given: Given) -> list[Interaction]:
        begun, made = datetime(2026, 3, 1, tzinfo=UTC), list[Interaction]()
        for i in range(n):
            told: dict[str, Any] = {"response": self.reply(i), "signal": {"draft": self.draft(i)}}
            if given == "comments":
                told = {"signal": {"draft": self.draft(i), "comment": self.comment(i)}}
            made.append(
                Interaction(
                    user_id=self.user_id, query=self.mail(i)["text"], time=begun + timedelta(days=i), id=f"m{i}", **told
                )
            )
        return made


Given = Literal["edits", "comments"]


def agent_of(
    user: SupportAgent, given: Given, persona: Persona | None = None, recall: int | None = None
) -> PersonaAgent:
    history = user.interactions(HISTORY, given)
    return PersonaAgent(Reply, history=history, user_id=user.user_id, persona=persona, recall_k=recall)


def learn(order: argparse.Namespace, out: Path) -> None:
    def one(seed: int) -> str:
        user, file = SupportAgent(seed=seed), out / "personas" / f"agent-{seed:02}.json"
        if file.exists():
            return "there"
        agent = agent_of(user, order.given, recall=order.recall)
        with dspy.context(lm=lm_of(order, order.models[seed % len(order.models)])):
            found = PersonaAlignment(auto=order.auto, concurrency=8, progress=False).compile(
                agent, trainset=agent.examples()
            )
        record = found.alignment
        found.persona.value.to_json(file)
        file.with_suffix(".record.json").write_text(record.model_dump_json(indent=1))
        return f"{record.scores} {record.total.calls} calls, {record.accepted} accepted"

    (out / "personas").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(order.users) as pool:
        for seed, told in enumerate(pool.map(one, range(order.users))):
            print(seed, told, flush=True)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def ask(order: argparse.Namespace, out: Path) -> None:
    """Held-out mails under both arms; each answerer answers each arm for some agents and no agent's mails twice."""
    file, lock = out / "answers.jsonl", threading.Lock()
    done = {(row["seed"], row["n"], row["arm"]) for row in rows_of(file)}

    def one(seed: int, n: int, arm: str) -> None:
        user = SupportAgent(seed=seed)
        persona = load_persona(out / "personas" / f"agent-{seed:02}.json") if arm == "aligned" else None
        model = order.models[(seed + (arm == "aligned")) % len(order.models)]
        with dspy.context(lm=lm_of(order, model)):
            answer = agent_of(user, order.given, persona, order.recall)(mail=user.mail(n)["text"]).reply
        with lock, file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps({"seed": seed, "n": n, "arm": arm, "answer": answer}) + "\n")

    work = [
        (seed, n, arm)
        for seed in range(order.users)
        for n in range(1000, 1000 + QUESTIONS)
        for arm in ("unaligned", "aligned")
        if (seed, n, arm) not in done
    ]
    with ThreadPoolExecutor(128) as pool:
        list(pool.map(lambda job: one(*job), work))
    print(len(work), "asked", flush=True)


class Nearer(dspy.Signature):
    """A support agent sent a reply. Say which of two drafts is nearer to it, as the agent would see it: what would have to be
    changed least. "same" where that is about equal."""

    sent: str = dspy.InputField(desc="what the agent sent")
    draft_a: str = dspy.InputField()
    draft_b: str = dspy.InputField()
    nearer: Literal["A", "B", "same"] = dspy.OutputField()


def judge(order: argparse.Namespace, out: Path) -> None:
    answers = {(row["seed"], row["n"], row["arm"]): row["answer"] for row in rows_of(out / "answers.jsonl")}
    file, lock = out / "verdicts.jsonl", threading.Lock()
    done = {(row["seed"], row["n"]) for row in rows_of(file)}

    def one(seed: int, n: int) -> None:
        ours, other = answers[seed, n, "aligned"], answers[seed, n, "unaligned"]
        first = random.Random(f"order-{seed}-{n}").random() < 0.5
        a, b = (ours, other) if first else (other, ours)
        with dspy.context(lm=lm_of(order, order.models[0])):
            said = (
                "same"
                if a == b
                else dspy.Predict(Nearer)(sent=SupportAgent(seed=seed).reply(n), draft_a=a, draft_b=b).nearer
            )
        score = 0.5 if said == "same" else float((said == "A") == first)
        with lock, file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps({"seed": seed, "n": n, "aligned": score}) + "\n")

    pairs = sorted({(seed, n) for seed, n, _ in answers} - done)
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda pair: one(*pair), pairs))
    print(len(pairs), "judged", flush=True)


def sample(users: int, file: Path) -> None:
    """A data file of agents who only comment."""
    rows: list[str] = []
    for seed in range(users):
        user = SupportAgent(seed=seed)
        for i in user.interactions(HISTORY, "comments"):
            assert i.signal is not None and i.time is not None
            said = {"draft": i.signal.draft, "comment": i.signal.comment}
            rows.append(
                json.dumps(
                    {"user_id": user.user_id, "id": i.id, "time": i.time.date().isoformat(), "query": i.query, **said}
                )
            )
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{file}: {len(rows)} rows of {users} agents")


def table(out: Path) -> None:
    titles = ("given", "aligned preferred", "unaligned preferred", "the same", "share for aligned, ties half")
    titles += ("word for word: aligned, unaligned", "chrF: aligned, unaligned", "chrF, difference", "calls, median")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for folder in sorted(path.parent for path in out.glob("*/answers.jsonl")):
        verdicts: dict[str, list[float]] = {}
        for row in rows_of(folder / "verdicts.jsonl"):
            verdicts.setdefault(str(row["seed"]), []).append(row["aligned"])
        said = [score for scores in verdicts.values() for score in scores]
        counts = [str(said.count(score)) for score in (1.0, 0.0, 0.5)]
        share = mean_interval(verdicts) if verdicts else None
        near: dict[str, dict[tuple[str, str], float]] = {"aligned": {}, "unaligned": {}}
        exact = dict.fromkeys(near, 0)
        for row in rows_of(folder / "answers.jsonl"):
            sent = SupportAgent(seed=row["seed"]).reply(row["n"])
            near[row["arm"]][str(row["seed"]), str(row["n"])] = metrics.chrf([sent], [row["answer"]])
            exact[row["arm"]] += row["answer"].strip() == sent.strip()
        gain = paired_difference(near["aligned"], near["unaligned"])
        calls = sorted(
            json.loads(file.read_text())["usage"]["total"]["calls"]
            for file in (folder / "personas").glob("*.record.json")
        )
        told = (
            f"{folder.name}, {len({seed for seed, _ in near['aligned']})} agents",
            *counts,
            "-" if share is None else f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]",
            f"{exact['aligned']}, {exact['unaligned']} of {len(near['unaligned'])}",
            ", ".join(f"{fmean(values.values()):.3f}" if values else "-" for values in near.values()),
            "-" if gain is None else f"{(d := gain.difference).value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]",
            str(calls[len(calls) // 2]) if calls else "-",
        )
        print("| " + " | ".join(told) + " |")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("command", choices=("learn", "ask", "judge", "table", "sample"))
    options.add_argument("--given", choices=("edits", "comments"), default="edits")
    options.add_argument("--recall", type=int, help="past turns shown while it learns and answers, in both arms")
    options.add_argument("--users", type=int, default=20)
    options.add_argument("--auto", default="light")
    options.add_argument("--port", type=int, default=9100)
    options.add_argument("--models", nargs="+", default=["gpt-4o-mini"], help="lanes, each with its own answerer")
    options.add_argument("--out", default="results/replies")
    order = options.parse_args()
    if order.command == "table":
        return table(Path(order.out))
    if order.command == "sample":
        return sample(order.users, Path(order.out) / "support_agents.jsonl")
    out = Path(order.out) / (order.given if order.recall is None else f"{order.given}-recall-{order.recall}")
    out.mkdir(parents=True, exist_ok=True)
    {"learn": learn, "ask": ask, "judge": judge}[order.command](order, out)
    return None


if __name__ == "__main__":
    main()
