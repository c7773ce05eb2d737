"""Who chooses the actions: recall by the query, one planning call, or a ReAct loop; on real queries with a local model.

    python benchmarks/actions.py DATA/movie_tags/users.json --task lamp-2m --lm local:half --questions 12

One question a user, facts as persona. Prints accuracy, LM calls, tokens and seconds an answer, and how often the words
that the LM chose found an episode with the right response that the query itself did not; ``--show N`` prints prompts and
outputs of the first N answers. Answers are kept in ``--answers``: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import dspy
from scipy.stats import binomtest
from turns import questions

from persona_dspy.agent import PersonaAgent
from persona_dspy.data import get_task
from persona_dspy.lm import resolve_lm

POLICIES = ("fixed", "plan", "react")


def answered(agent, query, lm, show):
    """One answer: the text, its trace, and how long it took."""
    lm.history.clear()
    began = time.monotonic()
    answer = agent(**{agent.query_field: query})
    seconds = time.monotonic() - began
    for call in lm.history if show else ():
        for message in call["messages"]:
            print(f"--- {message['role']}\n{message['content']}")
        print(f"--- answer\n{call['outputs'][0]}\n", flush=True)
    return str(answer[agent.response_field]), answer.trace, seconds


def row_of(agent, gold, answer, trace, seconds):
    """What is counted of an answer."""
    said = {i.id: i.response for i in agent.memory.interactions}
    chosen = [s for s in trace.steps if s.action != "recall_history" or s.at < max(c.at for c in trace.calls[:-1])] if (
        len(trace.calls) > 1) else []  # fmt: skip
    by_words = {r.id for s in chosen for r in s.recalled}
    by_query = {r.id for s in trace.steps if s not in chosen for r in s.recalled}
    return {
        "answer": answer,
        "gold": gold,
        "calls": trace.usage.calls,
        "tokens": trace.usage.input_tokens + trace.usage.output_tokens,
        "seconds": round(seconds, 2),
        "actions": [[s.action, s.query, s.failed] for s in trace.steps],
        "gained": any(said[i] == gold for i in by_words - by_query) and not any(said[i] == gold for i in by_query),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", default="lamp-2m")
    parser.add_argument("--lm", default="local:half")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no answer after so long")
    parser.add_argument("--answers", type=Path, default=Path("actions-answers.jsonl"))
    options = parser.parse_args()
    task, lm, began = get_task(options.task), resolve_lm(options.lm, cache=False), time.monotonic()
    rows = [json.loads(line) for line in options.answers.read_text().splitlines()] if options.answers.exists() else []
    done = {(row["policy"], row["user"]) for row in rows}
    with dspy.context(lm=lm, disable_history=False), options.answers.open("a") as log:
        for number, (user, question) in enumerate(questions(options.data, task, options.questions)):
            for policy in POLICIES:
                if (policy, user.user_id) in done or time.monotonic() - began > options.seconds:
                    continue
                agent = PersonaAgent(task.signature(), history=user.interactions, user_id=user.user_id, actions=policy)
                said = answered(agent, question.query, lm, number < options.show)
                row = {"policy": policy, "user": user.user_id, **row_of(agent, question.gold, *said)}
                row["right"] = bool(task.score(question.gold, row["answer"]) >= 1)
                log.write(json.dumps(row) + "\n")
                log.flush()
                rows.append(row)
                print(policy, user.user_id, row["answer"], "/", row["gold"], row["actions"], row["seconds"], flush=True)
    print("\n| actions | accuracy | 95% | n | calls | tokens | s | words gained |\n|---|---|---|---|---|---|---|---|")
    for policy in POLICIES:
        mine = [row for row in rows if row["policy"] == policy]
        if mine:
            right, n = sum(row["right"] for row in mine), len(mine)
            interval = binomtest(right, n).proportion_ci(method="wilson")
            means = [sum(row[name] for row in mine) / n for name in ("calls", "tokens", "seconds", "gained")]
            print(f"| {policy} | {right / n:.2f} | {interval.low:.2f}-{interval.high:.2f} | {n} |", end="")
            print(" | ".join(f"{mean:.2f}" for mean in means), "|")


if __name__ == "__main__":
    main()
