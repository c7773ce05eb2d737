"""Optimizers of personas, head to head: held-out score over LM calls, on synthetic users and a rule-following LM.

Every optimizer gets the same users, program, LM, budget of LM calls and feedback on a mistake; a fresh set of queries,
answered without noise, scores the program it would return after every call. The LM is exact: it follows the rules it
is shown and deduces the same rules from the same mistakes for everybody, so differences are those of the searches.
A peer that is not installed says so. Results go to a file as they come, and a second run goes on from there.

    python -m benchmarks.optimizers --users 20 --budget 150      # 20 users of each of 6 kinds
    python -m benchmarks.optimizers --users 2 --only PersonaAlignment --only dspy.GEPA
    python -m benchmarks.optimizers --noise-seeds 100            # how often noisy histories end in a worse persona
Peers: pip install 'persona-dspy[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import dspy
import numpy as np

from benchmarks.peers import PEERS, missing, run
from benchmarks.task import Meter, Task
from optimizers import PersonaAlignment
from persona_dspy.agent import PersonaAgent, PersonalProgram
from persona_dspy.testing import KINDS as WORD_KINDS
from persona_dspy.testing import SyntheticUser, rule_following_lm

KINDS = (*WORD_KINDS, "threshold")  # what the last one likes takes a sentence with a number
HISTORY, QUERIES, RESAMPLES = 40, 40, 2000
MARKS = (0, 10, 20, 30, 40, 60, 80, 100, 150)
Run = dict[str, Any]


def held_out(program: PersonalProgram, user: SyntheticUser, n: int = QUERIES) -> float:
    """Mean score in [0, 1] on queries from after the history, against what the user truly thinks. Not metered."""
    with dspy.context(lm=rule_following_lm()):
        return fmean(
            program.kind.score(user.response(i.query), program(description=i.query)[program.response_field])
            for i in user.interactions(n, start=1000)
        )


def agent_of(user: SyntheticUser, n: int = HISTORY) -> PersonaAgent:
    return PersonaAgent(user.signature, history=user.interactions(n), recall_k=0)


def curve(name: str, user: SyntheticUser, budget: int, small: bool = False) -> Run:
    """[calls, tokens, held-out score] of every program that the optimizer would have returned, in the order found."""
    task = Task(agent=agent_of(user), budget=budget, seed=user.seed, meter=Meter(small=small))
    began = time.perf_counter()
    points = [[0, 0, held_out(task.agent, user)]]
    points += [[p.calls, p.tokens, held_out(p.program, user)] for p in run(name, task)]
    spent = {"calls": task.meter.calls, "tokens": task.meter.tokens, "seconds": time.perf_counter() - began}
    return {"peer": name, "kind": user.kind, "seed": user.seed, "noise": user.noise, "points": points, **spent}


def collect(path: Path, names: list[str], seeds: range, budget: int, noise: float, small: bool) -> list[Run]:
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(r["peer"], r["kind"], r["seed"], r["noise"], r["budget"]) for r in done}
    for seed in seeds:
        for kind in KINDS:
            for name in names:
                if missing(name) or (name, kind, seed, noise, budget) in known:
                    continue
                user = SyntheticUser(seed=seed, kind=kind, noise=noise)
                found = curve(name, user, budget, small) | {"budget": budget}
                done.append(found)
                with path.open("a") as file:
                    file.write(json.dumps(found) + "\n")
            print(f"user {seed} {kind}: {len(done)} runs", file=sys.stderr, flush=True)
    return [r for r in done if r["noise"] == noise and r["budget"] == budget and r["seed"] in seeds]


def at(points: list[list[float]], calls: float) -> float:
    """Held-out score of the program that ``calls`` calls bring."""
    return [p for p in points if p[0] <= calls][-1][2]


def area(points: list[list[float]], budget: int) -> float:
    """Mean held-out score over all numbers of calls from 0 to the budget."""
    return fmean(at(points, c) for c in range(budget + 1))


def reach(points: list[list[float]], score: float, column: int) -> float:
    """Calls (column 0) or tokens (1) to ``score``; infinite where it is never reached."""
    return next((p[column] for p in points if p[2] >= score - 1e-9), float("inf"))


def interval(values: list[float], *, seed: int = 0) -> str:
    """Mean and its 95% bootstrap interval over users."""
    rng, data = np.random.default_rng(seed), np.array(values)
    means = data[rng.integers(0, len(data), (RESAMPLES, len(data)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{data.mean():.3f} [{low:.3f}, {high:.3f}]"


def shown(number: float) -> str:
    return "never" if number == float("inf") else f"{number:,.0f}"


def tables(runs: list[Run], names: list[str], budget: int) -> list[str]:
    """Markdown: the summary and the curve."""
    by_peer: dict[str, dict[tuple[str, int], Run]] = defaultdict(dict)
    for r in runs:
        by_peer[r["peer"]][r["kind"], r["seed"]] = r
    users = sorted({key for peers in by_peer.values() for key in peers})
    first = {u: next(p[u]["points"][0][2] for p in by_peer.values() if u in p) for u in users}
    best = {u: max(point[2] for p in by_peer.values() if u in p for point in p[u]["points"]) for u in users}
    goal = {u: first[u] + 0.9 * (best[u] - first[u]) for u in users}
    lines = [
        "| optimizer | held-out at the end | mean over the budget (AUC) | AUC less dspy.GEPA's | calls to 90% of the"
        " best | tokens to it | users that got there | users made worse | calls used |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    gepa = by_peer.get("dspy.GEPA", {})
    for name in names:
        if lack := missing(name):
            lines.append(f"| {name} | not installed: `{lack}` |" + " |" * 7)
            continue
        found = {u: r for u, r in by_peer[name].items() if u in first}
        ends = {u: r["points"][-1][2] for u, r in found.items()}
        areas = {u: area(r["points"], budget) for u, r in found.items()}
        ahead = [a - area(gepa[u]["points"], budget) for u, a in areas.items() if u in gepa]
        calls = [reach(r["points"], goal[u], 0) for u, r in found.items()]
        tokens = [reach(r["points"], goal[u], 1) for u, r in found.items()]
        worse = sum(ends[u] < first[u] - 1e-9 for u in ends)
        cells = [
            interval(list(ends.values())),
            interval(list(areas.values())),
            interval(ahead) if ahead and name != "dspy.GEPA" else "",
            shown(median(calls)),
            shown(median(tokens)),
            f"{sum(c < float('inf') for c in calls) / len(calls):.0%}",
            f"{worse / len(ends):.0%} ({worse})",
            f"{fmean(r['calls'] for r in found.values()):.0f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    marks = [m for m in MARKS if m <= budget]
    lines += ["", "Held-out score after so many LM calls:", "", "| optimizer | " + " | ".join(map(str, marks)) + " |"]
    lines.append("|---|" + "---|" * len(marks))
    for name in names:
        if by_peer[name]:
            row = [f"{fmean(at(r['points'], m) for r in by_peer[name].values()):.2f}" for m in marks]
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return [*lines, "", *by_kind(by_peer, names), "", *against(by_peer, users, "dspy.GEPA")]


def by_kind(by_peer: dict[str, dict[tuple[str, int], Run]], names: list[str]) -> list[str]:
    """Markdown: held-out score at the end, by kind of user."""
    lines = ["Held-out score at the end, by kind of user:", "", "| optimizer | " + " | ".join(KINDS) + " |"]
    lines.append("|---|" + "---|" * len(KINDS))
    for name in names:
        cells = [[r["points"][-1][2] for (k, _), r in by_peer[name].items() if k == kind] for kind in KINDS]
        if all(cells):
            lines.append(f"| {name} | " + " | ".join(f"{fmean(c):.2f}" for c in cells) + " |")
    return lines


def against(by_peer: dict[str, dict[tuple[str, int], Run]], users: list[tuple[str, int]], peer: str) -> list[str]:
    """Markdown: how many calls we need to a peer's own final score, as a share of the peer's; by kind of user."""
    mine, theirs = by_peer.get("PersonaAlignment", {}), by_peer.get(peer, {})
    ratios: dict[str, list[float]] = defaultdict(list)
    for u in users:
        if u in mine and u in theirs and theirs[u]["points"][-1][2] > theirs[u]["points"][0][2]:
            score = theirs[u]["points"][-1][2]
            ratios[u[0]].append(reach(mine[u]["points"], score, 0) / reach(theirs[u]["points"], score, 0))
    if not ratios:
        return []
    lines = [
        f"Calls of PersonaAlignment to the score at which {peer} ends for that user, as a share of {peer}'s (users whom"
        f" {peer} made better):",
        "",
        "| users | of them | median share | at most half | more calls than it | never reached |",
        "|---|---|---|---|---|---|",
    ]
    for kind, found in [*ratios.items(), ("all", [r for shares in ratios.values() for r in shares])]:
        never, half = sum(r == float("inf") for r in found), sum(r <= 0.5 for r in found) / len(found)
        more = sum(1 < r < float("inf") for r in found)
        lines.append(f"| {kind} | {len(found)} | {median(found):.2f} | {half:.0%} | {more} | {never} |")
    return [*lines, "", *mean_curve(mine, theirs, peer)]


def mean_curve(mine: dict[tuple[str, int], Run], theirs: dict[tuple[str, int], Run], peer: str) -> list[str]:
    """After how many calls the mean over users is where the peer's is in the end, for both."""
    both = [u for u in theirs if u in mine]
    budget = max(p[0] for u in both for p in theirs[u]["points"])
    end = fmean(theirs[u]["points"][-1][2] for u in both)
    calls = [
        next((c for c in range(budget + 1) if fmean(at(runs[u]["points"], c) for u in both) >= end - 1e-9), None)
        for runs in (mine, theirs)
    ]
    return [
        f"Mean over users: {peer} ends at {end:.3f}, reached after {calls[1]} calls; PersonaAlignment after {calls[0]}."
    ]


def noisy(seeds: int, n: int, small: bool) -> list[str]:
    """Markdown: how often 20% random responses end in a persona worse than the initial one, on the true preference."""
    lines = [
        f"| kind, {n} interactions | worse of {seeds} | unchanged | mean gain | LM calls |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        gains: list[float] = []
        calls: list[int] = []
        for seed in range(seeds):
            user = SyntheticUser(seed=seed, kind=kind, noise=0.2, changes_at=n * 2 // 5)
            agent, lm = agent_of(user, n), rule_following_lm(small=small)
            with dspy.context(lm=lm):
                made = PersonaAlignment(progress=False).compile(agent, trainset=agent.examples())
            gains.append(held_out(made, user) - held_out(agent, user))
            calls.append(made.alignment.total.calls if made.alignment else 0)
        worse, same = sum(g < -1e-9 for g in gains), sum(abs(g) <= 1e-9 for g in gains)
        lines.append(f"| {kind} | {worse} | {same} | {interval(gains)} | {fmean(calls):.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def machine() -> str:
    found = []
    for package in ("dspy", "gepa", "textgrad", "langmem"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=4, help="users of each kind")
    parser.add_argument("--first-seed", type=int, default=0, help="of the users")
    parser.add_argument("--budget", type=int, default=150, help="LM calls for each optimizer and user")
    parser.add_argument("--noise", type=float, default=0.0, help="share of random responses in the histories")
    parser.add_argument("--only", action="append", choices=list(PEERS), help="an optimizer; may be repeated")
    parser.add_argument("--results", type=Path, default=Path("optimizers.jsonl"), help="runs, as they come")
    parser.add_argument("--noise-seeds", type=int, default=0, help="instead: seeds of the noise test, for each kind")
    parser.add_argument("--history", type=int, default=HISTORY, help="interactions a user in the noise test")
    parser.add_argument("--small", action="store_true", help="the LM stands for a small local one")
    asked = parser.parse_args()
    print(f"`python -m benchmarks.optimizers {' '.join(a for a in sys.argv[1:])}`, {machine()}\n")
    if asked.noise_seeds:
        print("\n".join(noisy(asked.noise_seeds, asked.history, asked.small)))
        return
    names = asked.only or list(PEERS)
    seeds = range(asked.first_seed, asked.first_seed + asked.users)
    runs = collect(asked.results, names, seeds, asked.budget, asked.noise, asked.small)
    print("\n".join(tables(runs, names, asked.budget)))


if __name__ == "__main__":
    main()
