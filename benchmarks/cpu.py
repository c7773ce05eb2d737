"""CPU of an LM call inside a compile, and whose it is: DSPy's, its HTTP client's, pydantic's, or ours by room.

One user after the other against a server without latency, in a thread; the split is cProfile's share of own time, which
overstates code of many small functions, so the milliseconds come from runs without it.

    python -m benchmarks.cpu --users 60
    python -m benchmarks.cpu --users 60 --functions 40     # the most expensive functions too
"""

from __future__ import annotations

import argparse
import concurrent.futures.thread as thread
import cProfile
import os
import pstats
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy

from benchmarks.fleet import TagFilm, histories, optimizer
from benchmarks.latency_server import Server
from persona_dspy.agent import PersonaAgent
from persona_dspy.fleet import FleetFolder, compile_users


class Fleet:
    """Users compiled one after the other, by an LM whose model DSPy knows or not."""

    def __init__(self, server: Server, *, known: bool) -> None:
        self.server = server
        self.lm = server.lm() if known else server.lm("openai/a-model-of-ones-own")
        self.next = 0

    def run(self, users: int) -> tuple[float, int]:
        """(CPU seconds of this process, LM calls)."""
        before, began = self.server.count()[0], time.process_time()
        with tempfile.TemporaryDirectory() as path, FleetFolder(Path(path) / "p") as folder, dspy.context(lm=self.lm):
            results = compile_users(PersonaAgent(TagFilm), histories(users, self.next), optimizer(), folder=folder)
            assert all(result.document for result in results)
        self.next += users
        return time.process_time() - began, self.server.count()[0] - before


def owner(file: str) -> str:
    """Who a function belongs to, by its file."""
    for package in ("persona_dspy", "optimizers"):
        room = file.partition(f"/{package}/")[2].partition("/")[0]
        if room:
            return f"ours: {package if '.' in room or package == 'optimizers' else room}"
    for package in ("dspy/_vendor/lm15", "dspy", "pydantic", "httpx", "litellm", "sqlite3", "json", "ssl", "logging"):
        if f"/{package}/" in file:
            return package
    return "Python, C" if file == "~" else "Python, other"


def split(fleet: Fleet, users: int, functions: int) -> None:
    profile = cProfile.Profile(time.thread_time)
    work = thread._worker  # type: ignore[attr-defined]
    thread._worker = lambda *args: profile.runcall(work, *args)  # type: ignore[attr-defined]
    try:
        fleet.run(users)
    finally:
        thread._worker = work  # type: ignore[attr-defined]
    stats = pstats.Stats(profile)
    owners: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if file != "~":
            owners[owner(file)] += own
            continue
        for (caller, _, _), (_, _, part, _) in callers.items():  # C functions count for who called them
            owners[owner(caller)] += part
    total = sum(owners.values())
    for name, seconds in owners.most_common(16):
        print(f"  {name:24s} {seconds / total:.1%}")
    if functions:
        stats.sort_stats("cumulative").print_stats(functions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--functions", type=int, default=0)
    given = parser.parse_args()
    with Server(0.0) as server:
        for known in (True, False):
            fleet = Fleet(server, known=known)
            fleet.run(10)
            runs = [fleet.run(given.users) for _ in range(given.rounds)]
            best = min(seconds / calls for seconds, calls in runs)
            print(
                f"{'known' if known else 'unknown'} model: {best * 1000:.2f} ms CPU a call, the best of {given.rounds}"
            )
            split(fleet, given.users, given.functions)


if __name__ == "__main__":
    main()
