"""Do recalled episodes help, and as what: no recall, a block of text, or past turns? (DESIGN, contract 7)

Real users' held-out questions, one model, the same agent with an empty persona; only how memory is shown differs.

    python benchmarks/turns.py DATA/movie_tags/users.json --task lamp-2m --lm local:half --questions 40

Prints a table of accuracy with 95% intervals (Wilson). Answers are kept in --answers, so that a run can be continued.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import dspy
from scipy.stats import binomtest

from persona_dspy.agent import PersonaAgent
from persona_dspy.core import Persona
from persona_dspy.data import get_task, read_users
from persona_dspy.lm import resolve_lm

ARMS = {
    "no recall": {"recall_k": 0},
    "4 episodes as a block": {"recall_k": 4, "episodes_as": "block"},
    "4 episodes as turns": {"recall_k": 4, "episodes_as": "turns"},
    "8 episodes as turns": {"recall_k": 8, "episodes_as": "turns"},
}


def questions(path, task, most):
    """(user, question) pairs, one question of each user first, then the second of each, ..."""
    users = list(read_users(path, task=task))
    rounds = max(len(u.questions) for u in users)
    pairs = [(u, u.questions[n]) for n in range(rounds) for u in users if n < len(u.questions)]
    return pairs[:most]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", default="lamp-2m")
    parser.add_argument("--lm", default="local:half")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--answers", type=Path, default=Path("turns-answers.jsonl"))
    options = parser.parse_args()
    task, lm = get_task(options.task), resolve_lm(options.lm, cache=False)
    done = {}
    if options.answers.exists():
        done = {tuple(row[:4]): row[4:] for row in map(json.loads, options.answers.read_text().splitlines())}
    table = {}
    with dspy.context(lm=lm), options.answers.open("a") as log:
        for arm, settings in ARMS.items():
            right = seconds = 0
            for user, question in questions(options.data, task, options.questions):
                key = (lm.model, arm, user.user_id, question.id)
                if key not in done:
                    empty = Persona(user_id=user.user_id)
                    agent = PersonaAgent(
                        task.signature(), history=user.interactions, user_id=user.user_id, persona=empty, **settings
                    )
                    began = time.monotonic()
                    answer = str(agent(**{agent.query_field: question.query})[agent.response_field])
                    done[key] = [answer, time.monotonic() - began]
                    log.write(json.dumps([*key, *done[key]]) + "\n")
                    log.flush()
                right += task.score(question.gold, done[key][0]) >= 1
                seconds += done[key][1]
            n = len(questions(options.data, task, options.questions))
            interval = binomtest(right, n).proportion_ci(method="wilson")
            table[arm] = (right / n, interval.low, interval.high, n, seconds / n)
            print(f"{arm}: {right} of {n} right", flush=True)
    print(f"\nmodel {lm.model}, task {task.name}\n")
    print("| memory shown as | accuracy | 95% | questions | s each |\n|---|---|---|---|---|")
    for arm, (score, low, high, n, each) in table.items():
        print(f"| {arm} | {score:.2f} | {low:.2f}-{high:.2f} | {n} | {each:.1f} |")


if __name__ == "__main__":
    main()
