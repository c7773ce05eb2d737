"""What users really give, against answers of their own: how much is learned from so many edits, comments, thumbs or choices.

Synthetic users with a hidden preference and an LM that does what its notes say; drafts are what anybody might have been
shown. Scores are on fresh queries, against what the user truly thinks. Results go to a file as they come.

    python -m benchmarks.signals --users 10 --out results/signals.jsonl
    python -m benchmarks.signals --noise 100 --out results/signals-noise.jsonl     # a fifth of the signals are random
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import dspy

from benchmarks.optimizers import held_out
from optimizers import PersonaAlignment
from persona_dspy.agent import PersonaAgent
from persona_dspy.core import mean_interval
from persona_dspy.testing import SyntheticUser, rule_following_lm
from persona_dspy.testing.synthetic import Given, Kind

KINDS: tuple[Kind, ...] = ("topic rule", "threshold", "style")
GIVEN: tuple[Given, ...] = get_args(Given)
AMOUNTS = (4, 8, 12, 16, 24, 40)


def learned(kind: Kind, given: Given, n: int, seed: int, noise: float = 0.0) -> dict[str, Any]:
    """One user aligned on ``n`` signals: scores in [0, 1] before and after, and what it cost."""
    user = SyntheticUser(seed=seed, kind=kind, noise=noise)
    agent = PersonaAgent(user.signature, history=user.interactions(n, given=given), user_id=user.user_id, recall_k=0)
    before = held_out(agent, user)
    with dspy.context(lm=rule_following_lm(small=False)):
        found = PersonaAlignment(progress=False).compile(agent, trainset=agent.examples())
    assert found.alignment is not None
    calls = found.alignment.total.calls
    values = {"kind": kind, "given": given, "n": n, "seed": seed, "noise": noise}
    return {**values, "before": before, "after": held_out(found, user), "calls": calls}


def collect(path: Path, users: int, amounts: tuple[int, ...], noise: float) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    known = {(row["kind"], row["given"], row["n"], row["seed"]) for row in rows}
    for seed in range(users):
        for kind in KINDS:
            for given in GIVEN:
                for n in amounts:
                    if (kind, given, n, seed) not in known:
                        rows.append(learned(kind, given, n, seed, noise))
                        with path.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def curves(rows: list[dict[str, Any]]) -> None:
    """Mean score by amount, and from how many signals on 90% of the best gain that answers give is reached."""
    print(f"| kind | given | {' | '.join(map(str, AMOUNTS))} | 90% at | calls at 40 |\n|{'---|' * (len(AMOUNTS) + 4)}")
    for kind in KINDS:
        before = fmean(row["before"] for row in rows if row["kind"] == kind)
        mean: dict[tuple[str, int], float] = {}
        for given in GIVEN:
            for n in AMOUNTS:
                found = [row["after"] for row in rows if (row["kind"], row["given"], row["n"]) == (kind, given, n)]
                mean[given, n] = fmean(found) if found else float("nan")
        best = max(mean["answers", n] for n in AMOUNTS)
        for given in GIVEN:
            at = next((n for n in AMOUNTS if mean[given, n] - before >= 0.9 * (best - before)), None)
            shown = " | ".join(f"{mean[given, n]:.3f}" for n in AMOUNTS)
            calls = [row["calls"] for row in rows if (row["kind"], row["given"], row["n"]) == (kind, given, 40)]
            print(f"| {kind} ({before:.3f} before) | {given} | {shown} | {at or 'never'} | {fmean(calls):.0f} |")


def harm(rows: list[dict[str, Any]]) -> None:
    """How many users are worse after learning from signals of which some are random."""
    print("| kind | given | users | worse | better | mean gain |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        for given in GIVEN:
            found = [row for row in rows if (row["kind"], row["given"]) == (kind, given)]
            gains = {str(row["seed"]): [row["after"] - row["before"]] for row in found}
            worse, better = (sum(sign * g[0] > 1e-9 for g in gains.values()) for sign in (-1, 1))
            gain = mean_interval(gains)
            print(
                f"| {kind} | {given} | {len(found)} | {worse} | {better} | {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}] |"
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--users", type=int, default=10)
    options.add_argument("--noise", type=int, default=0, help="so many users with 20% random signals, 40 each")
    options.add_argument("--out", type=Path, default=Path("results/signals.jsonl"))
    order = options.parse_args()
    order.out.parent.mkdir(parents=True, exist_ok=True)
    if order.noise:
        harm(collect(order.out, order.noise, (40,), 0.2))
    else:
        curves(collect(order.out, order.users, AMOUNTS, 0.0))


if __name__ == "__main__":
    main()
