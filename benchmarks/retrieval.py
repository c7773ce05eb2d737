"""Which retriever finds the episodes that tell a user's next answer: words, sentence vectors, or both; no LM is asked.

Each past interaction from the fifth on, and each held-out query, is answered by the k nearest of the interactions
before it. Two scores: the vote of these (accuracy; for ratings the mean absolute error of their median), and how often
the right answer is among them. On citations, where an answer is one of two titles, the title that is more similar to
its nearest own titles is chosen. Cost: milliseconds to index a history, to search it, and to encode a text, on this machine.

    python -m benchmarks.retrieval $PERSONA_DSPY_DATA --out results/retrieval.json
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from persona_dspy.core import Interaction, mean_interval, paired_difference
from persona_dspy.data import get_task, read_users
from persona_dspy.memory import EpisodicMemory, Retriever, named_retriever, varied
from persona_dspy.memory.encoders import minilm_encoder

FOLDERS = {"rating": "lamp-3", "movie_tags": "lamp-2m", "news_category": "lamp-2n", "citation": "lamp-1"}
RETRIEVERS = ("bm25", "dense", "hybrid")
_FEWEST = 5  # interactions before one that is asked
_TITLE = re.compile(r'^(\[[12]\]): "(.*)"$', re.MULTILINE)


def asked(user: Any) -> Iterator[tuple[str, str, int]]:
    """(query, the user's own answer, how many interactions come before it), the held-out queries last."""
    for place, interaction in enumerate(user.interactions):
        if place >= _FEWEST:
            yield interaction.query, interaction.response, place
    for question in user.questions:
        if question.gold is not None:
            yield question.query, question.gold, len(user.interactions)


def vote(near: Sequence[str], rating: bool) -> str:
    """The answer that the nearest give, nearest first: of equals the nearer."""
    if rating:
        return str(median(float(answer) for answer in near))
    counts = Counter(near)
    return max(near, key=lambda answer: counts[answer])


class CachedEncoder:
    """The sentence encoder; a text is encoded once, and ``ms`` holds how long each took."""

    def __init__(self) -> None:
        self.encoder = minilm_encoder()
        self.name = self.encoder.name
        self.ms: list[float] = []
        self._vectors: dict[str, Any] = {}

    def __call__(self, texts: Sequence[str]) -> Any:
        for text in texts:
            if text not in self._vectors:
                began = time.perf_counter()
                self._vectors[text] = self.encoder([text])[0]
                self.ms.append(1000 * (time.perf_counter() - began))
        return np.stack([self._vectors[text] for text in texts])


def by_similarity(memory: EpisodicMemory, query: str, place: int, ks: Sequence[int]) -> dict[int, str]:
    """Of two titles the one that is nearer to its k nearest own titles, for each k."""
    near = {name: memory.recall(title, max(ks), before=place) for name, title in _TITLE.findall(query)}
    return {k: max(near, key=lambda name: sum(e.score for e in near[name][:k])) for k in ks}


def measured(users: Sequence[Any], task: str, retriever: Retriever, ks: Sequence[int]) -> list[dict[str, Any]]:
    """For each k: scores, each a mean over users of means over a user's queries, with 95% intervals over users."""
    rating, titles = task == "lamp-3", task == "lamp-1"
    rows: dict[int, list[tuple[str, bool, float, float]]] = {k: [] for k in ks}  # user, held out, score, among
    index_ms: list[float] = []
    search_ms: list[float] = []
    for user in users:
        past = list(user.interactions)
        if titles:  # what is searched are the author's own titles
            past = [Interaction(user_id=i.user_id, query=str(i.metadata["title"]), response="own", id=i.id, time=i.time)
                    for i in past]  # fmt: skip
        memory = EpisodicMemory(past, retriever=retriever)
        retriever.encode([i.query for i in past])  # encoding is counted apart
        began = time.perf_counter()
        memory.recall("warm", 1)
        index_ms.append(1000 * (time.perf_counter() - began))
        for query, gold, place in asked(user):
            retriever.encode([query])
            began = time.perf_counter()
            if titles:
                answers, found = by_similarity(memory, query, place, ks), [gold]
            else:
                found = [e.interaction.response for e in memory.recall(query, max(ks), before=place)]
                answers = {k: vote(found[:k], rating) for k in ks}
            search_ms.append(1000 * (time.perf_counter() - began))
            for k, answer in answers.items():
                score = abs(float(answer) - float(gold)) if rating else float(answer == gold)
                rows[k].append((user.user_id, place == len(user.interactions), score, float(gold in found[:k])))
    return [
        {
            "task": task, "k": k, "users": len({r[0] for r in some}), "queries": len(some),
            "score": interval([(user, score) for user, _, score, _ in some]),
            "held_out": interval([(user, score) for user, late, score, _ in some if late]),
            "among": interval([(user, among) for user, _, _, among in some]),
            "by_user": by_user([(user, score) for user, _, score, _ in some]),
            "index_ms": median(index_ms), "search_ms": median(search_ms),
        }
        for k, some in rows.items()
    ]  # fmt: skip


def shown(users: Sequence[Any], rating: bool, k: int) -> None:
    """Prints the vote, for ratings the median, of the k turns that three choices show, and whether the answer is among
    them; for the held-out queries."""
    choices: dict[str, Callable[[list[Any]], list[Any]]] = {
        "nearest": lambda found: found[:k],
        "latest": lambda found: sorted(found, key=lambda e: -e.position)[:k],
        "varied, rare answers among them": lambda found: varied(found, k),
        "near and late in turn": lambda found: varied(found, k, every_answer=False),
    }
    scores: dict[str, list[tuple[str, float, float]]] = {name: [] for name in choices}
    for user in users:
        memory = EpisodicMemory(user.interactions)
        for question in user.questions if len(memory) > k else ():
            found = memory.recall(question.query, 128)
            for name, choose in choices.items():
                answers = [e.interaction.response for e in choose(found)]
                said = vote(answers, rating)
                score = abs(float(said) - float(question.gold)) if rating else float(said == question.gold)
                scores[name].append((user.user_id, score, float(question.gold in answers)))
    for name, some in scores.items():
        told = "{:.3f} [{:.3f}, {:.3f}]".format(*interval([(user, score) for user, score, _ in some]))
        among = f"{fmean(by_user([(user, a) for user, _, a in some]).values()):.3f}"
        print(f"| k = {k} | {name} | {len(some)} | {told} | {among} |", flush=True)


def by_user(values: Sequence[tuple[str, float]]) -> dict[str, float]:
    users: dict[str, list[float]] = {}
    for user, value in values:
        users.setdefault(user, []).append(value)
    return {user: fmean(own) for user, own in users.items()}


def interval(values: Sequence[tuple[str, float]]) -> list[float]:
    """Mean over users of a user's mean, and its 95% interval over users."""
    found = mean_interval({user: [mean] for user, mean in by_user(values).items()})
    return [found.value, found.low, found.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shown", action="store_true", help="only which of the near ones are shown, by words")
    options = parser.parse_args()
    if options.shown:
        for folder, task in [item for item in FOLDERS.items() if item[1] != "lamp-1"]:
            users = list(read_users(options.data / folder / "users.json", task=get_task(task), skip_bad_rows=True))
            print(task)
            for k in options.k:
                shown(users, task == "lamp-3", k)
        return
    rows: list[dict[str, Any]] = []
    encoder = CachedEncoder()
    for folder, task in FOLDERS.items():
        users = list(read_users(options.data / folder / "users.json", task=get_task(task), skip_bad_rows=True))
        words: dict[int, dict[str, float]] = {}
        for name in RETRIEVERS:
            for row in measured(users, task, named_retriever(name, encoder), options.k):
                mine = row.pop("by_user")
                words.setdefault(row["k"], mine)  # BM25 comes first
                sign = -1 if task == "lamp-3" else 1
                better = {("u" + user, ""): sign * value for user, value in mine.items()}
                base = {("u" + user, ""): sign * value for user, value in words[row["k"]].items()}
                paired = paired_difference(better, base)
                assert paired is not None
                gain = [paired.difference.value, paired.difference.low, paired.difference.high]
                rows.append({"retriever": name, **row, "gain": gain, "encode_ms": median(encoder.ms or [0.0])})
                print(
                    f"{task:8} {name:7} k={row['k']} n={row['queries']:5} "
                    + "score {:.3f} [{:.3f}, {:.3f}] ".format(*row["score"])
                    + "held out {:.3f} [{:.3f}, {:.3f}] ".format(*row["held_out"])
                    + "gain over words {:+.3f} [{:+.3f}, {:+.3f}] ".format(*gain)
                    + "among {:.3f} ".format(row["among"][0])
                    + f"index {row['index_ms']:.1f} ms search {row['search_ms']:.2f} ms"
                    + f" encode {rows[-1]['encode_ms']:.1f} ms",
                    flush=True,
                )
        options.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
